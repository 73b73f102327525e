"""Curves averaged over seeds, as rows of numbers: what W&B cannot average itself, since it has no common KL axis."""

from __future__ import annotations

import numpy as np

from analysis.charts_data import samples_band
from analysis.summary import Comparison, SettingSummary

# Points of the KL axis, evenly spaced in sqrt(KL) up to the largest budget.
KL_POINTS = 50


def over_samples(comparison: Comparison) -> list[dict[str, float]]:
    """A row per number of responses at which anything was evaluated: mean, min and max over the seeds that got as far,
    each taken as linear between its own evaluations, as in the report.

    Keys: `samples`, and `over_samples/<setting>/<reward or kl>_<mean, min or max>`.
    """
    rows: dict[float, dict[str, float]] = {}
    for setting in comparison.settings:
        for quantity in ("reward", "kl"):
            band = samples_band(setting, quantity)
            if band is None:
                continue
            name = f"over_samples/{setting.name}/{quantity}"
            for point in zip(band.x, band.mean, band.low, band.high, strict=True):
                samples, mean, low, high = map(float, point)
                row = rows.setdefault(samples, {"samples": samples})
                row |= {f"{name}_mean": mean, f"{name}_min": low, f"{name}_max": high}
    return [rows[samples] for samples in sorted(rows)]


def over_kl(comparison: Comparison) -> list[dict[str, float]]:
    """A row per point of a common KL axis: the best reward gained within it, over the seeds.

    Keys: `kl` (nats), and `over_kl/<setting>/reward_gain_<mean, min or max>`.
    """
    budgets = [budget.kl_budget for setting in comparison.settings for budget in setting.budgets]
    rows = []
    for kl in np.linspace(0.0, np.sqrt(max(budgets, default=0.0)), KL_POINTS) ** 2:
        row = {"kl": float(kl)}
        for setting in comparison.settings:
            name, gains = f"over_kl/{setting.name}/reward_gain", gains_within(setting, float(kl))
            if gains:
                row |= {f"{name}_mean": float(np.mean(gains)), f"{name}_min": min(gains), f"{name}_max": max(gains)}
        if len(row) > 1:
            rows.append(row)
    return rows


def gains_within(setting: SettingSummary, kl: float) -> list[float]:
    """Best reward gained within a KL (nats) by each run of the setting, constant beyond the run's own largest KL, as in
    the report's frontier; none where no run spent as much."""
    if seeds_that_spent(setting, kl) == 0:
        return []
    return [float(run.curve.gain(kl)) for run in setting.runs]


def seeds_that_spent(setting: SettingSummary, kl: float) -> int:
    return sum(run.curve.reaches(kl) for run in setting.runs)
