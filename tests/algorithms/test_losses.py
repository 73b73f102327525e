"""Every loss against hand-worked numbers, against a slow loop in plain Python, and at its edges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.algorithms import ALGORITHMS
from rlhf.algorithms.algorithm import value_loss
from rlhf.algorithms.apa import apa_loss
from rlhf.algorithms.awr import awr_loss, awr_weights
from rlhf.algorithms.ppo import ppo_loss, probability_ratio
from rlhf.batches import Totals, TrainingBatch
from rlhf.config import AdvantagesConfig, APAConfig, AWRConfig, PPOConfig
from rlhf.random import generator

FULL = torch.ones(1, 2, dtype=torch.bool)


def row(*values: float) -> Tensor:
    return torch.tensor([values])


# --- hand-worked numbers -------------------------------------------------------------------------------------------


def test_apa_of_two_tokens():
    # errors: -1 - 1 / 0.5 - (-2) = -1 and -3 - (-0.5) / 0.5 - (-1.5) = -0.5; (1 + 0.25) / 2
    loss = apa_loss(row(-1.0, -3.0), row(-2.0, -1.5), row(1.0, -0.5), FULL, lam=0.5)
    assert loss.item() == 0.625


def test_apas_gradient_pulls_to_the_target_and_is_zero_there():
    anchor, advantages = row(-2.0, -1.5), row(1.0, -0.5)
    target = anchor + advantages / 0.5
    logprobs = (target + row(0.0, 3.0)).requires_grad_()
    apa_loss(logprobs, anchor, advantages, FULL, lam=0.5).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, 3.0]]  # 2 error / 2 tokens


def test_awr_of_two_tokens():
    # weights exp(ln 3 / 1) = 3 and exp(-ln 2) = 1/2; -(3 * -1 + 1/2 * -4) / 2 = 2.5
    loss = awr_loss(row(-1.0, -4.0), row(math.log(3), -math.log(2)), FULL, lam=1.0)
    assert loss.item() == pytest.approx(2.5, rel=1e-6)
    # lambda 1/2 squares the weights: (9 * 1 + 1/4 * 4) / 2 = 5
    assert awr_loss(row(-1.0, -4.0), row(math.log(3), -math.log(2)), FULL, lam=0.5).item() == pytest.approx(5.0)


def test_awrs_weight_clip_cuts_large_weights_alone():
    advantages = row(math.log(3), -math.log(2))
    torch.testing.assert_close(awr_weights(advantages, lam=1.0, weight_clip=2.0), row(2.0, 0.5))
    # (2 * 1 + 1/2 * 4) / 2 = 2
    assert awr_loss(row(-1.0, -4.0), advantages, FULL, lam=1.0, weight_clip=2.0).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # a gain is held at 1 + eps: no reason to go on
        (1.5, -2.0, 3.0, 3.0),  # a loss is not held: max takes the unclipped term
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),  # 1 - eps
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_ppo_of_one_token(ratio, advantage, loss, gradient):
    # d loss / d logprob = -A rho where the unclipped term is the larger, else 0
    logprobs = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    value = ppo_loss(logprobs, row(-1.0), row(advantage), FULL[:, :1], ratio_clip=0.2)
    value.backward()
    assert logprobs.grad is not None
    assert value.item() == pytest.approx(loss, rel=1e-5)
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-5)


def test_ppos_ratio_is_exactly_1_at_equal_logprobs_and_finite_for_a_wild_token():
    logprobs = torch.randn(3, 5, generator=generator(0, "logprobs"))
    assert bool((probability_ratio(logprobs, logprobs.clone()) == 1).all())
    assert probability_ratio(row(0.0), row(-500.0)).item() == pytest.approx(math.exp(20), rel=1e-5)


def test_value_loss_of_two_tokens():
    # 1/2 ((3 - 1)^2 + (0 - 4)^2) / 2 = 5
    assert value_loss(row(3.0, 0.0), row(0.0, 0.0), row(1.0, 4.0), FULL).item() == 5.0


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (0.1, 0.0, 1.0, 0.405, -0.9),  # within eps_v = 0.2: one square
        (0.8, 0.0, 1.0, 0.32, 0.0),  # moved towards the return by more than eps_v: held at 0.2, 1/2 0.8^2
        (-0.5, 0.0, 1.0, 1.125, -1.5),  # moved away: the unheld square is the larger, so it is pulled back
        (0.8, 0.0, 0.7, 0.125, 0.0),  # nearly there, held at 0.2: 1/2 0.5^2
    ],
)
def test_clipped_value_loss_of_one_token(value, old, target, loss, gradient):
    values = row(value).requires_grad_()
    result = value_loss(values, row(old), row(target), FULL[:, :1], value_clip=0.2)
    result.backward()
    assert values.grad is not None
    assert result.item() == pytest.approx(loss, rel=1e-5)
    assert values.grad.item() == pytest.approx(gradient, abs=1e-6)


# --- slow loops ----------------------------------------------------------------------------------------------------


def random_batch(seed: int = 0) -> tuple[TrainingBatch, Tensor, Tensor]:
    """Seven responses of 1 to 6 tokens with garbage on padding; fresh logprobs and values that moved a little."""
    draws = generator(seed, "batch")
    mask = torch.arange(6) < torch.tensor([[1], [6], [3], [2], [6], [1], [4]])

    def noise(scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(mask.shape, generator=draws, dtype=torch.float64) * scale + shift

    batch = TrainingBatch(
        rows_in_rollout=torch.arange(7),
        mask=mask,
        old_logprobs=noise(1.0, -3.0),
        reference_logprobs=noise(1.0, -1.5),
        old_values=noise(),
        advantages=noise(),
        returns=noise(),
    )
    return batch, batch.old_logprobs + noise(0.3), batch.old_values + noise(0.3)


def slow_mean(batch: TrainingBatch, of: Callable[[int, int], float]) -> float:
    terms = [of(b, t) for b in range(7) for t in range(6) if batch.mask[b, t]]
    return sum(terms) / len(terms)


def slow_apa(batch: TrainingBatch, logprobs: Tensor, anchor: Tensor, lam: float) -> float:
    return slow_mean(batch, lambda b, t: float(logprobs[b, t] - batch.advantages[b, t] / lam - anchor[b, t]) ** 2)


def slow_awr(batch: TrainingBatch, logprobs: Tensor, lam: float, clip: float) -> float:
    return slow_mean(
        batch, lambda b, t: -min(math.exp(float(batch.advantages[b, t]) / lam), clip) * float(logprobs[b, t])
    )


def slow_ppo(batch: TrainingBatch, logprobs: Tensor, eps: float) -> float:
    def token(b: int, t: int) -> float:
        ratio, advantage = math.exp(float(logprobs[b, t] - batch.old_logprobs[b, t])), float(batch.advantages[b, t])
        return max(-advantage * ratio, -advantage * min(max(ratio, 1 - eps), 1 + eps))

    return slow_mean(batch, token)


def slow_value(batch: TrainingBatch, values: Tensor, eps: float | None) -> float:
    def token(b: int, t: int) -> float:
        new, old, target = float(values[b, t]), float(batch.old_values[b, t]), float(batch.returns[b, t])
        near = new if eps is None else min(max(new, old - eps), old + eps)
        return 0.5 * max((new - target) ** 2, (near - target) ** 2)

    return slow_mean(batch, token)


APA = APAConfig(name="apa", lam=0.7, anchor="initial", value_clip=None)
AWR = AWRConfig(name="awr", lam=0.7, weight_clip=None, value_clip=None)
PPO = PPOConfig(name="ppo", ratio_clip=0.2, value_clip=0.2, kl=None)  # type: ignore[arg-type]  # not the loss's matter
CONFIGS = {"apa": APA, "awr": AWR, "ppo": PPO}


WHITENING = AdvantagesConfig(gamma=1.0, gae_lambda=0.95, whiten="full", whiten_over="rollout")


def loss_of(config, batch: TrainingBatch, logprobs: Tensor, whole: TrainingBatch | None = None):
    """Args:
    whole: the minibatch that `batch` is a part of.
    """
    minibatch = batch if whole is None else whole
    totals = Totals(minibatch.mask.sum(), len(minibatch.mask))
    return ALGORITHMS[config.name](config, WHITENING).loss(batch, logprobs, totals)


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_against_a_loop_over_tokens(seed):
    batch, logprobs, values = random_batch(seed)
    close = {"rel": 1e-12}
    assert loss_of(APA, batch, logprobs).loss.item() == pytest.approx(
        slow_apa(batch, logprobs, batch.reference_logprobs, 0.7), **close
    )
    assert loss_of(AWR, batch, logprobs).loss.item() == pytest.approx(slow_awr(batch, logprobs, 0.7, 1e9), **close)
    clipped = dataclasses.replace(AWR, weight_clip=1.5)
    assert loss_of(clipped, batch, logprobs).loss.item() == pytest.approx(slow_awr(batch, logprobs, 0.7, 1.5), **close)
    assert loss_of(PPO, batch, logprobs).loss.item() == pytest.approx(slow_ppo(batch, logprobs, 0.2), **close)
    for eps in (None, 0.2):
        fast = value_loss(values, batch.old_values, batch.returns, batch.mask, value_clip=eps)
        assert fast.item() == pytest.approx(slow_value(batch, values, eps), **close)


def test_metrics_against_a_loop_over_tokens():
    batch, logprobs, _ = random_batch()
    weights = slow_mean(batch, lambda b, t: math.exp(float(batch.advantages[b, t]) / 0.7))
    outside = slow_mean(batch, lambda b, t: abs(math.exp(float(logprobs[b, t] - batch.old_logprobs[b, t])) - 1) > 0.2)
    above = slow_mean(batch, lambda b, t: float(batch.reference_logprobs[b, t] + batch.advantages[b, t] / 0.7) > 0)
    assert loss_of(AWR, batch, logprobs).metrics["mean_weight"].item() == pytest.approx(weights)
    assert loss_of(PPO, batch, logprobs).metrics["clip_fraction"].item() == pytest.approx(outside)
    assert loss_of(APA, batch, logprobs).metrics["infeasible_target_fraction"].item() == pytest.approx(above)
    assert 0 < above < 1 and 0 < outside < 1


def test_the_anchor_of_apa():
    batch, logprobs, _ = random_batch()
    old = dataclasses.replace(APA, anchor="old")
    loss = loss_of(old, batch, logprobs).loss.item()
    assert loss == pytest.approx(slow_apa(batch, logprobs, batch.old_logprobs, 0.7))
    assert loss != pytest.approx(loss_of(APA, batch, logprobs).loss.item())


def test_no_importance_ratio_in_apa_and_awr():
    """With the initial policy as anchor, the policy that sampled has no say in their losses."""
    batch, logprobs, _ = random_batch()
    other = dataclasses.replace(batch, old_logprobs=batch.old_logprobs + 1)
    for config in (APA, AWR):
        assert torch.equal(loss_of(config, batch, logprobs).loss, loss_of(config, other, logprobs).loss)
    assert not torch.equal(loss_of(PPO, batch, logprobs).loss, loss_of(PPO, other, logprobs).loss)


# --- padding -------------------------------------------------------------------------------------------------------


def losses_and_gradients(name: str, batch: TrainingBatch, logprobs: Tensor, values: Tensor):
    logprobs, values = logprobs.clone().requires_grad_(), values.clone().requires_grad_()
    output = loss_of(CONFIGS[name], batch, logprobs)
    critic = value_loss(values, batch.old_values, batch.returns, batch.mask, value_clip=0.2)
    (output.loss + critic).backward()
    assert logprobs.grad is not None and values.grad is not None
    return output.loss.detach(), critic.detach(), logprobs.grad, values.grad, output.metrics


@pytest.mark.parametrize("name", list(CONFIGS))
def test_masked_tokens_have_a_gradient_of_exactly_zero(name):
    batch, logprobs, values = random_batch()
    _, _, policy, value, _ = losses_and_gradients(name, batch, logprobs, values)
    assert bool((policy[~batch.mask] == 0).all()) and bool((value[~batch.mask] == 0).all())
    assert bool((value[batch.mask] != 0).sum() > 10) and bool((policy[batch.mask] != 0).sum() > 10)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("filler", [0.0, -300.0, 300.0])
def test_what_stands_on_padding_has_no_influence(name, filler):
    batch, logprobs, values = random_batch()
    columns = ("old_logprobs", "reference_logprobs", "old_values", "advantages", "returns")
    dirty = {column: torch.where(batch.mask, getattr(batch, column), filler) for column in columns}
    expected = losses_and_gradients(name, batch, logprobs, values)
    result = losses_and_gradients(
        name,
        dataclasses.replace(batch, **dirty),
        torch.where(batch.mask, logprobs, filler),
        torch.where(batch.mask, values, filler),
    )
    for a, b in zip(expected[:4], result[:4], strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(expected[4][key], result[4][key]) for key in expected[4])


@pytest.mark.parametrize("name", list(CONFIGS))
def test_losses_and_metrics_add_up_over_micro_batches(name):
    batch, logprobs, _ = random_batch()
    whole = loss_of(CONFIGS[name], batch, logprobs)
    parts = [
        loss_of(CONFIGS[name], batch.rows(rows), logprobs[rows], batch) for rows in torch.arange(7).split([1, 4, 2])
    ]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item())
    for key, value in whole.metrics.items():
        assert sum(part.metrics[key].item() for part in parts) == pytest.approx(value.item())
