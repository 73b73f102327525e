"""Intervals over runs: each value is one run's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, ndtr, ndtri, stdtr, stdtrit  # scipy.stats takes a second to import

from analysis.crossed import Run, crossed_mean, sampled_axes

# A percentile bootstrap of 3 seeds covers 76 % instead of 95 %, of 5 seeds 82 %: Student t below 10 seeds.
MIN_SEEDS_STUDENT = 3
MIN_SEEDS_BOOTSTRAP = 10
# From here on a quarter of the seeds at each end can be left out and four remain.
MIN_SEEDS_IQM = 8
LEVEL = 0.95
_RESAMPLES = 9999

Statistic = Callable[[np.ndarray], np.ndarray]
"""Of the last axis: (..., seeds) -> (...)."""


@dataclass(frozen=True)
class Interval:
    """One number over seeds with its confidence interval; `low` and `high` are None below 3 seeds, and where all values
    are equal: an interval of no width would claim certainty."""

    mean: float
    low: float | None
    high: float | None
    minimum: float
    maximum: float
    seeds: int
    method: str
    """"none", "student_t", "chi_square", "bca"; "crossed" over prompts and runs, "prompts" over them alone,
    "replicates" over runs that share SFT policies or reward models."""


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The interval of the mean at confidence `level`: none below 3 values, Student t to 9, BCa bootstrap from 10; none
    of values that are all equal.

    Raises:
        ValueError: there is no value, or one that is not finite. Callers leave such runs out.
    """
    sample = _checked(values)
    if len(sample) < MIN_SEEDS_STUDENT or np.ptp(sample) == 0.0:
        return _made(sample, sample.mean(), None, "none")
    if len(sample) < MIN_SEEDS_BOOTSTRAP:
        half_width = stdtrit(len(sample) - 1, (1.0 + level) / 2.0) * sample.std(ddof=1) / np.sqrt(len(sample))
        return _made(sample, sample.mean(), (sample.mean() - half_width, sample.mean() + half_width), "student_t")
    return _bootstrapped(sample, _mean, level)


def run_interval(values: np.ndarray | Sequence[float], runs: Sequence[Run]) -> Interval:
    """The interval of the mean of runs: crossed with prompts where their parts are known, and over the outermost axes
    where several runs share what was drawn there; `interval` of runs that are independent.

    Args:
        values: (S,) one number a run, or (S, P) each prompt's part of it.
        runs: (S,) what was drawn for each, the outermost first.
    """
    table = np.asarray(values, dtype=np.float64).reshape(len(runs), -1)
    of_runs = table.mean(axis=1)
    if table.shape[1] == 1 and not shares_draws(runs):
        return interval(of_runs.tolist())
    found = crossed_mean(table, runs)
    ends = (found.low, found.high) if found.standard_error > 0.0 else None
    over = "replicates" if table.shape[1] == 1 else "prompts" if found.of_these_runs else "crossed"
    return _made(of_runs, found.value, ends, over if ends or table.shape[1] > 1 else "none")


def standard_error(table: np.ndarray, runs: Sequence[Run]) -> float:
    """Of the mean of (S, P), or of (S, 1) where runs kept no numbers of prompts; 0 of one such run."""
    if table.shape[1] > 1 or shares_draws(runs):
        return crossed_mean(table, runs).standard_error
    return float(table.std(ddof=1)) / len(table) ** 0.5 if len(table) > 1 else 0.0


def shares_draws(runs: Sequence[Run]) -> bool:
    """Whether more than the innermost axis is replicated, so that runs are not independent of one another."""
    return any(axis + 1 < len(runs[0]) for axis in sampled_axes(runs, least=2))


def iqm_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """The same of the interquartile mean (Agarwal et al. 2021), which one seed that flew off cannot move; None below 8
    values. The interval is BCa's from 10 values on."""
    sample = _checked(values)
    if len(sample) < MIN_SEEDS_IQM:
        return None
    if len(sample) < MIN_SEEDS_BOOTSTRAP:
        return _made(sample, float(_iqm(sample)), None, "none")
    return _bootstrapped(sample, _iqm, level)


def spread_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """The standard deviation between seeds (`mean` holds it), by s^2 (n - 1) / chi^2 from 3 values on (a bootstrap of
    10 normal values covers 87 % instead of 95 %); None for a single value."""
    sample = _checked(values)
    count = len(sample)
    if count < 2:
        return None
    deviation = float(sample.std(ddof=1))
    if count < MIN_SEEDS_STUDENT or np.ptp(sample) == 0.0:
        return _made(sample, deviation, None, "none")
    ends = (chdtri(count - 1, tail) for tail in ((1.0 - level) / 2.0, (1.0 + level) / 2.0))
    low, high = (deviation * float(np.sqrt((count - 1) / end)) for end in ends)
    return _made(sample, deviation, (low, high), "chi_square")


def _checked(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"an interval needs at least one value in a row, not the shape {sample.shape}")
    if not np.isfinite(sample).all():
        place = int(np.flatnonzero(~np.isfinite(sample))[0])
        raise ValueError(f"no interval of values that are not finite: {sample[place]} at place {place}")
    return sample


def _bootstrapped(sample: np.ndarray, statistic: Statistic, level: float) -> Interval:
    bounds = _bca(sample, statistic, level)
    return _made(sample, float(statistic(sample)), bounds, "none" if bounds is None else "bca")


