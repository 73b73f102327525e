"""Scores: scaled by all that was seen so far, clipped after that, on the last valid token, read at the right place."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXForSequenceClassification

from rlhf.batches import Rollouts
from rlhf.config import RewardConfig
from rlhf.models.loading import word_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.optimization import NotFinite
from rlhf.random import generator
from rlhf.rewards import RunningMoments, scale_scores, score_responses, token_rewards
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

    def score(self, prompts, answers):
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
        def score(self, prompts, answers):
            return torch.tensor([1.0, bad, 2.0])

    with pytest.raises(NotFinite, match=r"^the reward gave a score that is not finite; look at reward.path"):
        score_responses(Broken(), random_rollouts([2, 2, 2], [3, 3, 3]), -1.0)
