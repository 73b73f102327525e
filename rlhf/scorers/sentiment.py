"""reward=sentiment: how positive a response is, by VADER's lexicon and rules (Hutto & Gilbert 2014), in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.config.packages import VADER
from rlhf.data.examples import NO_COLUMNS, Columns
from rlhf.models.loading import ModelError


class SentimentScorer:
    """The compound score of the response alone; 0 where no word of it is in the lexicon."""

    def __init__(self) -> None:
        if problem := VADER.missing_for("sentiment"):
            raise ModelError(problem)
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self.analyzer = SentimentIntensityAnalyzer()

    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        """(B,) float32 on the CPU."""
        return torch.tensor([self.analyzer.polarity_scores(answer)["compound"] for answer in answers])
