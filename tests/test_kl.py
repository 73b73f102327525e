"""KL estimators against exact sums over a small vocabulary, and the controller by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rlhf.config import KLControlConfig
from rlhf.config.build import ConfigError
from rlhf.masked import entropy
from rlhf.random import generator
from rlhf.rewards import AdaptiveKLController, KLController, controller_of, exact_kl, k1, k3, released_k3, sequence_kl
from tests.config.composed import config

POLICY = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
INITIAL = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
# KL = 0.5 ln 2 + 0 + 2 * 0.125 ln 0.5 = 0.25 ln 2
# chi2 = sum p^2 / q - 1 = 4 (0.25 + 0.0625 + 2 * 0.015625) - 1 = 0.375
KL, CHI2 = 0.25 * math.log(2), 0.375


def mean_under_policy(estimator):
    """An estimator's mean over tokens of the policy, exactly."""
    return float((POLICY * estimator(POLICY.log(), INITIAL.log())).sum())


def test_k1_and_k3_average_to_the_kl():
    assert mean_under_policy(k1) == pytest.approx(KL, abs=1e-14)
    assert mean_under_policy(k3) == pytest.approx(KL, abs=1e-14)


def test_the_released_k3_averages_to_chi2_minus_kl():
    assert mean_under_policy(released_k3) == pytest.approx(CHI2 - KL, abs=1e-14)
    assert mean_under_policy(released_k3) != pytest.approx(KL, abs=1e-2)


def test_k3_keeps_its_digits_near_zero():
    # exp(-d) - 1 + d = d^2 / 2 to leading order: 5e-9 at d = 1e-4, where a float32 exp(-d) - 1 has lost everything.
    assert k3(torch.tensor(1e-4), torch.tensor(0.0)).item() == pytest.approx(5e-9, rel=0.01)


def test_exact_kl_by_hand_and_by_a_plain_loop():
    assert exact_kl(POLICY.log()[None, None], INITIAL.log()[None, None]).item() == pytest.approx(KL, abs=1e-7)
    logits, reference = torch.randn(2, 2, 3, 9, generator=generator(0, "logits")).double()
    p, q = logits.softmax(-1), reference.softmax(-1)
    for b in range(2):
        for t in range(3):
            slow = sum(p[b, t, v] * (p[b, t, v] / q[b, t, v]).log() for v in range(9))
            assert exact_kl(logits, reference)[b, t].item() == pytest.approx(float(slow), rel=1e-5)


def test_a_token_that_the_policy_never_says_adds_nothing_and_changes_no_other_bit():
    """KL of 0.75, 0.25, 0 to 0.25, 0.25, 0.5 is 0.75 ln 3; its entropy is 0.75 ln 4/3 + 0.25 ln 4."""
    logits = torch.tensor([[[0.75, 0.25, 0.0]]]).log()
    initial = torch.tensor([[[0.25, 0.25, 0.5]]]).log()
    assert logits[0, 0, 2] == -torch.inf
    assert float(exact_kl(logits, initial)) == pytest.approx(0.75 * math.log(3), rel=1e-6)
    assert float(entropy(logits)) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4), rel=1e-6)
    draws = generator(0, "finite")
    policy, other = 5 * torch.randn(4, 3, 50, generator=draws), torch.randn(4, 3, 50, generator=draws)
    policy[0, 0, 0] = -500.0  # a probability that is 0 in float32, as it was before
    p, q = policy.log_softmax(-1), other.log_softmax(-1)
    assert torch.equal(exact_kl(policy, other), (p.exp() * (p - q)).sum(-1))
    assert torch.equal(entropy(policy), -(p.exp() * p).sum(-1))


def test_exact_kl_agrees_with_monte_carlo():
    logits, reference = torch.randn(2, 1, 1, 30, generator=generator(2, "logits"))
    exact = exact_kl(logits, reference).item()
    probabilities = logits[0, 0].double().softmax(-1)
    tokens = probabilities.multinomial(200_000, replacement=True, generator=generator(2, "tokens"))
    differences = (logits.double().log_softmax(-1) - reference.double().log_softmax(-1))[0, 0, tokens]
    standard_error = float(differences.std()) / math.sqrt(len(tokens))
    assert abs(float(differences.mean()) - exact) < 4 * standard_error
    assert standard_error < 0.01 * exact  # sharp enough to tell the two directions of the KL apart
    assert abs(exact_kl(reference, logits).item() - exact) > 10 * standard_error


def test_sequence_kl_sums_over_tokens_and_averages_over_responses():
    mask = torch.tensor([[True, True], [True, False]])
    # (1 + 2) and 5; the mean over two responses is 4, the mean over three tokens would be 8/3.
    assert sequence_kl(torch.tensor([[1.0, 2.0], [5.0, float("nan")]]), mask).item() == 4.0


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # at the target nothing moves
        (6.6, 1.0 + 0.1 * 64 / 1000),  # 10% above: e = 0.1
        (5.7, 1.0 - 0.05 * 64 / 1000),
        (100.0, 1.0 + 0.2 * 64 / 1000),  # clipped at +0.2
        (-3.0, 1.0 - 0.2 * 64 / 1000),  # k1 can be negative; clipped at -0.2
    ],
)
def test_one_step_of_the_adaptive_controller(kl, factor):
    controller = AdaptiveKLController(0.05, target=6.0, horizon=1000.0)
    controller.update(kl, 64)
    assert controller.coef == pytest.approx(0.05 * factor, rel=1e-12)


def test_the_controllers_by_their_name_and_their_state():
    settings = KLControlConfig(controller="adaptive", init_coef=0.1, target=2.0, horizon=100.0)
    kinds = ("none", "fixed", "adaptive")
    made = {kind: controller_of(dataclasses.replace(settings, controller=kind)) for kind in kinds}
    for controller in made.values():
        controller.update(4.0, 50)
    assert made["none"].coef == 0.0
    assert made["fixed"].coef == 0.1
    assert made["adaptive"].coef == pytest.approx(0.1 * (1 + 0.2 * 50 / 100))
    fresh = controller_of(settings)
    fresh.load_state_dict(made["adaptive"].state_dict())
    assert fresh.coef == made["adaptive"].coef
    assert type(made["fixed"]) is KLController and controller_of(None).coef == 0.0


def test_a_horizon_that_could_turn_the_penalty_around_is_refused():
    # One step multiplies beta by 1 - 0.2 * 64 / 10 < 0: a reward for KL instead of a penalty.
    with pytest.raises(ConfigError, match=r"algo\.kl\.horizon"):
        config("algo=ppo", "rollout.num_responses=64", "algo.kl.horizon=10")
    assert config("algo=ppo", "rollout.num_responses=64", "algo.kl.horizon=13").algo.name == "ppo"