def _made(sample: np.ndarray, value: float, bounds: tuple[float, float] | None, method: str) -> Interval:
    low, high = (None, None) if bounds is None else (float(bounds[0]), float(bounds[1]))
    return Interval(float(value), low, high, float(sample.min()), float(sample.max()), len(sample), method)


def _mean(sample: np.ndarray) -> np.ndarray:
    return sample.mean(axis=-1)


def _iqm(sample: np.ndarray) -> np.ndarray:
    """Mean of what is left when a quarter of the values, rounded down, is cut off at each end."""
    cut = sample.shape[-1] // 4
    return np.sort(sample, axis=-1)[..., cut : sample.shape[-1] - cut].mean(axis=-1)


def _bca(sample: np.ndarray, statistic: Statistic, level: float) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap (Efron 1987), its tails widened for small samples (Hesterberg 2015).

    Plain BCa of 10 normal values covers 90 to 92 % instead of 95 %: resamples vary by (n - 1) / n too little, and the
    normal quantile stands for Student's. With the tail Phi(-sqrt(n / (n - 1)) t_{n-1}) it covers what it says.

    None where the resampled statistic does not differ between the two ends, such as the interquartile mean of seeds
    most or all of which have one value: an interval of no width would claim certainty.
    """
    count = len(sample)
    whole = float(statistic(sample))
    left_out = statistic(np.stack([np.delete(sample, index) for index in range(count)]))
    deviations = left_out.mean() - left_out
    scale = float((deviations**2).sum())
    acceleration = float((deviations**3).sum()) / (6.0 * scale**1.5) if scale > 0.0 else 0.0
    resampled = np.sort(statistic(sample[_draws(count)]))
    below = np.searchsorted(resampled, whole, side="left") + np.searchsorted(resampled, whole, side="right")
    share = min(max(below / (2.0 * _RESAMPLES), 1.0 / _RESAMPLES), 1.0 - 1.0 / _RESAMPLES)
    bias = float(ndtri(share))
    reach = float(np.sqrt(count / (count - 1)) * stdtrit(count - 1, (1.0 + level) / 2.0))
    shifted = bias + np.array([-reach, reach])
    levels = ndtr(bias + shifted / (1.0 - acceleration * shifted))
    low, high = np.quantile(resampled, levels)
    return (float(low), float(high)) if low < high else None


@functools.lru_cache(maxsize=8)
def _draws(count: int) -> np.ndarray:
    """(resamples, count) which values each resample has; the same ones every time, so that a report can be remade."""
    return np.random.default_rng(0).integers(0, count, size=(_RESAMPLES, count))


@dataclass(frozen=True)
class Versus:
    """Values of A against values of B, one per seed each, the larger the better."""

    difference: float  # mean of A minus mean of B
    low: float | None  # None below 3 seeds of either, and where neither varies
    high: float | None
    probability: float  # that a run of A beats a run of B, ties one half
    better: float | None  # one-sided confidence that the mean of A is above that of B
    seeds: tuple[int, int]
    level: float

    @functools.cached_property
    def probability_ends(self) -> tuple[float, float] | None:
        """The interval of `probability`; None below 3 seeds of either. Only when asked for: it takes longer than the
        rest, and a large sweep has thousands of pairs."""
        return _newcombe(self.probability, *self.seeds, self.level) if min(self.seeds) >= MIN_SEEDS_STUDENT else None


def versus(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Versus:
    """Difference of means by Welch's t, which takes both as independent, also where they share seeds: a seed fixes what
    is drawn, not how well it goes. And the probability of improvement P(A > B) by Mann and Whitney's estimate with
    Newcombe's interval (2006, method 5), which does not shrink to nothing where all of A lie above all of B. At 3
    seeds against 3 that interval of P(A > B) covers about 90 % instead of 95 %."""
    first, second = _checked(a), _checked(b)
    difference = float(first.mean() - second.mean())
    wins = float((first[:, None] > second[None, :]).mean() + (first[:, None] == second[None, :]).mean() / 2.0)
    seeds = len(first), len(second)
    if min(seeds) < MIN_SEEDS_STUDENT:
        return Versus(difference, None, None, wins, None, seeds, level)
    parts = np.array([one.var(ddof=1) / len(one) for one in (first, second)])
    error = float(np.sqrt(parts.sum()))
    if error == 0.0:
        return Versus(difference, None, None, wins, None, seeds, level)
    freedom = float(parts.sum() ** 2 / (parts**2 / (np.array(seeds) - 1)).sum())
    half_width = float(stdtrit(freedom, (1.0 + level) / 2.0)) * error
    better = float(stdtr(freedom, difference / error))
    return Versus(difference, difference - half_width, difference + half_width, wins, better, seeds, level)


def _newcombe(share: float, first: int, second: int, level: float) -> tuple[float, float]:
    """Both P with |share - P| = z sqrt(V(P)), V(P) = P (1 - P) (1 + m ((1 - P) / (2 - P) + P / (1 + P))) / (n1 n2) and
    m = (n1 + n2) / 2 - 1; by bisection."""
    z = float(ndtri((1.0 + level) / 2.0))
    more = (first + second) / 2.0 - 1.0

    def outside(p: float) -> bool:
        variance = p * (1.0 - p) * (1.0 + more * ((1.0 - p) / (2.0 - p) + p / (1.0 + p))) / (first * second)
        return abs(share - p) > z * math.sqrt(variance)

    def end(limit: float) -> float:
        inner, outer = share, limit
        for _ in range(60):
            middle = (inner + outer) / 2.0
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        return inner

    return end(0.0), end(1.0)
