"""From rollouts to an optimizer step: first ratio 1, micro-batches, whitening, clipping, and what is not finite."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlhf.update as updating
from rlhf.algorithms import ALGORITHMS, algorithm_of
from rlhf.algorithms.ppo import probability_ratio
from rlhf.batches import Rollouts, TrainingBatch
from rlhf.config import RunConfig
from rlhf.masked import token_logprobs
from rlhf.models import PolicyModels
from rlhf.optimization import NotFinite, adamw, clip_and_step, schedule_factor
from rlhf.random import generator
from rlhf.training_batch import Measured, measure_rollouts, training_batch
from rlhf.update import accumulate_gradients, num_optimizer_steps, update
from tests.config.composed import config
from tests.helpers import (
    MODES,
    hidden_and_values,
    nudge,
    policy_logits,
    policy_models,
    random_rollouts,
    reference_logits,
    tiny_model,
    value_settings,
)

# Rows without any padding stand beside padded ones: attention may take another path where a micro-batch has none.
PROMPTS = [6, 6, 6, 6, 1, 2, 3, 4, 5, 6, 1, 2, 6, 5, 4, 3]
RESPONSES = [8, 8, 8, 8, 1, 8, 3, 1, 2, 8, 5, 7, 8, 1, 2, 6]


def settings(algo: str = "ppo", *overrides: str) -> RunConfig:
    sizes = ["rollout.num_responses=16", "optimization.minibatch_size=8", "optimization.micro_batch_size=4"]
    rates = ["optimization.learning_rate=0.01", "optimization.epochs=1", "advantages.gae_lambda=0.9"]
    return config(f"algo={algo}", *sizes, *rates, *overrides)


def prepared(
    run: RunConfig,
    mode: str = "last_k",
    architecture: str = "gpt_neox",
    network: str = "separate",
    kl_coef: float = 0.1,
    precision: str = "fp32",
) -> tuple[PolicyModels, Rollouts, Measured, TrainingBatch]:
    """Networks whose policy has left the reference, rollouts with random scores, and the batch made of them."""
    models = policy_models(tiny_model(architecture), mode, value_settings(network), precision=precision)
    nudge(models.named_parameters(), 0.1)
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    measured = measure_rollouts(run, models, rollouts, 1)
    scores = torch.randn(len(PROMPTS), generator=generator(0, "scores"))
    return models, rollouts, measured, training_batch(algorithm_of(run), rollouts, measured, scores, kl_coef)


def optimizer_of(models: PolicyModels, run: RunConfig) -> torch.optim.AdamW:
    groups = [(models.policy_parameters.values(), 0.01), (models.value_parameters.values(), 0.01)]
    return adamw(groups, betas=run.optimization.betas, eps=1e-8, weight_decay=0.0)


def run_update(run: RunConfig, models: PolicyModels, batch: TrainingBatch, measured: Measured, iteration=1, step=0):
    optimizer = optimizer_of(models, run)
    return update(run, algorithm_of(run), models, optimizer, batch, measured.features, iteration=iteration, step=step)


class Spy:
    """The table's loss, with a note of every micro-batch that it saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
        self.seen: list[tuple[TrainingBatch, Tensor]] = []
        loss = ALGORITHMS[algo].loss

        def noting(algorithm, batch, logprobs, totals):
            self.seen.append((batch, logprobs.detach()))
            return loss(algorithm, batch, logprobs, totals)

        monkeypatch.setattr(ALGORITHMS[algo], "loss", noting)


# --- the first ratio -----------------------------------------------------------------------------------------------


def ratios_are_1(monkeypatch, run: RunConfig, mode: str, architecture: str = "gpt_neox", precision: str = "fp32"):
    """For each micro-batch of two minibatches, whether every ratio is exactly 1."""
    models, _, measured, batch = prepared(run, mode, architecture, precision=precision)
    spy = Spy(monkeypatch, "ppo")
    run_update(run, models, batch, measured)
    assert sorted(torch.cat([b.rows_in_rollout for b, _ in spy.seen]).tolist()) == list(range(16))
    assert spy.seen[0][0].rows_in_rollout.tolist() != [0, 1, 2, 3]  # shuffled
    ratios = [probability_ratio(logprobs, part.old_logprobs)[part.mask] for part, logprobs in spy.seen]
    return [bool((ratio == 1.0).all()) for ratio in ratios]


