"""What the paper claims of APA besides KL efficiency, measured alike for every setting: sample efficiency, stability,
sensitivity to settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evaluations import Evaluations
from analysis.statistics import Interval, interval, spread_interval
from analysis.summary import Comparison, SettingSummary

# Of the smallest best gain among the settings: a gain that each of them reaches, but for single seeds.
TARGET_SHARE = 0.8


@dataclass(frozen=True)
class Claims:
    """One setting over its seeds."""

    setting: SettingSummary
    mean_gain: Interval
    """Sample efficiency: mean of eval/reward minus the initial one, over the responses generated up to the horizon."""
    samples_to_target: Interval | None
    """Responses generated until the gain is the target; None where a run never got there, or there is no target."""
    runs_at_target: int
    largest_fall: Interval
    """Stability: the most that eval/reward lay below its best so far."""
    kl_overshoot: Interval
    """Nats by which the largest eval/kl exceeds the last one: how far the policy went and came back from."""
    spread: Interval | None
    """Standard deviation between seeds of the last eval/reward; None for one seed."""


@dataclass(frozen=True)
class ClaimsTable:
    rows: tuple[Claims, ...]
    horizon: float
    """Responses that every compared run generated, so that a longer run is not favoured."""
    target: float | None
    """Gain in eval/reward; None where some setting gained nothing."""


@dataclass(frozen=True)
class Sensitivity:
    """One algorithm over the settings tried, as many for each algorithm: how much hangs on finding the right one."""

    algo: str
    settings: int
    best: float
    """Of the settings' KL efficiencies at the headline budget, each a mean over seeds."""
    median: float
    worst: float
    spread: Interval | None
    """Standard deviation between settings."""


def claims_table(comparison: Comparison) -> ClaimsTable:
    """Empty where nothing was compared."""
    runs = [run for setting in comparison.settings for run in setting.runs]
    lengths = [float(np.nanmax(run.evaluations.samples)) for run in runs if np.isfinite(run.evaluations.samples).any()]
    horizon = min(lengths, default=0.0)
    target = _target(comparison.settings, horizon)
    return ClaimsTable(tuple(_claims(one, horizon, target) for one in comparison.settings), horizon, target)


def _target(settings: Sequence[SettingSummary], horizon: float) -> float | None:
    best = [float(np.mean([_gains(run.evaluations, horizon)[1].max() for run in setting.runs])) for setting in settings]
    smallest = min(best, default=0.0)
    return TARGET_SHARE * smallest if smallest > 0.0 else None


def _claims(setting: SettingSummary, horizon: float, target: float | None) -> Claims:
    points = [run.evaluations for run in setting.runs]
    reached = [] if target is None else [samples_to(one, target, horizon) for one in points]
    known = [one for one in reached if one is not None]
    return Claims(
        setting=setting,
        mean_gain=interval([mean_gain(one, horizon) for one in points]),
        samples_to_target=interval(known) if known and len(known) == len(points) else None,
        runs_at_target=len(known),
        largest_fall=interval([largest_fall(one) for one in points]),
        kl_overshoot=interval([float(one.kl.max() - one.kl[-1]) for one in points]),
        spread=spread_interval([float(one.reward[-1]) for one in points]),
    )


def mean_gain(points: Evaluations, horizon: float) -> float:
    """Mean over responses 0 .. `horizon` of the reward gained, linear between evaluations."""
    samples, gains = _gains(points, horizon)
    if horizon <= 0.0 or len(samples) < 2:
        return 0.0
    return float(np.sum(np.diff(samples) * (gains[1:] + gains[:-1]) / 2.0) / horizon)


def samples_to(points: Evaluations, gain: float, horizon: float) -> float | None:
    """Responses until the reward has first gained `gain`, linear between evaluations; None if not by `horizon`."""
    samples, gains = _gains(points, horizon)
    above = np.flatnonzero(gains >= gain)
    if not len(above):
        return None
    index = int(above[0])
    if index == 0:
        return float(samples[0])
    share = (gain - gains[index - 1]) / (gains[index] - gains[index - 1])
    return float(samples[index - 1] + share * (samples[index] - samples[index - 1]))


def largest_fall(points: Evaluations) -> float:
    """At least 0, in units of reward."""
    return float(np.max(np.maximum.accumulate(points.reward) - points.reward))


def _gains(points: Evaluations, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Responses generated and the reward gained by then, up to the horizon, where a point is put between two."""
    known = np.isfinite(points.samples)
    samples, gains = points.samples[known], (points.reward - points.reward[0])[known]
    if not len(samples):
        return np.zeros(1), np.zeros(1)
    inside = samples <= horizon
    if not inside.all():
        at_end = float(np.interp(horizon, samples, gains))
        samples, gains = np.append(samples[inside], horizon), np.append(gains[inside], at_end)
    return samples, gains


def sensitivities(comparison: Comparison) -> list[Sensitivity]:
    """Of algorithms with at least two settings, each over as many: the first ones of each, in the order of their
    labels, whatever came out. Empty where fewer than two settings of an algorithm were tried."""
    by_algo: dict[str, list[float]] = {}
    for setting in comparison.settings:
        by_algo.setdefault(setting.algo, []).append(setting.headline.kl_efficiency.mean)
    searched = {algo: values for algo, values in by_algo.items() if len(values) > 1}
    count = min((len(values) for values in searched.values()), default=0)
    found = []
    for algo, values in searched.items():
        taken = values[:count]
        best, median, worst = max(taken), float(np.median(taken)), min(taken)
        found.append(Sensitivity(algo, count, best, median, worst, spread_interval(taken)))
    return found
