"""Intervals of values and differences where every run answers the same prompts.

Prompts and seeds are crossed: a hard prompt lowers all runs, a lucky seed lifts one, and the noise of shared prompts
does not shrink with more seeds. With x_sp the part of prompt p in the value of seed s (their mean is the run's value),

  x_sp = mu + seed_s + prompt_p + rest_sp

and the mean over S seeds and P prompts varies by (MS_seed + MS_prompt - MS_rest) / (S P), the mean squares of the
two-way table. Student's quantile is that of S - 1 degrees of freedom for the seeds' share of the variance and that of
P - 1 for the prompts' (Cochran 1964): 94 to 97% of intervals hold the value, at three seeds too, where one number for
both by Satterthwaite covers 91 to 96%.
One or two runs say nothing of seeds: their interval is that of prompts alone and holds for these runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

MIN_SEEDS = 3
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with its interval, in the unit of the values."""

    value: float
    standard_error: float
    shares: tuple[tuple[float, float], ...]  # of the variance: weight and degrees of freedom; the weights sum to 1
    seeds: int  # of the side that has fewer
    prompts: int
    level: float = LEVEL

    @property
    def of_these_runs(self) -> bool:
        """Whether the interval leaves seeds out, since there are fewer than three."""
        return self.seeds < MIN_SEEDS

    @property
    def half_width(self) -> float:
        return self._quantile((1.0 - self.level) / 2.0) * self.standard_error

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width

    @property
    def p_value(self) -> float:
        """Two-sided, of the value being 0: one minus the level at which the interval ends there."""
        if self.standard_error == 0.0:
            return 1.0 if self.value == 0.0 else 0.0
        reach = abs(self.value) / self.standard_error
        if self._quantile(1e-15) <= reach:
            return 0.0
        tail: Any = brentq(lambda tail: self._quantile(tail) - reach, 1e-15, 0.5)
        return 2.0 * float(tail)

    def _quantile(self, tail: float) -> float:
        return sum(weight * float(stdtrit(freedom, 1.0 - tail)) for weight, freedom in self.shares)


def crossed_mean(values: np.ndarray, level: float = LEVEL) -> Estimate:
    """The mean over seeds and prompts.

    Args:
        values: (S, P), one row per seed, S >= 1 and P >= 2.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    values = _checked(values)
    seeds, prompts = values.shape
    of_prompts = float(values.mean(axis=0).var(ddof=1)) / prompts
    if seeds < MIN_SEEDS:
        return Estimate(float(values.mean()), of_prompts**0.5, ((1.0, prompts - 1.0),), seeds, prompts, level)
    of_seeds, rest = _seeds_and_rest(values)
    error, shares = _combined(of_prompts, prompts, [(of_seeds, rest, seeds)])
    return Estimate(float(values.mean()), error, shares, seeds, prompts, level)


def crossed_difference(
    first: np.ndarray,
    second: np.ndarray,
    first_seeds: Sequence[Hashable],
    second_seeds: Sequence[Hashable],
    level: float = LEVEL,
) -> Estimate:
    """Mean of the first minus mean of the second, paired by prompt and, where both have the same seeds, by seed.

    Args:
        first: (S, P) of one algorithm; `second`: (S', P) of the other, on the same prompts in the same order.
        first_seeds: (S,) what each row's seed is; `second_seeds`: (S',).

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a difference needs the same prompts, not {first.shape[1]} and {second.shape[1]}")
    if sorted(map(str, first_seeds)) == sorted(map(str, second_seeds)) and len(set(first_seeds)) == len(first):
        place = {seed: row for row, seed in enumerate(second_seeds)}
        return crossed_mean(first - second[[place[seed] for seed in first_seeds]], level)
    prompts = first.shape[1]
    value = float(first.mean() - second.mean())
    of_prompts = float((first.mean(axis=0) - second.mean(axis=0)).var(ddof=1)) / prompts
    fewer = min(len(first), len(second))
    if fewer < MIN_SEEDS:
        return Estimate(value, of_prompts**0.5, ((1.0, prompts - 1.0),), fewer, prompts, level)
    error, shares = _combined(of_prompts, prompts, [(*_seeds_and_rest(side), len(side)) for side in (first, second)])
    return Estimate(value, error, shares, fewer, prompts, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) < 1 or values.shape[1] < 2:
        raise ValueError(f"an interval needs at least one seed and two prompts, not the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("no interval of values that are not finite")
    return values


def _seeds_and_rest(values: np.ndarray) -> tuple[float, float]:
    """MS_seed / (S P) and MS_rest / (S P)."""
    seeds, prompts = values.shape
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    rest_square = float((rest**2).sum()) / ((seeds - 1) * (prompts - 1))
    return float(values.mean(axis=1).var(ddof=1)) / seeds, rest_square / (seeds * prompts)


def _combined(
    of_prompts: float, prompts: int, sides: list[tuple[float, float, int]]
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Standard error, and the shares of its variance. The rest is in both mean squares, so that it is taken off once,
    but never below either of them: a smaller variance would be made up by noise."""
    of_seeds = sum(part for part, _, _ in sides)
    variance = max(of_prompts + of_seeds - sum(rest for _, rest, _ in sides), of_prompts, of_seeds)
    parts = [(of_prompts, prompts - 1.0), *((max(part - rest, 0.0), seeds - 1.0) for part, rest, seeds in sides)]
    total = sum(part for part, _ in parts)
    if total == 0.0:
        return variance**0.5, ((1.0, min(prompts, *(seeds for *_, seeds in sides)) - 1.0),)
    return variance**0.5, tuple((part / total, freedom) for part, freedom in parts)
