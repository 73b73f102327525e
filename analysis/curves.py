"""Curves averaged over seeds, as rows of numbers: what W&B cannot average itself, since it has no common KL axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.summary import ComparedRun, Comparison, SettingSummary

# Points of the KL axis, evenly spaced in sqrt(KL) up to the largest budget.
KL_POINTS = 50


def over_samples(comparison: Comparison) -> list[dict[str, float]]:
    """A row per number of responses at which anything was evaluated: mean, min and max over the seeds evaluated there.

    Keys: `samples`, and `over_samples/<setting>/<reward or kl>_<mean, min or max>`.
    """
    rows: dict[float, dict[str, float]] = {}
    for setting in comparison.settings:
        for quantity in ("reward", "kl"):
            values: dict[float, list[float]] = {}
            for run in setting.runs:
                measured = getattr(run.evaluations, quantity)
                for samples, value in zip(run.evaluations.samples, measured, strict=True):
                    if np.isfinite(samples) and np.isfinite(value):
                        values.setdefault(float(samples), []).append(float(value))
            for samples, found in values.items():
                row = rows.setdefault(samples, {"samples": samples})
                row |= _spread(f"over_samples/{setting.name}/{quantity}", found)
    return [rows[samples] for samples in sorted(rows)]


def over_kl(comparison: Comparison) -> list[dict[str, float]]:
    """A row per point of a common KL axis: the best reward gained within it, over the seeds that spent as much.

    Keys: `kl` (nats), and `over_kl/<setting>/reward_gain_<mean, min or max>`.
    """
    budgets = [budget.kl_budget for setting in comparison.settings for budget in setting.budgets]
    rows = []
    for kl in np.linspace(0.0, np.sqrt(max(budgets, default=0.0)), KL_POINTS) ** 2:
        row = {"kl": float(kl)}
        for setting in comparison.settings:
            gains = [float(run.curve.gain(kl)) for run in _that_spent(setting, float(kl))]
            row |= _spread(f"over_kl/{setting.name}/reward_gain", gains) if gains else {}
        if len(row) > 1:
            rows.append(row)
    return rows


def _that_spent(setting: SettingSummary, kl: float) -> Sequence[ComparedRun]:
    return [run for run in setting.runs if run.curve.reaches(kl)]


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_mean": float(np.mean(values)), f"{name}_min": min(values), f"{name}_max": max(values)}
