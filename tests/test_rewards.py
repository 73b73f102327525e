"""Scores: scaled by all seen so far, then clipped, on the last valid token; KL: estimators by exact sums."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXForSequenceClassification

from rlhf.batches import Rollouts
from rlhf.config import KLControlConfig, RewardConfig
from rlhf.config.build import ConfigError
from rlhf.kl import exact_kl, k1, k3, released_k3, sequence_kl
from rlhf.masked import entropy
from rlhf.models.loading import word_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.optimization import NotFinite
from rlhf.random import generator
from rlhf.rewards import (
    AdaptiveKLController,
    KLController,
    RunningMoments,
    controller_of,
    scale_scores,
    score_responses,
    token_rewards,
)
from tests.config.composed import config
from tests.helpers import ARCHITECTURES, random_rollouts

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def reward_config(**values: Any) -> RewardConfig:
    return dataclasses.replace(config().reward, **{"scale": "running", "clip": None, **values})


def test_running_moments_are_those_of_all_scores_together():
    scores = torch.randn(90, generator=generator(0, "scores")) * 3 + 1000  # a large mean: a naive sum of squares fails
    moments, seen = RunningMoments(), 0
    for part in scores.split([1, 4, 30, 1, 54]):
        moments.update(part)
        seen += len(part)
        so_far = scores[:seen].double().numpy()
        assert (moments.count, moments.mean) == (seen, pytest.approx(so_far.mean(), rel=1e-12))
        assert moments.std == pytest.approx(so_far.std(ddof=1) if seen > 1 else 1.0, rel=1e-9)


def counted_and_scaled(scores: torch.Tensor, moments: RunningMoments, config: RewardConfig) -> torch.Tensor:
    """As an iteration does it."""
    moments.update(scores)
    return scale_scores(scores, moments.std, config)


@pytest.mark.parametrize("score", [0.1, -2.0, 0.0, 1e30])
def test_equal_scores_are_divided_by_1(score):
    moments = RunningMoments()
    for size in (1, 3, 7):
        scaled = counted_and_scaled(torch.full((size,), score), moments, reward_config())
        assert torch.equal(scaled, torch.full((size,), score))


def test_this_batch_counts_and_the_mean_stays():
    moments = RunningMoments()
    # std of (1, 3) is sqrt 2; with (5, 7) added, of (1, 3, 5, 7), sqrt(20 / 3)
    first = counted_and_scaled(torch.tensor([1.0, 3.0]), moments, reward_config())
    second = counted_and_scaled(torch.tensor([5.0, 7.0]), moments, reward_config())
    torch.testing.assert_close(first, torch.tensor([1.0, 3.0]) / 2**0.5)
    torch.testing.assert_close(second, torch.tensor([5.0, 7.0]) / (20 / 3) ** 0.5)


def test_clipping_comes_after_scaling():
    # std of (-30, 0, 30) is 30, so that nothing is left to clip at 1; clipped first they would be (-1, 0, 1) / 1.
    scores = torch.tensor([-30.0, 0.0, 30.0])
    assert counted_and_scaled(scores, RunningMoments(), reward_config(clip=1.0)).tolist() == [-1.0, 0.0, 1.0]
    moments = RunningMoments()
    half = counted_and_scaled(scores, moments, reward_config(clip=0.5))
    assert half.tolist() == [-0.5, 0.0, 0.5]
    assert moments.std == 30.0  # the raw scores were counted, not the clipped ones


def test_the_score_stands_on_the_last_valid_token_and_the_kl_on_every_one():
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    token_kl = torch.tensor([[1.0, 2.0, -4.0], [3.0, 9.0, 9.0], [0.5, 0.5, float("nan")]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, -1.0]), token_kl, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, -1.0, 12.0], [18.5, 0.0, 0.0], [-0.25, -1.25, 0.0]]
    without = token_rewards(torch.tensor([10.0, 20.0, -1.0]), token_kl, mask, kl_coef=0.0)
    assert without.tolist() == [[0.0, 0.0, 10.0], [20.0, 0.0, 0.0], [0.0, -1.0, 0.0]]


class LengthScore(RewardModel):
    """Scores an answer by its length in characters."""

    def __init__(self) -> None:
        pass

    def score(self, prompts, answers, columns):
        return torch.tensor([float(len(answer)) for answer in answers])


def test_a_response_that_never_ended_scores_what_the_config_says():
    rollouts = random_rollouts([2, 2, 2], [3, 3, 3])
    ended = torch.tensor([True, False, True])
    rollouts: Rollouts = dataclasses.replace(rollouts, responses=["a", "bb", "ccc"], ended=ended)
    assert score_responses(LengthScore(), rollouts, None).tolist() == [1.0, 2.0, 3.0]
    assert score_responses(LengthScore(), rollouts, -1.0).tolist() == [1.0, -1.0, 3.0]


def reward_model(**settings: Any) -> RewardModel:
    tokenizer = word_tokenizer(WORDS)
    architecture = ARCHITECTURES["gpt_neox"]()
    architecture.num_labels = 1
    torch.manual_seed(0)
    model = GPTNeoXForSequenceClassification(architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return RewardModel(model, tokenizer, max_prompt_tokens=4, max_new_tokens=4, **settings)


def test_the_learned_score_is_read_at_the_eos_whatever_stands_beside_it():
    model, eos = reward_model(), 1
    prompts, answers = ["one two", "three", "one two three four"], ["five", "six seven eight nine", "ten"]
    together = model.score(prompts, answers)
    with torch.no_grad():
        for i in range(3):
            assert model.score(prompts[i : i + 1], answers[i : i + 1]).item() == pytest.approx(
                together[i].item(), abs=1e-5
            )
            tokens = model.tokenizer(f"{prompts[i]} {answers[i]}")["input_ids"] + [eos]
            # transformers' own head: logits of the whole text without padding, at its last token
            assert model.model(torch.tensor([tokens])).logits.item() == pytest.approx(together[i].item(), abs=1e-5)
    assert len({round(score, 4) for score in together.tolist()}) == 3


def test_batches_and_normalisation_of_scores():
    prompts, answers = ["one two"] * 5, ["five", "six", "seven eight nine", "ten ten ten ten", "one"]
    raw = reward_model(batch_size=5).score(prompts, answers)
    np.testing.assert_allclose(reward_model(batch_size=2).score(prompts, answers), raw, atol=1e-5)
    scaled = reward_model(mean=2.0, std=4.0).score(prompts, answers)
    torch.testing.assert_close(scaled, (raw - 2) / 4)


def test_an_answer_as_long_as_the_limit_keeps_all_its_tokens_and_gets_an_eos():
    # max_new_tokens is 4: a fifth word cannot come from a rollout and is cut, the fourth stays.
    model = reward_model()
    four, five, three = ("one two three four", "one two three four five", "one two three")
    scores = model.score(["ten"] * 3, [four, five, three])
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-6)
    assert abs(scores[0].item() - scores[2].item()) > 1e-3


def test_a_prompt_is_cut_on_the_left():
    model = reward_model()  # max_prompt_tokens is 4
    scores = model.score(["nine one two three four", "one two three four", "nine one two three"], ["ten"] * 3)
    assert scores[0].item() == pytest.approx(scores[1].item(), abs=1e-6)
    assert abs(scores[0].item() - scores[2].item()) > 1e-3


def test_max_tokens_cuts_the_whole_text_on_the_left():
    whole, four = reward_model(), reward_model(max_tokens=4)
    scores = four.score(["nine one two", "nine", "nine"], ["three", "one two three", "seven one two three"])
    # two, three, EOS and what is left of the three texts before them
    expected = whole.score(["one", "one", "one"], ["two three"] * 3)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert abs(whole.score(["nine one two"], ["three"]) - expected[0]).item() > 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_one_line(bad):
    class Broken(LengthScore):
        def score(self, prompts, answers, columns):
            return torch.tensor([1.0, bad, 2.0])

    with pytest.raises(NotFinite, match=r"^the reward gave a score that is not finite; look at reward.path"):
        score_responses(Broken(), random_rollouts([2, 2, 2], [3, 3, 3]), -1.0)


# --- KL ------------------------------------------------------------------------------------------------------------


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
