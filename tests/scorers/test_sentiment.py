"""reward=sentiment: the library's compound score of the response alone."""

from __future__ import annotations

import sys

import pytest

from rlhf.models.loading import ModelError
from rlhf.scorers.sentiment import SentimentScorer


def test_scores_are_the_librarys_for_the_response_alone():
    answers = ["VADER is smart, handsome, and funny.", "Today SUX!", "the of and", ""]
    scores = SentimentScorer().score(["horrible", "wonderful", "great", "great"], answers)
    # the first two are printed in the library's own README
    assert scores.tolist() == pytest.approx([0.8316, -0.5461, 0.0, 0.0], abs=1e-6)
    assert str(scores.dtype) == "torch.float32"


def test_a_missing_library_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(ModelError) as error:
        SentimentScorer()
    assert str(error.value) == "reward=sentiment needs the package vaderSentiment: pip install -e '.[sentiment]'"
