"""The numbers behind the charts, the same on paper and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.summary import ComparedRun, SettingSummary

# Room to the right of the last tick of a KL axis.
_MARGIN = 1.04
# Points put between two evaluations to find a step; it is shown as a whole number.
_BETWEEN = 16


@dataclass(frozen=True)
class Band:
    """A mean over seeds with their minimum and maximum; all are (points,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def frontier_end(settings: Sequence[SettingSummary]) -> float:
    """sqrt(KL) at the right edge: what the runs spent, at most twice the largest budget, so that one run that flew off
    does not squeeze the rest; never left of the headline budget."""
    largest = max(run.curve.largest_kl for setting in settings for run in setting.runs)
    budgets = [budget.kl_budget for setting in settings for budget in setting.budgets]
    headline = max(setting.headline.kl_budget for setting in settings)
    return float(np.sqrt(max(headline, min(largest, 2.0 * max(budgets))))) * _MARGIN


def square_root_ticks(end: float) -> list[float]:
    """About six KL values of one or two digits, about evenly spaced in u = sqrt(KL) from 0 to `end`; in nats."""
    wanted = (np.linspace(0.0, end / _MARGIN, 7)[1:]) ** 2
    ticks = {0.0} | {float(f"{kl:.1g}") if kl < 10 else float(f"{kl:.2g}") for kl in wanted}
    return sorted(kl for kl in ticks if np.sqrt(kl) <= end)


def frontier_band(setting: SettingSummary, end: float, points: int) -> Band:
    """Best reward within each KL over u = sqrt(KL), evenly spaced up to `end` or the KL of the setting's longest run.

    Each run's frontier starts at its initial reward and is constant beyond its own largest KL.
    """
    u = np.linspace(0.0, min(end, float(np.sqrt(max(run.curve.largest_kl for run in setting.runs)))), points)
    rewards = np.array([run.evaluations.reward[0] + run.curve.gain(u**2) for run in setting.runs])  # (seeds, points)
    return Band(u, rewards.mean(axis=0), rewards.min(axis=0), rewards.max(axis=0))


def frontier_steps(run: ComparedRun, kl: np.ndarray) -> np.ndarray:
    """The optimizer step at which the best reward within each KL was first reached.

    Between two evaluations u = sqrt(KL), reward and step are taken as linear, as KL efficiency takes them.
    """
    found = run.evaluations
    place = np.linspace(0.0, len(found.kl) - 1.0, (len(found.kl) - 1) * _BETWEEN + 1)
    u, rewards, steps = (
        np.interp(place, np.arange(len(found.kl)), values)
        for values in (np.sqrt(np.maximum(found.kl, 0.0)), found.reward, found.step)
    )
    order = np.lexsort((place, u))
    best = np.maximum.accumulate(rewards[order])
    # The last point within reach, and the first that had the best reward by then.
    last = np.maximum(np.searchsorted(u[order], np.sqrt(kl), side="right") - 1, 0)
    return steps[order][np.searchsorted(best, best[last], side="left")]


def samples_band(setting: SettingSummary, quantity: str, points: int | None = None) -> Band | None:
    """Over responses generated, of the runs that got as far; between its own evaluations a run is taken as linear.
    None where no run has the quantity; thinned to about `points`, both ends kept."""
    runs = [(run.evaluations.samples, getattr(run.evaluations, quantity)) for run in setting.runs]
    runs = [(samples, values) for samples, values in runs if values is not None]
    if not runs:
        return None
    grid = np.unique(np.concatenate([samples for samples, _ in runs]))
    grid = thinned(grid[np.isfinite(grid)], points)
    curves = np.full((len(runs), len(grid)), np.nan)
    for row, (samples, values) in zip(curves, runs, strict=True):
        known = np.isfinite(samples) & np.isfinite(values)
        if known.any():
            row[:] = np.interp(grid, samples[known], values[known], left=np.nan, right=np.nan)
    reached = np.isfinite(curves).any(axis=0)
    if not reached.any():
        return None
    grid, curves = grid[reached], curves[:, reached]
    return Band(grid, np.nanmean(curves, axis=0), np.nanmin(curves, axis=0), np.nanmax(curves, axis=0))


def thinned(values: np.ndarray, points: int | None) -> np.ndarray:
    """At most about `points` of them, evenly taken, first and last among them."""
    if points is None or len(values) <= points:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, points).round().astype(int))]
