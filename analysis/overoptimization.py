"""Gold reward over d = sqrt(KL): what the policy gained of what was wanted, beside what the reward model said.

Gao, Schulman and Hilton (2022) fit the gold gain of RL by R(d) = d (alpha - beta log d): it rises, and falls beyond
d = exp(alpha / beta - 1). Both coefficients enter linearly, so the fit is least squares over all evaluations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.compared import ComparedRun, Contender
from analysis.crossed import Run
from analysis.statistics import Interval, run_interval, standard_error

_BINS = 8
_MOVED = 1e-6  # sqrt(KL) from which on a policy is not the initial one
# A fit through fewer points, or through ones that hardly differ in KL, says nothing.
MIN_POINTS = 4

_Points = tuple[np.ndarray, np.ndarray]
"""sqrt(KL) and gold gain of a run's evaluations."""

Trend = Literal["rises", "falls", "peaks", "peaks beyond reach", "undecided"]


@dataclass(frozen=True)
class GoldFit:
    """Gold gain over sqrt(KL) of a setting, or of an algorithm at all values of its knob, by one line through the
    evaluations of all seeds."""

    setting: Contender
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


@dataclass(frozen=True)
class Gains:
    """Means of gains at about one KL, with their standard errors; all are (bins,)."""

    kl: np.ndarray  # nats
    mean: np.ndarray
    error: np.ndarray  # over seeds and prompts; over seeds where runs kept no numbers of prompts; 0 of one such run


def binned_gains(one: Contender, end: float, gold: bool) -> Gains | None:
    """Reward or gold gained, of evaluations of at most `end` nats, in bins of equal width in sqrt(KL), those of the
    initial policy left out; None where there is none. A seed counts once in a bin."""
    found = [[_gains(run, gold) for run in seed.runs] for seed in one.runs]
    if len({parts.shape[1] for seed in found for _, parts in seed}) > 1:
        found = [[(d, parts.mean(axis=1, keepdims=True)) for d, parts in seed] for seed in found]
    seeds = [(np.concatenate([d for d, _ in seed]), np.concatenate([parts for _, parts in seed])) for seed in found]
    edges = np.linspace(0.0, math.sqrt(end), _BINS + 1)
    made = []
    for low, high in itertools.pairwise(edges):
        inside = [((d > low) & (d <= high), d, parts) for d, parts in seeds]
        rows = [
            (d[kept].mean(), parts[kept].mean(axis=0), run)
            for (kept, d, parts), run in zip(inside, one.replicates, strict=True)
            if kept.any()
        ]
        if rows:
            middles, parts, runs = zip(*rows, strict=True)
            table = np.array(parts)
            made.append((float(np.mean(middles)) ** 2, float(table.mean()), standard_error(table, runs)))
    return Gains(*np.array(made).T) if made else None


def _gains(run: ComparedRun, gold: bool) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(KL) (N,) and gains (N, P), or (N, 1) where the run kept none of each prompt."""
    made = run.evaluations
    parts = made.gains if made.by_prompt else made.gains.mean(axis=1, keepdims=True)
    if gold and made.gold_gains is not None:
        parts = made.gold_gains
    elif gold:
        parts = np.full((len(made.kl), 1), np.nan)
        if made.gold_reward is not None and made.initial_gold is not None:
            parts = (made.gold_reward - made.initial_gold)[:, None]
    d = np.sqrt(np.maximum(made.kl, 0.0))
    usable = (d > _MOVED) & np.isfinite(parts).all(axis=1)
    return d[usable], parts[usable]


def gold_fit(setting: Contender) -> GoldFit | None:
    """None without a gold reward, or with too few evaluations that left the initial policy."""
    points = [_together([_points(run) for run in seed.runs]) for seed in setting.runs]
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
    if found.gold_reward is None or found.initial_gold is None or not np.isfinite(found.initial_gold):
        return np.empty(0), np.empty(0)
    d, gain = np.sqrt(np.maximum(found.kl, 0.0)), found.gold_reward - found.initial_gold
    usable = (d > _MOVED) & np.isfinite(gain)
    return d[usable], gain[usable]


def _together(points: Sequence[_Points]) -> _Points:
    d, gain = (np.concatenate([np.empty(0), *(one[part] for one in points)]) for part in (0, 1))
    return d, gain


def _fitted(points: Sequence[_Points]) -> tuple[float, float] | None:
    """alpha and beta by least squares on d and -d log d, of all runs together."""
    d, gain = _together(points)
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
