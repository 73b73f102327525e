"""The numbers behind the charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compared import ComparedRun, Contender
from analysis.statistics import standard_error

# Points put between two evaluations to find a step; it is shown as a whole number.
_BETWEEN = 16
# Ticks on an axis of KL, at most.
_TICKS = 9


@dataclass(frozen=True)
class Band:
    """A mean over seeds with their minimum and maximum; all are (points,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def frontier_end(settings: Sequence[Contender]) -> float:
    """KL at the right edge, nats: what the runs reached, at most twice the largest budget, so that one run that flew
    off does not squeeze the rest; never left of the KL that every run reached."""
    largest = max(run.curve.largest_kl for setting in settings for run in setting.runs)
    budgets = [budget.kl_budget for setting in settings for budget in setting.budgets]
    common = max(setting.headline.kl_budget for setting in settings)
    return 1.06 * max(common, min(largest, 2.0 * max(budgets)))


def square_root_ticks(end: float) -> list[float]:
    """Round values from 0 to `end`, nats, that keep a distance on an axis on which sqrt(KL) is evenly spaced."""
    first = math.floor(math.log10(end)) - 3
    round_values = [0.0, *(float(f"{digit}e{power}") for power in range(first, first + 5) for digit in (1, 2, 3, 4, 5))]
    ticks: list[float] = []
    for kl in round_values:
        if kl <= end and (not ticks or math.sqrt(kl) - math.sqrt(ticks[-1]) >= math.sqrt(end) / _TICKS):
            ticks.append(kl)
    return ticks


def frontier_band(setting: Contender, end: float, points: int) -> Band:
    """Best reward within each KL, at values of KL (nats) whose square roots are evenly spaced, up to `end` or the KL
    that all runs of the setting reached."""
    reached = min(run.curve.largest_kl for run in setting.runs)
    kl = np.linspace(0.0, np.sqrt(min(end, reached)), points) ** 2
    kl[-1] = min(kl[-1], reached)
    rewards = np.array([run.initial_reward + run.curve.gains(kl) for run in setting.runs])  # (seeds, points)
    return Band(kl, rewards.mean(axis=0), rewards.min(axis=0), rewards.max(axis=0))


def frontier_errors(setting: Contender, kl: np.ndarray, crossed: bool) -> np.ndarray:
    """(points,) standard error of the mean gain at each KL, which all runs reach: over runs and prompts, or over runs
    alone; 0 of a single run without numbers of prompts."""
    if crossed:
        tables = np.array([[run.curve.gain(float(one)) for run in setting.runs] for one in kl])
    else:
        tables = np.array([run.curve.gains(kl) for run in setting.runs]).T[..., None]
    return np.array([standard_error(table, setting.replicates) for table in tables])


def frontier_steps(run: ComparedRun, kl: np.ndarray) -> np.ndarray:
    """The optimizer step at which the best reward within each KL was first reached, by the reward of all prompts.

    Between two evaluations u = sqrt(KL), reward and step are taken as linear, as KL efficiency takes them.
    """
    made = run.evaluations
    place = np.linspace(0.0, len(made.kl) - 1.0, (len(made.kl) - 1) * _BETWEEN + 1)
    u, rewards, steps = (
        np.interp(place, np.arange(len(made.kl)), values)
        for values in (np.sqrt(np.maximum(made.kl, 0.0)), made.reward, made.step)
    )
    order = np.lexsort((place, u))
    best = np.maximum.accumulate(rewards[order])
    # The last point within reach, and the first that had the best reward by then.
    last = np.maximum(np.searchsorted(u[order], np.sqrt(kl), side="right") - 1, 0)
    return steps[order][np.searchsorted(best, best[last], side="left")]


def free_labels(markers: Sequence[tuple[float, float]], plot_width: float, size: tuple[float, float]) -> list[int]:
    """Places of the markers that can carry a label above them which touches no other label, marker or edge: as many as
    fit, the first ones first.

    Args:
        markers: (across, up) in pixels.
        size: width and height of a label.
    """
    width, height = size
    taken: list[tuple[float, float]] = []
    kept = []
    for place, (across, up) in enumerate(markers):
        middle = (across, up + height)
        free = all(abs(middle[0] - a) > width or abs(middle[1] - b) > height for a, b in taken)
        clear = all(abs(middle[0] - a) > width / 2 or abs(middle[1] - b) > 0.55 * height for a, b in markers)
        if free and clear and width / 2 < across < plot_width - width / 2:
            taken.append(middle)
            kept.append(place)
    return kept


def evaluations_band(runs: Sequence[ComparedRun], quantity: str, over: str, points: int | None = None) -> Band | None:
    """A quantity of the evaluations over `samples` or `step`; None where no run has it.

    The points are those of all runs together, thinned to about `points`, both ends kept. Between its own evaluations a
    run is taken as linear, beyond its last one it is not counted.
    """
    return mean_band([_known(run, quantity, over) for run in runs], points)


def mean_band(curves: Sequence[tuple[np.ndarray, np.ndarray]], points: int | None = None) -> Band | None:
    """The same of curves (x, y) with rising x; those without a point count for nothing."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    grid = thinned(np.unique(np.concatenate([x for x, _ in curves])), points)
    values = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in curves])  # (runs, points)
    return Band(grid, np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0))


def _known(run: ComparedRun, quantity: str, over: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = getattr(run.evaluations, over), getattr(run.evaluations, quantity)
    if y is None:
        return np.empty(0), np.empty(0)
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def thinned(values: np.ndarray, points: int | None) -> np.ndarray:
    """At most about `points` of them, evenly taken, first and last among them."""
    if points is None or len(values) <= points:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, points).round().astype(int))]
