"""What the paper claims of APA besides KL efficiency, measured alike for every setting: sample efficiency, stability,
sensitivity to settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.compared import Comparison, SettingSummary
from analysis.crossed import Run
from analysis.evaluations import Evaluations
from analysis.statistics import MIN_SEEDS_STUDENT, Interval, run_interval, spread_interval

# Of the largest gain, in the median algorithm's best setting: most settings reach it, and a dead one cannot lower it.
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
    algorithm. Settings without a result count as 0, the initial policy's KL efficiency.

    Best, median and worst are expected over all subsets: sums of the settings' KL efficiencies within the KL that every
    run reached, with a weight by rank. With that ranking given, each seed has such a sum of its own, and the interval
    is over the seeds that every setting has; with fewer than 3 of them there is none, and the sum is of means over all
    seeds.
    Where settings are as good as one another their ranking is chance: the best is then overstated and the worst
    understated, and those intervals cover 76 to 88 % instead of 95 (`python -m tests.benchmarks.coverage`).
    """

    algo: str
    settings: int
    """How many are drawn: as many as the algorithm with the fewest tried."""
    tried: int
    failed: int
    """Settings among those tried of which no run has a result: failed, pruned or without a usable evaluation."""
    best: Interval
    median: Interval
    worst: Interval


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
            gain = float(np.mean([largest_gain(run.evaluations, horizon) for run in setting.runs]))
            best[setting.algo] = max(gain, best.get(setting.algo, gain))
    median = float(np.median(list(best.values()))) if best else 0.0
    return TARGET_SHARE * median if median > 0.0 else None


def _claims(setting: SettingSummary, horizon: float, target: float | None) -> Claims:
    points = [run.evaluations for run in setting.runs]
    if not all(map(_is_measurable, points)):
        return Claims(setting, None, None, 0, None, None)
    reached = [] if target is None else [samples_to(one, target, horizon) for one in points]
    known = [one for one in reached if one is not None]
    return Claims(
        setting=setting,
        mean_gain=run_interval([mean_gain(one, horizon) for one in points], setting.replicates),
        samples_to_target=_bounded(known, setting, horizon) if known and len(known) == len(points) else None,
        runs_at_target=len(known),
        largest_fall=_bounded([largest_fall(one, horizon) for one in points], setting),
        spread=spread_interval([float(_up_to(one, horizon).gain[-1] + one.reward[0]) for one in points]),
    )


def _bounded(values: Sequence[float], setting: SettingSummary, largest: float = math.inf) -> Interval:
    """The interval of values from 0 to `largest`, cut off there."""
    found = run_interval(values, setting.replicates)
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(largest, found.high))


@dataclass(frozen=True)
class _UpTo:
    """(N,) each, by rising number of responses."""

    samples: np.ndarray
    gain: np.ndarray
    gain_even: np.ndarray  # over one half of the evaluation prompts
    gain_odd: np.ndarray


def _is_measurable(points: Evaluations) -> bool:
    """Whether its evaluations have a place on the axis of responses."""
    samples = points.samples[np.isfinite(points.samples)]
    return len(samples) > 1 and bool((np.diff(samples) >= 0.0).all()) and float(samples[-1]) > 0.0


def _up_to(points: Evaluations, horizon: float) -> _UpTo:
    """Up to the horizon, where a point is put between two."""
    known = np.isfinite(points.samples)
    gains = (one - one[0] for one in (points.reward, points.reward_even, points.reward_odd))
    samples, *others = (one[known] for one in (points.samples, *gains))
    inside = samples <= horizon
    if inside.all():
        return _UpTo(samples, *others)
    return _UpTo(*(np.append(one[inside], np.interp(horizon, samples, one)) for one in (samples, *others)))


def largest_gain(points: Evaluations, horizon: float) -> float:
    """Of an evaluation by `horizon`: chosen on one half of the evaluation prompts and scored on the other, both ways
    round, so that noise is not rewarded."""
    cut = _up_to(points, horizon)
    scored = cut.gain_odd[np.argmax(cut.gain_even)] + cut.gain_even[np.argmax(cut.gain_odd)]
    return float(scored) / 2.0


def mean_gain(points: Evaluations, horizon: float) -> float:
    """Mean over responses 0 .. `horizon`, above 0, of the reward gained, linear between evaluations."""
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


def sensitivities(comparison: Comparison) -> list[Sensitivity]:
    """Of algorithms with at least two settings tried and one of them compared. Empty where there is none."""
    by_algo: dict[str, list[dict[Run, float]]] = {}  # KL efficiency by seed, of each setting
    for setting in comparison.settings:
        budget = setting.headline.kl_budget
        own: dict[Run, float] = {run.record.replicate: run.efficiency(budget) for run in setting.runs}
        by_algo.setdefault(setting.algo, []).append(own)
    compared = {(setting.algo, setting.label) for setting in comparison.settings}
    closed = [
        run.record for run in comparison.excluded if run.record.status not in _OPEN and run.record.algo in by_algo
    ]
    lost = {(record.algo, record.label) for record in closed} - compared
    failed = {algo: sum(name == algo for name, _ in lost) for algo in by_algo}
    tried = {algo: len(values) + failed[algo] for algo, values in by_algo.items()}
    count = min((number for number in tried.values() if number > 1), default=0)
    return [
        Sensitivity(algo, count, tried[algo], failed[algo], *expected(values, failed[algo], count))
        for algo, values in by_algo.items()
        if tried[algo] > 1
    ]


def expected(values: Sequence[Mapping[Run, float]], failed: int, count: int) -> tuple[Interval, ...]:
    """Best, median and worst of `count` settings; `values` are by run, one mapping per setting with a result."""
    shared = set.intersection(*(set(one) for one in values))
    if len(shared) >= MIN_SEEDS_STUDENT:
        runs = sorted(shared, key=str)
        table = np.array([[one[run] for one in values] for run in runs])  # (runs, settings)
    else:
        runs = [(0,)]
        table = np.array([[float(np.mean(list(one.values()))) for one in values]])
    with_failed = np.concatenate([table, np.zeros((len(table), failed))], axis=1)
    ranked = with_failed[:, np.argsort(with_failed.mean(axis=0), kind="stable")]
    return tuple(run_interval(sums, runs) for sums in order_weights(ranked.shape[1], count) @ ranked.T)


def order_weights(tried: int, count: int) -> np.ndarray:
    """(3, tried): what each of `tried` rising values weighs in the expected largest, median and smallest of `count` of
    them drawn without replacement. The median is over all subsets up to 2,000 of them, and over 2,000 random ones
    (always the same) beyond that."""
    total = math.comb(tried, count)
    # The i-th smallest is the largest of as many subsets as draw the others from the i below it.
    largest = np.array([math.comb(below, count - 1) / total for below in range(tried)])
    if total <= _SUBSETS:
        drawn = np.array(list(itertools.combinations(range(tried), count)))
    else:
        drawn = np.random.default_rng(0).random((_SUBSETS, tried)).argsort(axis=1)[:, :count]
    middle = np.sort(drawn, axis=1)[:, [(count - 1) // 2, count // 2]]
    median = np.bincount(middle.ravel(), minlength=tried) / middle.size
    return np.stack([largest, median, largest[::-1]])