@pytest.mark.parametrize(("architecture", "mode"), [("gpt_neox", "all"), ("llama", "last_k"), ("gpt_neox", "lora")])
@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_exactly_1_and_the_second_is_not(monkeypatch, architecture, mode, by_length, precision):
    """Whatever the precision: texts are measured in the micro-batches that they are trained in first."""
    run = settings("ppo", f"optimization.pack_by_length={by_length}")
    assert ratios_are_1(monkeypatch, run, mode, architecture, precision) == [True, True, False, False]


@pytest.mark.parametrize("mode", ["all", "last_k"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_exactly_1_where_two_threads_share_the_work(monkeypatch, two_threads, mode, precision):
    """Texts are measured in halves, by a thread each; policy and value network are then trained by a thread each."""
    assert ratios_are_1(monkeypatch, settings("ppo"), mode, precision=precision) == [True, True, False, False]


@pytest.mark.parametrize("mode", MODES)
def test_the_first_ratio_is_exactly_1_by_the_models_own_forward_pass(monkeypatch, fallback_reason, two_threads, mode):
    assert ratios_are_1(monkeypatch, settings("ppo"), mode) == [True, True, False, False]


def test_every_epoch_has_a_fresh_order_that_follows_from_seed_and_iteration(monkeypatch):
    run = settings("apa", "optimization.epochs=2", "optimization.micro_batch_size=8")

    def orders(seed: int, iteration: int) -> list[list[int]]:
        spy = Spy(monkeypatch, "apa")
        seeded = dataclasses.replace(run, seed=seed)
        models, _, measured, batch = prepared(seeded)
        run_update(seeded, models, batch, measured, iteration)
        rows = torch.cat([b.rows_in_rollout for b, _ in spy.seen])
        return [rows[:16].tolist(), rows[16:].tolist()]

    first, second = orders(0, 1)
    assert sorted(first) == sorted(second) == list(range(16)) and first != second
    assert orders(0, 1) == [first, second]
    assert orders(0, 2)[0] != first and orders(1, 1)[0] != first


# --- measuring and the training batch ------------------------------------------------------------------------------


def test_measured_columns_are_zero_on_padding_and_right_elsewhere():
    run = settings("ppo")
    models, rollouts, measured, batch = prepared(run)
    with torch.no_grad():
        features = models.features(rollouts)
        for column, logits in (
            (measured.old_logprobs, policy_logits(models, features)),
            (measured.reference_logprobs, reference_logits(models, features)),
        ):
            expected = torch.where(rollouts.mask, token_logprobs(logits, rollouts.response_ids), 0.0)
            torch.testing.assert_close(column, expected)
        torch.testing.assert_close(measured.values, torch.where(rollouts.mask, models.values(features), 0.0))
    for name, column in batch.numbers().items():
        assert bool((column[~batch.mask] == 0).all()), name


def test_the_return_of_the_first_token_is_the_score_less_the_kl_of_the_whole_response():
    # With gamma 1 and lambda 1 the return is the undiscounted reward to go: R - beta sum_t (log pi - log pi_init).
    run = settings("ppo", "advantages.gae_lambda=1.0", "advantages.whiten=none")
    _, rollouts, measured, batch = prepared(run, kl_coef=0.25)
    kl = (measured.old_logprobs - measured.reference_logprobs).sum(1)
    scores = torch.randn(len(PROMPTS), generator=generator(0, "scores"))
    torch.testing.assert_close(batch.returns[:, 0], scores - 0.25 * kl)
    torch.testing.assert_close(batch.advantages[:, 0], batch.returns[:, 0] - measured.values[:, 0])
    last = rollouts.lengths - 1
    rows = torch.arange(16)
    token_kl = (measured.old_logprobs - measured.reference_logprobs)[rows, last]
    torch.testing.assert_close(batch.returns[rows, last], scores - 0.25 * token_kl)
    assert kl.abs().max() > 0.1


def test_whitening_pools_the_whole_rollout_or_each_minibatch(monkeypatch):
    for over in ("rollout", "minibatch"):
        run = settings("apa", f"advantages.whiten_over={over}", "optimization.micro_batch_size=4")
        models, _, measured, batch = prepared(run)
        spy = Spy(monkeypatch, "apa")
        run_update(run, models, batch, measured)
        minibatch = [np.concatenate([b.advantages[b.mask].numpy() for b, _ in spy.seen[i : i + 2]]) for i in (0, 2)]
        pooled = np.concatenate(minibatch)
        whole = [abs(pooled.mean()) < 1e-5, abs(pooled.std() - 1) < 1e-4]
        parts = [abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-4 for x in minibatch]
        assert (whole, parts) == (([True, True], [False, False]) if over == "rollout" else (whole, [True, True]))
        # Returns, which the value network learns, are never whitened.
        raw = dataclasses.replace(run, advantages=dataclasses.replace(run.advantages, whiten="none"))
        torch.testing.assert_close(batch.returns, prepared(raw)[3].returns)


# --- gradients -----------------------------------------------------------------------------------------------------


def gradients(models: PolicyModels) -> Tensor:
    """All gradients as one vector; forgets them."""
    parts = []
    for parameter in models.named_parameters().values():
        assert parameter.grad is not None
        parts.append(parameter.grad.flatten().double())
        parameter.grad = None
    return torch.cat(parts)


@pytest.mark.parametrize(("algo", "mode"), [("apa", "last_k"), ("awr", "all"), *(("ppo", mode) for mode in MODES)])
def test_micro_batches_of_unequal_lengths_give_the_gradient_of_the_whole_minibatch(algo, mode):
    run = settings(algo)
    models, _, measured, batch = prepared(run, mode)
    minibatch = batch.rows(torch.tensor([4, 0, 7, 13, 1, 5, 8, 15]))  # lengths 1 8 | 1 1 | 8 8 | 2 6
    results = {}
    for size in (8, 2, 1):
        cut = dataclasses.replace(run, optimization=dataclasses.replace(run.optimization, micro_batch_size=size))
        metrics = accumulate_gradients(cut, algorithm_of(cut), models, minibatch, measured.features)
        results[size] = gradients(models), metrics
    whole, metrics = results[8]
    for size in (2, 1):
        assert (results[size][0] - whole).norm() < 1e-6 * whole.norm()
        assert results[size][1] == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("network", ["separate", "head"])
def test_the_gradient_is_that_of_apas_formula_written_out(network):
    run = settings("apa", "algo.lam=0.5", "value.coef=0.3", "optimization.micro_batch_size=2")
    models, rollouts, measured, batch = prepared(run, network=network)
    rows = torch.tensor([3, 14, 5, 4, 9, 11, 2, 8])
    metrics = accumulate_gradients(run, algorithm_of(run), models, batch.rows(rows), measured.features)
    found = gradients(models)
    part = batch.rows(rows)
    hidden, values = hidden_and_values(models, models.features(rollouts.rows(rows)))
    logprobs = models.policy_head(hidden).log_softmax(-1).gather(-1, rollouts.response_ids[rows][..., None]).squeeze(-1)
    error = (logprobs - part.advantages / 0.5 - part.reference_logprobs)[part.mask]
    policy, critic = error.square().mean(), 0.5 * (values - part.returns)[part.mask].square().mean()
    (policy + 0.3 * critic).backward()
    expected = gradients(models)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert metrics["policy_loss"] == pytest.approx(policy.item(), rel=1e-5)
    assert metrics["value_loss"] == pytest.approx(critic.item(), rel=1e-5)


def test_what_stands_in_padded_positions_of_the_features_gets_no_gradient():
    """Another pad token, under the same mask, changes neither losses nor gradients."""
    run = settings("apa")
    models, _, measured, batch = prepared(run, "all")
    found = []
    for filler in (0, 17):
        features = dataclasses.replace(
            measured.features,
            input_ids=torch.where(measured.features.mask, measured.features.input_ids, filler),
        )
        metrics = accumulate_gradients(run, algorithm_of(run), models, batch, features)
        found.append((gradients(models), metrics))
    assert (found[0][0] - found[1][0]).norm() < 1e-6 * found[0][0].norm()
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


# --- what is not finite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "column", "line"),
    [
        ("apa", "advantages", "policy_loss is inf .*algo.lam"),
        ("awr", "advantages", "policy_loss is -?inf .*algo.lam"),
        ("ppo", "advantages", "policy_loss is .* smaller optimization.learning_rate"),
        ("ppo", "returns", "value_loss is inf .* smaller value.learning_rate"),
    ],
)
def test_a_number_that_is_not_finite_stops_before_any_parameter_moves(algo, column, line):
    run = settings(algo, "optimization.minibatch_size=16")
    models, _, measured, batch = prepared(run)
    spoilt = getattr(batch, column).clone()
    spoilt[9, 3] = float("inf")
    before = [p.detach().clone() for p in models.named_parameters().values()]
    with pytest.raises(NotFinite, match=line):
        run_update(run, models, dataclasses.replace(batch, **{column: spoilt}), measured, step=41)
    assert all(torch.equal(a, b) for a, b in zip(before, models.named_parameters().values(), strict=True))


def test_a_gradient_that_is_not_finite_stops_before_any_parameter_moves():
    policy, value = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    policy.grad, value.grad = torch.ones(3), torch.tensor([1.0, float("inf"), 1.0])
    optimizer = torch.optim.SGD([policy, value], lr=1.0)
    with pytest.raises(NotFinite, match=r"the value gradient is .* at optimizer step 12; try a smaller .*rate"):
        clip_and_step(optimizer, {"policy": [policy], "value": [value]}, 1.0, 12)
    assert policy.tolist() == value.tolist() == [1.0, 1.0, 1.0]


# --- the optimizer step --------------------------------------------------------------------------------------------


def test_each_network_is_clipped_by_its_own_norm():
    policy, value = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    policy.grad, value.grad = torch.tensor([0.3, 0.4]), torch.tensor([300.0, 400.0])
    optimizer = torch.optim.SGD([policy, value], lr=1.0)
    norms = clip_and_step(optimizer, {"policy": [policy], "value": [value]}, 1.0, 0)
    assert norms == pytest.approx({"policy": 0.5, "value": 500.0})
    assert policy.tolist() == pytest.approx([-0.3, -0.4])  # below the limit: untouched by the value's 500
    assert value.tolist() == pytest.approx([-0.6, -0.8], rel=1e-5)
    assert policy.grad is None and value.grad is None


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        # Warm-up over 2 steps, then 4 steps at progress 0, 1/4, 1/2, 3/4; step 6 is beyond the end.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]),
    ],
)
def test_schedules(schedule, factors):
    assert [schedule_factor(step, 6, 2, schedule) for step in range(7)] == pytest.approx(factors)
    assert schedule_factor(0, 6, 0, schedule) == 1.0


def test_a_run_of_linear_schedule_uses_all_its_steps(monkeypatch):
    run = settings("apa", "optimization.schedule=linear", "rollout.iterations=2", "optimization.epochs=3")
    assert num_optimizer_steps(run) == 2 * 3 * 2
    factors = []
    monkeypatch.setattr(updating, "set_learning_rate", lambda _, factor: factors.append(factor))
    models, _, measured, batch = prepared(run)
    step = 0
    for iteration in (1, 2):
        _, step = run_update(run, models, batch, measured, iteration, step)
    assert factors == pytest.approx([1 - i / 12 for i in range(12)])
