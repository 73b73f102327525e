"""Judges that give each response a number of its own: higher wins, equal ties. Neither order nor reference counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from analysis.winrate.errors import WinrateError
from analysis.winrate.judgements import Asked, Judgement
from analysis.winrate.matching import Comparison
from analysis.winrate.sources import Answer, Model

Score = Callable[[str, Answer], float]
"""(prompt, answer) -> score; NaN where there is none."""


def judge_by_score(comparisons: Sequence[Comparison], score: Score) -> list[Judgement]:
    """A comparison of which a score is not a number counts as unparsed."""
    judgements = []
    for comparison in comparisons:
        a, b = score(comparison.prompt, comparison.answer_a), score(comparison.prompt, comparison.answer_b)
        if math.isnan(a) or math.isnan(b):
            judgements.append(Judgement(comparison, Asked(None), Asked(None)))
        elif a == b:
            judgements.append(Judgement(comparison, Asked("TIE"), Asked("TIE")))
        else:
            judgements.append(Judgement(comparison, Asked("A" if a > b else "B"), Asked("B" if a > b else "A")))
    return judgements


def stored_scores(models: Sequence[Model], field: str) -> Score:
    """The numbers in `field` of the sources' rows.

    Raises:
        WinrateError: a source has no row with that field; the message names those that it has.
    """
    for source in (source for model in models for source in model.sources):
        if not any(field in answer.row for answer in source.answers.values()):
            row = next(iter(source.answers.values())).row
            numbers = [name for name, value in row.items() if isinstance(value, float)]
            has = f"it has {', '.join(numbers)}" if numbers else "it has no scores"
            raise WinrateError(f"--judge scores:{field}: {source.path} has no field {field!r}; {has}")

    def score(_: str, answer: Answer) -> float:
        value = answer.row.get(field)
        return float(value) if isinstance(value, int | float) else math.nan  # JSON's null stands for NaN

    return score
