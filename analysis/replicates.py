"""Repetitions of a setting in words, and why they differ: seeds, SFT policies, reward models, prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compared import Contender, SettingSummary
from analysis.crossed import components, sampled_axes
from analysis.statistics import shares_draws

AXES = (("SFT policy", "SFT policies"), ("reward model", "reward models"), ("seed", "seeds"))
"""One and several of what `RunRecord.replicate` tells."""


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def drawn_text(settings: Sequence[Contender]) -> str:
    """With what the runs of each setting were drawn: `3 seeds`, `2 to 3 seeds`, `3 SFT policies x 2 seeds`."""
    parts = []
    for axis, (one, several) in enumerate(AXES):
        counts = sorted({len({run[axis] for run in setting.replicates}) for setting in settings})
        if axis + 1 == len(AXES) or counts != [1]:
            few = f"{counts[0]} to " if len(counts) > 1 else ""
            parts.append(f"{few}{counts[-1]} {one if counts == [1] else several}")
    return " \N{MULTIPLICATION SIGN} ".join(parts)


def interval_texts(settings: Sequence[Contender], prompts: bool = True) -> tuple[str, str]:
    """What intervals of these settings are over, and which axes have too few levels, for which alone they speak; ""
    where none has."""
    sampled = set.intersection(*(set(sampled_axes(setting.replicates)) for setting in settings))
    several = {axis for setting in settings for axis in sampled_axes(setting.replicates, least=2)}
    over = [AXES[axis][1] for axis in sorted(sampled)] + ["prompts"] * prompts
    few = [AXES[axis][1] for axis in sorted((several | {len(AXES) - 1}) - sampled)]
    alone = "these alone" if sampled else "these runs alone"
    return listed(over), f"so few {listed(few)} speak for {alone}" if few else ""


@dataclass(frozen=True)
class Spread:
    """Why single runs of a setting differ in KL efficiency at the headline's budget: variances, in squared units of
    reward. What chance made negative is 0. An interaction counts as part of its innermost axis: a reward model is
    trained from an SFT policy, a seed meets both."""

    setting: SettingSummary
    axes: tuple[float | None, ...]
    """In the order of `AXES`; None of those that were not replicated."""
    prompts: float | None
    """Of the mean over the prompts, evaluation's draws included; None where runs kept no numbers of prompts."""

    @property
    def parts(self) -> dict[str, float | None]:
        return {one: part for (one, _), part in zip(AXES, self.axes, strict=True)} | {"prompts": self.prompts}

    @property
    def deviation(self) -> float:
        return math.sqrt(sum(part or 0.0 for part in self.parts.values()))


def spread(setting: SettingSummary, crossed: bool) -> Spread | None:
    """None where neither SFT policies nor reward models are replicated, or a combination of their seeds and the runs'
    has no run."""
    runs = setting.replicates
    axes = sampled_axes(runs, least=2)
    if not shares_draws(runs) or len(set(runs)) < math.prod(len({run[axis] for run in runs}) for axis in axes):
        return None
    table = np.array([run.curve.efficiency(setting.headline.kl_budget) for run in setting.runs])
    parts = components(table if crossed else table.mean(axis=1, keepdims=True), runs, axes)
    variances = [(max(one.axes), max(one.variance * one.levels, 0.0)) for one in parts]
    found = [
        sum(variance for innermost, variance in variances if innermost == axis) if axis in axes else None
        for axis in range(len(AXES))
    ]
    return Spread(
        setting, tuple(found), float((table.var(axis=1, ddof=1) / table.shape[1]).mean()) if crossed else None
    )
