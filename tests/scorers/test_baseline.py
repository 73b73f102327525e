"""reward.baseline beside reward.missing_eos_score, in the scores of stage=online."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.stages.online import Sampled
from tests.config.composed import config
from tests.helpers import random_rollouts

SCORES = {"one": 1.0, "two": 2.0, "three": 3.0, "reference one": 10.0, "reference two": 20.0, "reference three": 30.0}


class Lookup:
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        return torch.tensor([SCORES[answer] for answer in answers])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["reward.baseline=reference", "reward.missing_eos_score=-2"], [1.0 - 10.0, -2.0, 3.0 - 30.0]),
        (["reward.baseline=reference", "reward.missing_eos_score=null"], [1.0 - 10.0, 2.0 - 20.0, 3.0 - 30.0]),
        (["reward.baseline=none", "reward.missing_eos_score=-2"], [1.0, -2.0, 3.0]),
    ],
)
def test_nothing_is_taken_off_the_score_of_a_response_that_never_ended(settings, expected):
    answers = ["one", "two", "three"]
    rollouts = dataclasses.replace(
        random_rollouts([1, 1, 1], [2, 2, 2]),
        ended=torch.tensor([True, False, True]),
        responses=answers,
        references=[f"reference {answer}" for answer in answers],
    )
    setup: Any = SimpleNamespace(scorer=Lookup())
    assert Sampled(config(*settings), setup, None).scores(rollouts, 1).tolist() == expected
