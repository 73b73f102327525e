"""Gold reward over d = sqrt(KL): what the policy gained of what was wanted, beside what the reward model said.

Gao, Schulman and Hilton (2022) fit the gold gain of RL by R(d) = d (alpha - beta log d): it rises, and falls beyond
d = exp(alpha / beta - 1). Both coefficients enter linearly, so the fit is least squares over all evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.statistics import Interval, interval
from analysis.summary import ComparedRun, SettingSummary

# A fit through fewer points, or through ones that hardly differ in KL, says nothing.
MIN_POINTS = 4

Trend = Literal["rises", "falls", "peaks", "peaks beyond reach"]


@dataclass(frozen=True)
class GoldFit:
    """One setting's gold gain over sqrt(KL)."""

    setting: SettingSummary
    alpha: Interval
    """Over seeds, each fitted by itself; units of gold reward per sqrt(nat)."""
    beta: Interval
    pooled: tuple[float, float]
    """alpha and beta of all seeds' evaluations together: the line that is drawn."""
    explained: float
    """Share of the pooled gold gains' variance about 0 that the line explains."""
    peak_kl: float | None
    """Nats at which the pooled line is highest; None unless `trend` is "peaks"."""
    trend: Trend
    """Of the pooled line from the least KL it was fitted at to the largest. A line that bends upwards (beta <= 0) rises
    or falls by its two ends."""

    def gain(self, d: np.ndarray) -> np.ndarray:
        """Of the pooled line, at each sqrt(KL) of `d`."""
        return _line(np.asarray(d, dtype=np.float64), *self.pooled)


def gold_fit(setting: SettingSummary) -> GoldFit | None:
    """None without a gold reward, or with too few evaluations that left the initial policy."""
    points = [_points(run) for run in setting.runs]
    alone = [_fitted(d, gain) for d, gain in points]
    each = [fit for fit in alone if fit is not None]
    d, gain = (np.concatenate([one[part] for one in points]) for part in (0, 1))
    pooled = _fitted(d, gain)
    if pooled is None or len(each) < len(alone):
        return None
    alpha, beta = pooled
    left = float(((gain - _line(d, alpha, beta)) ** 2).sum())
    total = float((gain**2).sum())
    trend, peak = _trend(alpha, beta, float(d.min()), float(d.max()))
    return GoldFit(
        setting=setting,
        alpha=interval([fit[0] for fit in each]),
        beta=interval([fit[1] for fit in each]),
        pooled=pooled,
        explained=1.0 - left / total if total > 0.0 else 0.0,
        peak_kl=peak,
        trend=trend,
    )


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


def _points(run: ComparedRun) -> tuple[np.ndarray, np.ndarray]:
    """(points,) sqrt(KL) and gold gain of the evaluations with a gold reward and a KL above 0."""
    found = run.evaluations
    if found.gold_reward is None or not np.isfinite(found.gold_reward[0]):
        return np.empty(0), np.empty(0)
    d, gain = np.sqrt(np.maximum(found.kl, 0.0)), found.gold_reward - found.gold_reward[0]
    usable = (d > 1e-6) & np.isfinite(gain)
    return d[usable], gain[usable]


def _fitted(d: np.ndarray, gain: np.ndarray) -> tuple[float, float] | None:
    """alpha and beta by least squares on d and -d log d."""
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
