"""Gold reward over d = sqrt(KL): what the policy gained of what was wanted, beside what the reward model said.

Gao, Schulman and Hilton (2022) fit the gold gain of RL by R(d) = d (alpha - beta log d): it rises, and falls beyond
d = exp(alpha / beta - 1). Both coefficients enter linearly, so the fit is least squares over all evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.crossed import Run
from analysis.statistics import Interval, run_interval
from analysis.summary import ComparedRun, SettingSummary

# A fit through fewer points, or through ones that hardly differ in KL, says nothing.
MIN_POINTS = 4

_Points = tuple[np.ndarray, np.ndarray]
"""sqrt(KL) and gold gain of a run's evaluations."""

Trend = Literal["rises", "falls", "peaks", "peaks beyond reach", "undecided"]


@dataclass(frozen=True)
class GoldFit:
    """One setting's gold gain over sqrt(KL), by one line through the evaluations of all its seeds."""

    setting: SettingSummary
    alpha: Interval
    """`mean` is that of the line, in units of gold reward per sqrt(nat). The interval is over seeds, by the jackknife:
    of what each does to the line when it is left out; it covers 93 to 96 % (`python -m tests.benchmarks.coverage`).
    Minimum and maximum are of each seed fitted by itself."""
    beta: Interval
    explained: float
    """Share of the gold gains' variance about their mean that the line explains; below 0 where that mean is closer."""
    peak_kl: float | None
    """Nats at which the line is highest; None unless `trend` is "peaks"."""
    trend: Trend
    """Of the line from the least KL it was fitted at to the largest; undecided where beta's interval holds 0, or there
    is none. A line that bends upwards (beta < 0) rises or falls by its two ends."""

    def gain(self, d: np.ndarray) -> np.ndarray:
        """Of the line, at each sqrt(KL) of `d`."""
        return _line(np.asarray(d, dtype=np.float64), self.alpha.mean, self.beta.mean)


def gold_fit(setting: SettingSummary) -> GoldFit | None:
    """None without a gold reward, or with too few evaluations that left the initial policy."""
    points = [_points(run) for run in setting.runs]
    line = fitted_line(points, setting.replicates)
    if line is None:
        return None
    alpha, beta = line
    d, gain = (np.concatenate([one[part] for one in points]) for part in (0, 1))
    left = float(((gain - _line(d, alpha.mean, beta.mean)) ** 2).sum())
    total = float(((gain - gain.mean()) ** 2).sum())
    bends = beta.low is not None and beta.high is not None and not beta.low <= 0.0 <= beta.high
    ends = float(d.min()), float(d.max())
    trend, peak = _trend(alpha.mean, beta.mean, *ends) if bends else ("undecided", None)
    return GoldFit(setting, alpha, beta, 1.0 - left / total if total > 0.0 else 0.0, peak, trend)


def fitted_line(points: list[_Points], runs: Sequence[Run] | None = None) -> tuple[Interval, Interval] | None:
    """alpha and beta of the line through all runs, as `GoldFit` has them; None where a run alone tells no line."""
    alone = [fit for one in points if (fit := _fitted([one]))]
    line = _fitted(points)
    if line is None or len(alone) < len(points):
        return None
    runs = [(seed,) for seed in range(len(points))] if runs is None else runs
    without = [_fitted(points[:place] + points[place + 1 :]) or line for place in range(len(points))]
    alpha, beta = (
        _jackknife(line[part], [fit[part] for fit in alone], [fit[part] for fit in without], runs) for part in (0, 1)
    )
    return alpha, beta


def _jackknife(whole: float, alone: list[float], without: list[float], runs: Sequence[Run]) -> Interval:
    """`whole` with the interval of its pseudo-values n whole - (n - 1) without_i, one per seed (Tukey 1958); least and
    largest are those of `alone`."""
    count = len(alone)
    found = run_interval([count * whole - (count - 1) * one for one in without], runs)
    low, high = (None if end is None else whole + end - found.mean for end in (found.low, found.high))
    return Interval(whole, low, high, min(alone), max(alone), count, found.method)


def _trend(alpha: float, beta: float, nearest: float, farthest: float) -> tuple[Trend, float | None]:
    """Of the line between these two sqrt(KL), and its peak in nats where that lies between them."""
    if beta <= 0.0:
        start, end = _line(np.array([nearest, farthest]), alpha, beta)
        return ("rises" if end > start else "falls"), None
    if alpha / beta >= 50.0:  # a peak beyond e^98 nats is none
        return "rises", None
    peak = math.exp(alpha / beta - 1.0)
    if peak > farthest:
        return "peaks beyond reach", None
    return ("falls", None) if peak < nearest else ("peaks", peak**2)


def _points(run: ComparedRun) -> _Points:
    """(points,) sqrt(KL) and gold gain of the evaluations with a gold reward and a KL above 0."""
    found = run.evaluations
    if found.gold_reward is None or not np.isfinite(found.gold_reward[0]):
        return np.empty(0), np.empty(0)
    d, gain = np.sqrt(np.maximum(found.kl, 0.0)), found.gold_reward - found.gold_reward[0]
    usable = (d > 1e-6) & np.isfinite(gain)
    return d[usable], gain[usable]


def _fitted(points: Sequence[_Points]) -> tuple[float, float] | None:
    """alpha and beta by least squares on d and -d log d, of all runs together."""
    d, gain = (np.concatenate([np.empty(0), *(one[part] for one in points)]) for part in (0, 1))
    if len(d) < MIN_POINTS:
        return None
    design = np.stack([d, -d * np.log(d)], axis=1)
    if np.linalg.matrix_rank(design) < 2:
        return None
    alpha, beta = np.linalg.lstsq(design, gain, rcond=None)[0]
    return (float(alpha), float(beta)) if np.isfinite([alpha, beta]).all() else None


def _line(d: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """0 at d = 0, its limit."""
    return d * (alpha - beta * np.log(np.where(d > 0.0, d, 1.0)))
