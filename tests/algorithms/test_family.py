"""Each method of the family on numbers worked out by hand, and what must hold of all of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rlhf.algorithms import ALGORITHMS
from rlhf.algorithms.grpo import group_mean_advantages
from rlhf.algorithms.regression import quantile_advantages, soft_mean
from rlhf.batches import Totals, TrainingBatch
from rlhf.config import ALGO_CONFIGS
from rlhf.config.build import ConfigError
from tests.algorithms.made_up import algorithm, batch_of, gradient, loss_of, numbers, settings
from tests.config.composed import config

LN2 = math.log(2)
NEW_ONES = [name for name in ALGORITHMS if name not in ("apa", "ppo", "awr", "ilql", "rloo")]


def pair(name: str, rewards: tuple[float, float], u: tuple[float, float], *, lengths=(2, 1), values=None, **changes):
    """Loss of two responses to one prompt, of 2 and 1 tokens, whose log-ratios to both anchors are `u`.

    Rewards stand on the last token; of two tokens each has half of the log-ratio.
    """
    algo = algorithm(name, **changes)
    mask = torch.arange(2) < torch.tensor(lengths)[:, None]
    scores = torch.zeros(2, 2, dtype=torch.float64)
    scores[range(2), torch.tensor(lengths) - 1] = torch.tensor(rewards, dtype=torch.float64)
    anchor = torch.where(mask, -1.0, 0.0).double()
    log_ratios = torch.tensor(u, dtype=torch.float64)[:, None] / torch.tensor(lengths)[:, None] * mask
    references = changes.pop("references", None)
    batch = batch_of(algo, scores, mask, anchor, anchor, values=values, references=references)
    return loss_of(algo, batch, anchor + log_ratios)


def test_rebel_of_a_pair():
    # ((0.5 - 0.1) - (1 - 0) / 2)^2 = 0.01
    assert pair("rebel", (1.0, 0.0), (0.5, 0.1), lam=2.0).loss.item() == pytest.approx(0.01)


def test_pmd_mean_of_a_pair():
    # A = 1, -1; tau = 0.5: (0.5 - 2)^2 / 2 tokens = 1.125 and (0.1 + 2)^2 / 1 = 4.41; times tau / 2, mean of two
    loss = pair("pmd_mean", (1.0, 0.0), (0.5, 0.1), lam=0.5, group_size=2).loss
    assert loss.item() == pytest.approx(0.25 * (1.125 + 4.41) / 2)


def test_pmd_partition_of_a_pair_compares_with_the_other():
    assert pair("pmd_partition", (1.0, 0.0), (0.5, 0.1), lam=0.5, group_size=2).loss.item() == pytest.approx(
        0.25 * (1.125 + 4.41) / 2
    )


def test_tba_of_a_pair():
    # d = u - r / b = 0.5 - 2, 0.1; mean -0.7, errors -0.8, 0.8
    assert pair("tba", (1.0, 0.0), (0.5, 0.1), lam=0.5, group_size=2).loss.item() == pytest.approx(0.64)


def test_oapl_of_a_pair():
    # lam 1, r = ln 3, 0: V = ln((3 + 1) / 2) = ln 2; errors 0.5 - ln 3 + ln 2 and 0.1 + ln 2
    loss = pair("oapl", (math.log(3), 0.0), (0.5, 0.1), lam=1.0, group_size=2).loss
    assert loss.item() == pytest.approx(((0.5 - math.log(1.5)) ** 2 + (0.1 + LN2) ** 2) / 2)


def references(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def of_references(name: str, references: Tensor, rewards: tuple[float, ...], u: tuple[float, ...], **changes):
    algo = algorithm(name, **changes)
    scores, mask = torch.tensor(rewards).double()[:, None], torch.ones(len(u), 1, dtype=torch.bool)
    anchor = torch.zeros(len(u), 1, dtype=torch.float64)
    batch = batch_of(algo, scores, mask, anchor, anchor, references=references)
    return loss_of(algo, batch, torch.tensor(u).double()[:, None]).loss.item()


def test_a_star_po_of_one_response():
    # V = 2 ln((e^0 + e^ln4) / 2) = 2 ln 2.5 at b1 = 2; b2 = 0.5: (0.5 * 0.3 + V - 1)^2
    loss = of_references("a_star_po", references((0.0, 2 * math.log(4))), (1.0,), (0.3,), lam=0.5, reference_lam=2.0)
    assert loss == pytest.approx((0.15 + 2 * math.log(2.5) - 1) ** 2, rel=1e-6)


def test_qrpo_of_one_response():
    # F = 3 / 4; Z = beta / (1 + beta) = 1 / 3 at beta = 0.5: (ln 0.75 - 0.5 ln(1 / 3) - 0.5 * 0.2)^2
    four = references((0.0, 1.0, 2.0, 9.0))
    loss = of_references("qrpo", four, (5.0,), (0.2,), lam=0.5)
    assert loss == pytest.approx((math.log(0.75) + 0.5 * math.log(3) - 0.1) ** 2, rel=1e-6)
    # f = F: Z = 0.5 (e^2 - 1); ties count half: F(2) = 2.5 / 4; the least is 1 / N in the log
    loss = of_references("qrpo", four, (2.0,), (0.2,), lam=0.5, quantile="identity")
    assert loss == pytest.approx((0.625 - 0.5 * math.log(0.5 * (math.e**2 - 1)) - 0.1) ** 2, rel=1e-6)
    lowest = quantile_advantages(torch.tensor([-1.0]), four, 0.5, "log")
    assert float(lowest) == pytest.approx(math.log(0.25) + 0.5 * math.log(3))


def test_dro_of_one_token():
    # lam / 2 (u - A / lam)^2, A = reward - value = 3 - 1 on the only token
    algo = algorithm("dro", lam=0.5)
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = batch_of(algo, 3 * one, one > 0, -one, -9 * one, values=one)
    assert loss_of(algo, batch, -0.5 * one).loss.item() == pytest.approx(0.25 * (0.5 - 4) ** 2)


def test_dro_v_of_one_response_and_its_value():
    # tau = 2, r = 3, V = 1, u = 0.4: tau / 2 (0.4 - 2 / 2)^2; u at the start was -0.5: 1/2 (3 - 1.5 - 2 * -0.5)^2
    algo = algorithm("dro_v", lam=2.0)
    mask = torch.ones(1, 2, dtype=torch.bool)
    values = torch.tensor([[1.0, 7.0]]).double()
    rewards, reference = torch.tensor([[0.0, 3.0]]).double(), torch.full((1, 2), -1.0).double()
    old = reference + torch.tensor([[-0.5, 0.0]])
    batch = batch_of(algo, rewards, mask, old, reference, values=values)
    assert loss_of(algo, batch, reference + 0.2).loss.item() == pytest.approx(0.36)
    fresh = torch.tensor([[1.5, 9.0]], dtype=torch.float64, requires_grad=True)
    critic = algo.critic_loss(fresh, batch, Totals(mask.sum(), 1))
    critic.backward()
    assert critic.item() == pytest.approx(0.5 * 2.5**2)
    assert fresh.grad is not None and fresh.grad.tolist() == [[-2.5, 0.0]]  # V of the prompt alone


def test_p3o_of_a_pair():
    # joint ratio exp(0.5 - 0.4) within 1 +- 0.2; (1 - 0) (-1.5 + 1.4) ...: log pi are -2 + 0.5 and -1 - 0.4
    loss = pair("p3o", (1.0, 0.0), (0.5, -0.4)).loss
    assert loss.item() == pytest.approx(-math.exp(0.1) * (-1.5 + 1.4) / 2)
    clipped = pair("p3o", (1.0, 0.0), (0.5, 0.4))
    assert clipped.loss.item() == pytest.approx(-1.2 * (-1.5 + 0.6) / 2) and clipped.metrics["clip_fraction"] == 1


def test_dar_of_a_pair():
    # alpha = 1, beta = 3, A = +-0.5, log pi_init / pi_old = 0: w = exp(+-1 / 8); log pi = -1.5, -0.9
    loss = pair("dar", (1.0, 0.0), (0.5, 0.1), lam=1.0, lam_old=3.0, group_size=2).loss
    assert loss.item() == pytest.approx((math.exp(0.125) * 1.5 + math.exp(-0.125) * 0.9) / 2)
    held = pair("dar", (1.0, 0.0), (0.5, 0.1), lam=1.0, lam_old=3.0, group_size=2, weight_clip=1.0)
    assert held.loss.item() == pytest.approx((1.5 + math.exp(-0.125) * 0.9) / 2)
    assert held.metrics["weight_clip_fraction"].item() == 0.5


def test_dar_takes_what_has_left_the_initial_policy_back():
    algo = algorithm("dar", lam=1.0, lam_old=1.0, group_size=2)
    one = torch.ones(2, 1, dtype=torch.float64)
    batch = batch_of(algo, one, one > 0, -one, -one - torch.tensor([[2.0], [0.0]]))
    # w = (pi_init / pi_old)^(1/2) = e^-1, 1
    assert loss_of(algo, batch, -one).loss.item() == pytest.approx((math.exp(-1) + 1) / 2)


def test_dpo_and_ipo_of_a_pair():
    # margin 0.5 - 0.1 whatever the scores; beta = 2: -ln sigmoid(0.8); tau = 0.5: (0.4 - 1)^2
    for rewards in ((1.0, 0.0), (-3.0, 5.0)):
        dpo = pair("dpo", rewards, (0.5, 0.1), lam=2.0)
        assert dpo.loss.item() == pytest.approx(math.log(1 + math.exp(-0.8)))
        assert pair("ipo", rewards, (0.5, 0.1), lam=0.5).loss.item() == pytest.approx(0.36)
        assert dpo.metrics["margin"].item() == pytest.approx(0.4) and dpo.metrics["pair_accuracy"].item() == 1


def grpo_config(**changes):
    config = settings("grpo")
    kl = dataclasses.replace(config.kl, **{k: changes.pop(k) for k in ("coef", "estimator", "place") if k in changes})
    return {"kl": kl, **changes}


def test_grpo_of_a_pair():
    # A = +-0.5 / (sd sqrt(1/2) + 1e-4); ratios of tokens e^0.25 (clipped to 1.2) twice and e^0.1; each response's mean
    loss = pair("grpo", (1.0, 0.0), (0.5, 0.1), group_size=2, **grpo_config(coef=0.0)).loss
    advantage = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert loss.item() == pytest.approx((-1.2 * advantage + math.exp(0.1) * advantage) / 2)
    # over all three tokens; k3 = e^-0.25 - 1 + 0.25 twice, e^-0.1 - 1 + 0.1
    loss = pair("grpo", (1.0, 0.0), (0.5, 0.1), group_size=2, reduction="token", ratio_clip=None, std="none",
                **grpo_config(coef=2.0)).loss  # fmt: skip
    k3 = 2 * (math.exp(-0.25) - 0.75) + math.exp(-0.1) - 0.9
    assert loss.item() == pytest.approx((-math.exp(0.25) + 0.5 * math.exp(0.1) + 2 * k3) / 3)


@pytest.mark.parametrize(("estimator", "slope"), [("k1", 1.0), ("k2", 0.25), ("k3", 1 - math.exp(-0.25))])
def test_what_grpos_kl_in_the_loss_pulls_by(estimator, slope):
    algo = algorithm("grpo", group_size=2, std="none", **grpo_config(coef=3.0, estimator=estimator))
    new = torch.full((2, 1), -0.75, dtype=torch.float64)
    batch = batch_of(algo, torch.ones(2, 1).double(), new < 0, new, new - 0.25)  # equal rewards: A = 0
    assert gradient(algo, batch, new).flatten().tolist() == pytest.approx([3 * slope / 2] * 2)
    exact = dataclasses.replace(batch, exact_kl=7 * new)
    assert gradient(algo, exact, new).flatten().tolist() == [0, 0]  # the KL over the vocabulary has taken its place


def test_standard_deviations_of_grpo():
    rewards = torch.tensor([0.0, 2.0, 5.0, 5.0])
    assert group_mean_advantages(rewards, 2, "none").tolist() == [-1, 1, 0, 0]
    assert group_mean_advantages(rewards, 2, "group").tolist() == pytest.approx([-(2**-0.5), 2**-0.5, 0, 0], abs=1e-3)
    expected = [-(6**-0.5), 6**-0.5, 0, 0]
    assert group_mean_advantages(rewards, 2, "batch").tolist() == pytest.approx(expected, abs=1e-3)


def test_a_soft_mean_lies_between_the_mean_and_the_largest():
    rewards = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    assert soft_mean(rewards, 1e-3).item() == pytest.approx(5, abs=2e-3)
    assert soft_mean(rewards, 1e4).item() == pytest.approx(2, abs=1e-3)


# --- what holds of all ---------------------------------------------------------------------------------------------


def minibatch(name: str, **changes) -> TrainingBatch:
    made, algo = numbers(), algorithm(name, **changes)
    values = made.old if algo.config.critic else None
    references = made.rewards[:, :3].clone() if algo.config.reference_samples else None
    return made.batch(algo, values=values, references=references)


@pytest.mark.parametrize("name", NEW_ONES)
def test_losses_add_up_over_whole_groups_and_padding_has_no_part(name):
    algo, batch, new = algorithm(name), minibatch(name), numbers().new
    whole, totals = loss_of(algo, batch, new), Totals(batch.mask.sum(), len(batch.mask))
    parts = [algo.loss(batch.rows(rows), new[rows], totals) for rows in torch.arange(8).split(4)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-12)
    for key, value in whole.metrics.items():
        assert sum(part.metrics[key].item() for part in parts) == pytest.approx(value.item(), rel=1e-6)
    filled = {
        column: torch.where(batch.mask, getattr(batch, column), 300.0)
        for column in ("old_logprobs", "reference_logprobs")
    }
    dirty, expected = dataclasses.replace(batch, **filled), gradient(algo, batch, new)
    assert torch.equal(gradient(algo, dirty, torch.where(batch.mask, new, -300.0)), expected)
    assert not expected[~batch.mask].any() and bool((expected[batch.mask] != 0).sum() > 10)


@pytest.mark.parametrize("name", NEW_ONES)
def test_a_method_says_what_it_needs(name):
    config, run = settings(name), ALGO_CONFIGS[name]
    assert isinstance(config, run)
    assert config.critic == (name in ("dro", "dro_v")) and config.gae == (name == "dro")
    assert bool(config.reference_samples) == (name in ("a_star_po", "qrpo"))
    assert (config.penalty is not None and config.penalty.controller != "none") == (name in ("rebel", "p3o"))
    offline = "offline" in config.stages and config.problems("offline") == []
    assert offline == (name in ("dpo", "ipo", "qrpo", "dro_v", "tba", "a_star_po"))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"baseline": "critic", "unit": "sequence"}, "algo.baseline"),
        ({"baseline": "pair", "group_size": 4}, "algo.baseline"),
        ({"baseline": "leave_one_out", "group_size": 1}, "algo.baseline"),
        ({"baseline": "residual", "unit": "token", "group_size": 4}, "algo.baseline"),
        ({"unit": "token", "weight": "half_lam_by_length"}, "algo.weight"),
    ],
)
def test_switches_that_cannot_be_together_are_refused(changes, option):
    lines = dataclasses.replace(settings("a_star_po"), **changes).problems("online")
    assert len(lines) == 1 and lines[0].startswith(f"{option}: ")


@pytest.mark.parametrize("name", ["a_star_po", "qrpo"])
def test_rewards_less_a_reference_answers_are_not_compared_with_raw_ones(name):
    with pytest.raises(ConfigError, match=r"^reward\.baseline: "):
        config(f"algo={name}", "reward.baseline=reference")


def test_an_anchor_at_the_sampler_needs_one():
    assert [line.partition(":")[0] for line in settings("oapl").problems("offline")] == ["algo.anchor"]
