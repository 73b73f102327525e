"""Intervals of values and differences where every run answers the same prompts.

A hard prompt lowers all runs, a lucky seed, SFT policy or reward model lifts its own, and the noise of shared prompts
does not shrink with more runs. What was drawn for a run names it, the outermost first (SFT policy, reward model, seed);
these axes are crossed with one another and with the prompts. Of two axes, with x_abp the part of prompt p in the value
of run (a, b), whose mean over P prompts is the value,

  x_abp = mu + a + b + ab + prompt_p + rest_abp

and the mean over all runs and prompts varies by (variance of the prompts' means) / P and, for a, b and ab each, by its
component of the variance of runs' values over the number of its levels: the mean squares of the analysis of variance,
less what prompts put into them, which the prompts' means have already. For one axis that is
(MS_seed + MS_prompt - MS_rest) / (S P).

Student's quantile has the degrees of freedom of the runs' components together (Satterthwaite) and those of the prompts,
weighted by the two shares of the variance (Cochran 1964): 94 to 97% of intervals hold the value, at three levels too.
One or two levels say nothing of others: such an axis is left out, and the interval holds for its levels alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

MIN_LEVELS = 3
LEVEL = 0.95

Run = tuple[Hashable, ...]
"""What was drawn for a run: a level of every axis, the outermost first."""


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with its interval, in the unit of the values."""

    value: float
    standard_error: float
    shares: tuple[tuple[float, float], ...]  # of the variance: weight and degrees of freedom; the weights sum to 1
    of_these_runs: bool  # whether the interval is over prompts alone, since no axis has three levels
    level: float = LEVEL

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


@dataclass(frozen=True)
class Component:
    """What a set of axes, one axis or the interaction of several, adds to the variance of the mean over all runs."""

    axes: tuple[int, ...]
    with_prompts: float
    prompts: float  # the prompts' part of it
    freedom: float
    levels: int

    @property
    def variance(self) -> float:
        """Without the prompts' part; chance can make it negative."""
        return self.with_prompts - self.prompts


