"""What the paper claims of APA besides KL efficiency, measured alike for every setting: sample efficiency, stability,
sensitivity to settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.evaluations import Evaluations
from analysis.statistics import Interval, interval, spread_interval
from analysis.summary import Comparison, SettingSummary

# Of the median over algorithms of the best mean gain: one that most settings reach, and that a dead one cannot lower.
TARGET_SHARE = 0.8
# Statuses of runs that have not yet shown anything of their setting.
_OPEN = ("unfinished", "interrupted", "corrupt")
_SUBSETS = 2000


@dataclass(frozen=True)
class Claims:
    """One setting over its seeds, up to the horizon. All measures are None where a run lacks a `samples` column, by
    which it would be cut there."""

    setting: SettingSummary
    mean_gain: Interval | None
    """Sample efficiency: mean of eval/reward minus the initial one, over the responses generated up to the horizon."""
    samples_to_target: Interval | None
    """Responses generated until the gain is the target; None where a run never got there, or there is no target."""
    runs_at_target: int
    largest_fall: Interval | None
    """Stability: the most that eval/reward lay below its best so far."""
    kl_overshoot: Interval | None
    """Nats by which the largest eval/kl exceeds the headline KL budget; 0 for a run that never does."""
    spread: Interval | None
    """Standard deviation between seeds of eval/reward at the horizon; None for one seed."""


@dataclass(frozen=True)
class ClaimsTable:
    rows: tuple[Claims, ...]
    horizon: float
    """Responses that every compared run generated, so that a longer run is not favoured."""
    target: float | None
    """Gain in eval/reward; None where the median algorithm gained nothing."""


@dataclass(frozen=True)
class Sensitivity:
    """One algorithm over the settings tried: what to expect of `settings` of them drawn at random, as many for each
    algorithm. Settings without a result count as 0, the initial policy's KL efficiency."""

    algo: str
    settings: int
    """How many are drawn: as many as the algorithm with the fewest tried."""
    tried: int
    failed: int
    """Settings among those tried of which no run has a result: failed, pruned or without a usable evaluation."""
    best: float
    """Expected, over all subsets, of KL efficiencies at the headline budget, each a mean over seeds."""
    median: float
    worst: float


def claims_table(comparison: Comparison) -> ClaimsTable:
    """Empty where nothing was compared."""
    runs = [run for setting in comparison.settings for run in setting.runs]
    lengths = [float(np.nanmax(run.evaluations.samples)) for run in runs if _is_measurable(run.evaluations)]
    horizon = min(lengths, default=0.0)
    target = _target(comparison.settings, horizon)
    return ClaimsTable(tuple(_claims(one, horizon, target) for one in comparison.settings), horizon, target)


def _target(settings: Sequence[SettingSummary], horizon: float) -> float | None:
    best: dict[str, float] = {}
    for setting in settings:
        if all(_is_measurable(run.evaluations) for run in setting.runs):
            gain = float(np.mean([_up_to(run.evaluations, horizon).gain.max() for run in setting.runs]))
            best[setting.algo] = max(gain, best.get(setting.algo, gain))
    median = float(np.median(list(best.values()))) if best else 0.0
    return TARGET_SHARE * median if median > 0.0 else None


def _claims(setting: SettingSummary, horizon: float, target: float | None) -> Claims:
    points = [run.evaluations for run in setting.runs]
    if not all(map(_is_measurable, points)):
        return Claims(setting, None, None, 0, None, None, None)
    reached = [] if target is None else [samples_to(one, target, horizon) for one in points]
    known = [one for one in reached if one is not None]
    budget = setting.headline.kl_budget
    return Claims(
        setting=setting,
        mean_gain=interval([mean_gain(one, horizon) or 0.0 for one in points]),
        samples_to_target=_not_negative(known) if known and len(known) == len(points) else None,
        runs_at_target=len(known),
        largest_fall=_not_negative([largest_fall(one, horizon) for one in points]),
        kl_overshoot=_not_negative([kl_overshoot(one, budget, horizon) for one in points]),
        spread=spread_interval([float(_up_to(one, horizon).gain[-1] + one.reward[0]) for one in points]),
    )


def _not_negative(values: Sequence[float]) -> Interval:
    """The interval of values that cannot be below 0, cut off there."""
    found = interval(values)
    return found if found.low is None else replace(found, low=max(0.0, found.low))


