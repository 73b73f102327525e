"""Scores shifted and scaled by those of reference answers, so that rewards of different makes are alike in size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from rlhf.data.examples import Demonstration, TextData
from rlhf.finite import NotFinite
from rlhf.random import endless_order

if TYPE_CHECKING:
    from rlhf.scorers import Scorer

NUM_REFERENCES = 256
"""Reference answers whose scores give the normalisation: their mean to 1/16 of a standard deviation."""


@dataclass(frozen=True)
class Normalised:
    """A scorer's scores less `mean`, divided by `std`."""

    scorer: Scorer
    mean: float
    std: float

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """(B,) float32 on the CPU."""
        return (self.scorer.score(prompts, answers) - self.mean) / self.std


def normalised(scorer: Scorer, data: TextData, how: str, seed: int) -> Normalised:
    """`scorer` so that reference answers average 0, and with how="mean_std" have unit standard deviation.

    The references depend on the data and `seed` alone: a run that goes on gets the same numbers again.
    """
    return Normalised(scorer, *mean_and_std(scorer, reference_answers(data, seed), how))


def mean_and_std(scorer: Scorer, references: Sequence[Demonstration], how: str) -> tuple[float, float]:
    """Of the references' scores: ("mean") their mean and 1, ("mean_std") mean and population standard deviation."""
    scores = scorer.score([e.prompt for e in references], [e.response for e in references]).double()
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    if not bool(scores.isfinite().all()):
        raise NotFinite(
            "the reward gives reference answers scores that are not finite; look at reward.path or .precision"
        )
    # One reference, or the same score for all: nothing to scale by.
    return mean, std or 1.0 if how == "mean_std" else 1.0


def parts_with_references(how: str) -> Sequence[str]:
    """The parts of the data that `reference_answers` reads, where scores are normalised."""
    return () if how == "none" else ("prompts", "sft")


def reference_answers(data: TextData, seed: int) -> list[Demonstration]:
    """At most 256 RL prompts with reference answers, drawn by `seed`; SFT texts where no prompt has one."""
    return _drawn(data.prompts, seed) or _drawn(data.sft, seed)


def _drawn(examples: Sequence[Demonstration], seed: int) -> list[Demonstration]:
    """One by one, since a large set lies on the disk; a list of all places would be larger than the tensor by far."""
    order = endless_order(seed, "references", 0, len(examples), len(examples))
    places = itertools.chain.from_iterable(part.tolist() for part in order.split(NUM_REFERENCES))
    answered = (example for i in places if (example := examples[i]).response)
    return list(itertools.islice(answered, NUM_REFERENCES))