def crossed_mean(values: np.ndarray, runs: Sequence[Run] | None = None, level: float = LEVEL) -> Estimate:
    """The mean over runs and prompts.

    Args:
        values: (S, P), one row per run, S >= 1 and P >= 1; of one column prompts are taken to be without noise.
        runs: (S,) what was drawn for each; None: another seed for each.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    values = _checked(values)
    runs = _seeds(len(values)) if runs is None else runs
    return _estimate(float(values.mean()), values.mean(axis=0), components(values, runs, sampled_axes(runs)), level)


def crossed_difference(
    first: np.ndarray,
    second: np.ndarray,
    first_runs: Sequence[Run],
    second_runs: Sequence[Run],
    level: float = LEVEL,
) -> Estimate:
    """Mean of the first minus mean of the second, paired by prompt and, where both have the same, by run; otherwise by
    those axes of which both have the same levels. What one side alone has levels enough of is its own noise.

    Args:
        first: (S, P) of one algorithm; `second`: (S', P) of the other, on the same prompts in the same order.
        first_runs: (S,) what was drawn for each row; `second_runs`: (S',).

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a difference needs the same prompts, not {first.shape[1]} and {second.shape[1]}")
    if set(first_runs) == set(second_runs) and len(set(first_runs)) == len(first) == len(second):
        place = {run: row for row, run in enumerate(second_runs)}
        return crossed_mean(first - second[[place[run] for run in first_runs]], first_runs, level)
    found = []
    for axis in sorted({*sampled_axes(first_runs), *sampled_axes(second_runs)}):
        ours, theirs = _by_level(first, first_runs, axis), _by_level(second, second_runs, axis)
        tables = [one for one in (ours, theirs) if len(one) >= MIN_LEVELS]
        if ours.keys() == theirs.keys():
            tables = [{name: row - theirs[name] for name, row in ours.items()}]
        for table in tables:
            found += components(np.array(list(table.values())), [(name,) * (axis + 1) for name in table], (axis,))
    by_prompt = first.mean(axis=0) - second.mean(axis=0)
    return _estimate(float(first.mean() - second.mean()), by_prompt, found, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def sampled_axes(runs: Sequence[Run], least: int = MIN_LEVELS) -> tuple[int, ...]:
    """The axes with so many levels: by default those that say something of levels that were not drawn."""
    return tuple(axis for axis, names in enumerate(zip(*runs, strict=True)) if len(set(names)) >= least)


def components(values: np.ndarray, runs: Sequence[Run], axes: Sequence[int]) -> list[Component]:
    """Of each of the axes and, where there is a run for every combination of their levels, of their interactions.

    Without one, an axis alone stands for its interactions too: what several share is counted more than once, and the
    interval is wider than it need be.
    """
    if not axes:
        return []
    prompts = values.shape[1]
    levels = [{name: place for place, name in enumerate(dict.fromkeys(run[axis] for run in runs))} for axis in axes]
    places = tuple(np.array([names[run[axis]] for run in runs]) for axis, names in zip(axes, levels, strict=True))
    sums, counts = np.zeros((*map(len, levels), prompts)), np.zeros((*map(len, levels), 1))
    np.add.at(sums, places, values)
    np.add.at(counts, places, 1.0)
    complete = bool(counts.all())
    found: dict[tuple[int, ...], Component] = {}
    for size in range(len(axes) if complete else 1, 0, -1):
        for chosen in itertools.combinations(range(len(axes)), size):
            others = tuple(set(range(len(axes))) - set(chosen))
            table = (sums / counts).mean(axis=others) if complete else sums.sum(axis=others) / counts.sum(axis=others)
            for axis in range(size):
                table = table - table.mean(axis=axis, keepdims=True)
            freedom, count = math.prod(one - 1 for one in table.shape[:-1]), math.prod(table.shape[:-1])
            means = table.mean(axis=-1, keepdims=True)
            whole = float((means**2).sum()) / (freedom * count)
            of_prompts = float(((table - means) ** 2).sum()) / (freedom * count * prompts * max(prompts - 1, 1))
            inner = [one for name, one in found.items() if set(chosen) < set(name)]  # what this mean square holds too
            found[chosen] = Component(
                tuple(axes[axis] for axis in chosen),
                whole - sum(one.with_prompts for one in inner),
                of_prompts - sum(one.prompts for one in inner),
                float(freedom),
                count,
            )
    return list(found.values())


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"an interval needs at least one run and one prompt, not the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("no interval of values that are not finite")
    return values


def _seeds(count: int) -> list[Run]:
    return [(seed,) for seed in range(count)]


def _by_level(values: np.ndarray, runs: Sequence[Run], axis: int) -> dict[Hashable, np.ndarray]:
    """(P,) mean of the runs of each level."""
    names = dict.fromkeys(run[axis] for run in runs)
    return {name: values[[run[axis] == name for run in runs]].mean(axis=0) for name in names}


def _estimate(value: float, by_prompt: np.ndarray, found: Sequence[Component], level: float) -> Estimate:
    """Variance of the value and its shares. The prompts' part is taken off the runs', but never so that less is left
    than either shows: a smaller variance would be made up by noise."""
    prompts = len(by_prompt)
    of_prompts = float(by_prompt.var(ddof=1)) / prompts if prompts > 1 else 0.0
    least = [sum(one.with_prompts for one in found if axis in one.axes) for one in found for axis in one.axes]
    variance = max(of_prompts + sum(one.variance for one in found), of_prompts, *least, 0.0)
    own = [(max(one.variance, 0.0), one.freedom) for one in found]
    of_runs = sum(part for part, _ in own)
    parts = [(of_prompts, max(prompts - 1.0, 1.0))]
    if of_runs > 0.0:
        parts.append((of_runs, of_runs**2 / sum(part**2 / freedom for part, freedom in own)))
    total = sum(part for part, _ in parts)
    if total == 0.0:
        shares = ((1.0, min([prompts - 1.0, *(one.freedom for one in found)])),)
    else:
        shares = tuple((part / total, freedom) for part, freedom in parts)
    return Estimate(value, variance**0.5, shares, not found, level)