@dataclass(frozen=True)
class _UpTo:
    """(N,) each, by rising number of responses."""

    samples: np.ndarray
    gain: np.ndarray
    kl: np.ndarray


def _is_measurable(points: Evaluations) -> bool:
    """Whether its evaluations have a place on the axis of responses."""
    samples = points.samples[np.isfinite(points.samples)]
    return len(samples) > 1 and bool((np.diff(samples) >= 0.0).all()) and float(samples[-1]) > 0.0


def _up_to(points: Evaluations, horizon: float) -> _UpTo:
    """Up to the horizon, where a point is put between two."""
    known = np.isfinite(points.samples)
    samples, gain, kl = (one[known] for one in (points.samples, points.reward - points.reward[0], points.kl))
    inside = samples <= horizon
    if inside.all():
        return _UpTo(samples, gain, kl)
    ends = [np.append(one[inside], np.interp(horizon, samples, one)) for one in (samples, gain, kl)]
    return _UpTo(*ends)


def mean_gain(points: Evaluations, horizon: float) -> float | None:
    """Mean over responses 0 .. `horizon` of the reward gained, linear between evaluations; None where it is not known
    how many responses were generated."""
    if horizon <= 0.0 or not _is_measurable(points):
        return None
    cut = _up_to(points, horizon)
    return float(np.sum(np.diff(cut.samples) * (cut.gain[1:] + cut.gain[:-1]) / 2.0) / horizon)


def samples_to(points: Evaluations, gain: float, horizon: float) -> float | None:
    """Responses until the reward has first gained `gain`, linear between evaluations; None if not by `horizon`."""
    cut = _up_to(points, horizon)
    samples, gains = cut.samples, cut.gain
    above = np.flatnonzero(gains >= gain)
    if not len(above):
        return None
    index = int(above[0])
    if index == 0:
        return float(samples[0])
    share = (gain - gains[index - 1]) / (gains[index] - gains[index - 1])
    return float(samples[index - 1] + share * (samples[index] - samples[index - 1]))


def largest_fall(points: Evaluations, horizon: float) -> float:
    """At least 0, in units of reward."""
    gain = _up_to(points, horizon).gain
    return float(np.max(np.maximum.accumulate(gain) - gain))


def kl_overshoot(points: Evaluations, budget: float, horizon: float) -> float:
    """At least 0, nats."""
    return max(0.0, float(_up_to(points, horizon).kl.max()) - budget)


def sensitivities(comparison: Comparison) -> list[Sensitivity]:
    """Of algorithms with at least two settings tried and one of them compared. Empty where there is none."""
    by_algo: dict[str, list[float]] = {}
    for setting in comparison.settings:
        by_algo.setdefault(setting.algo, []).append(setting.headline.kl_efficiency.mean)
    compared = {(setting.algo, setting.label) for setting in comparison.settings}
    closed = [
        run.record for run in comparison.excluded if run.record.status not in _OPEN and run.record.algo in by_algo
    ]
    lost = {(record.algo, record.label) for record in closed} - compared
    failed = {algo: sum(name == algo for name, _ in lost) for algo in by_algo}
    searched = {algo: values + [0.0] * failed[algo] for algo, values in by_algo.items()}
    searched = {algo: values for algo, values in searched.items() if len(values) > 1}
    count = min(map(len, searched.values()), default=0)
    return [
        Sensitivity(algo, count, len(values), failed[algo], *expected_order(values, count))
        for algo, values in searched.items()
    ]


def expected_order(values: Sequence[float], count: int) -> tuple[float, float, float]:
    """Expected largest, median and smallest of `count` of the values drawn without replacement. The median is over all
    subsets up to 2,000 of them, and over 2,000 random ones (always the same) beyond that."""
    rising = np.sort(np.asarray(values, dtype=np.float64))
    total = math.comb(len(rising), count)
    # The i-th smallest is the largest of as many subsets as draw the others from the i below it.
    weights = np.array([math.comb(below, count - 1) / total for below in range(len(rising))])
    if total <= _SUBSETS:
        drawn = np.array(list(itertools.combinations(rising, count)))
    else:
        drawn = rising[np.random.default_rng(0).random((_SUBSETS, len(rising))).argsort(axis=1)[:, :count]]
    return float(weights @ rising), float(np.median(drawn, axis=1).mean()), float(weights @ rising[::-1])
