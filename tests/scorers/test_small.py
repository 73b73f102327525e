"""reward=sentiment, and what is taken off scores."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.data.examples import Demonstration, TextData
from rlhf.models.hub import ModelError
from rlhf.scorers import reference_answers
from rlhf.scorers.sentiment import SentimentScorer
from rlhf.stages.online import Sampled
from tests.config.composed import config
from tests.helpers import random_rollouts


def test_scores_are_the_librarys_for_the_response_alone():
    answers = ["VADER is smart, handsome, and funny.", "Today SUX!", "the of and", ""]
    scores = SentimentScorer().score(["horrible", "wonderful", "great", "great"], answers)
    # the first two are printed in the library's own README
    assert scores.tolist() == pytest.approx([0.8316, -0.5461, 0.0, 0.0], abs=1e-6)


def test_a_missing_library_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(ModelError, match=r"^reward=sentiment needs the package vaderSentiment: pip install -e "):
        SentimentScorer()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["reward.baseline=reference", "reward.missing_eos_score=-2"], [1.0 - 10.0, -2.0, 3.0 - 30.0]),
        (["reward.baseline=reference", "reward.missing_eos_score=null"], [1.0 - 10.0, 2.0 - 20.0, 3.0 - 30.0]),
        (["reward.baseline=none", "reward.missing_eos_score=-2"], [1.0, -2.0, 3.0]),
    ],
)
def test_nothing_is_taken_off_the_score_of_a_response_that_never_ended(settings, expected):
    rollouts = dataclasses.replace(
        random_rollouts([1, 1, 1], [2, 2, 2]),
        ended=torch.tensor([True, False, True]),
        responses=["1", "2", "3"],
        references=["10", "20", "30"],
    )
    scorer = SimpleNamespace(score=lambda _, answers, columns: torch.tensor([float(answer) for answer in answers]))
    setup: Any = SimpleNamespace(scorer=scorer)
    assert Sampled(config(*settings), setup, None).scores(rollouts, 1).tolist() == expected


def test_scores_are_normalised_on_prompts_that_have_an_answer():
    prompts = [Demonstration(str(i), "an answer" if i % 2 else "") for i in range(300)]
    data = TextData(prompts, (), (), (), prompts, ())
    assert {example.prompt for example in reference_answers(data, 0)} == {str(i) for i in range(1, 300, 2)}
