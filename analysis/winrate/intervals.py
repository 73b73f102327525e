"""Intervals over prompts, and over seeds, of a number between 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
MIN_PROMPTS = 3
MIN_SEEDS = 3


@dataclass(frozen=True)
class Rate:
    """A share with its confidence interval; `low` and `high` are None below 3 prompts."""

    value: float
    low: float | None
    high: float | None
    prompts: int


def rate_text(rate: Rate | None) -> str:
    """`0.62 [0.51, 0.72]`; the value alone where there is no interval, a dash where there is no value."""
    if rate is None:
        return "\N{EN DASH}"
    interval = "" if rate.low is None or rate.high is None else f" [{rate.low:.2f}, {rate.high:.2f}]"
    return f"{rate.value:.2f}{interval}"


def mean_rate(scores: Sequence[float], level: float = LEVEL) -> Rate:
    """The mean of one score in [0, 1] per prompt."""
    return share_rate(scores, [1.0] * len(scores), level)


def seeds_rate(scores: Mapping[tuple[str, int], float], level: float = LEVEL) -> Rate:
    """The mean over prompts of the mean over seeds of scores in [0, 1] by (prompt, seed).

    From MIN_SEEDS seeds on both are clusters: beside the variance of the mean over prompts stands what seeds add to it,
    the variance of the mean over seeds less that of the mean over single scores (Cameron, Gelbach and Miller 2011), not
    below 0. With fewer seeds the interval is over prompts alone, for these seeds. It covers 91 to 97 % with 3 seeds,
    93 to 97 % with 5 or more (`python -m tests.benchmarks.coverage`).
    """
    by_prompt, by_seed = (_means(scores, part) for part in (0, 1))
    if min(len(by_prompt), len(by_seed)) < MIN_SEEDS:
        return mean_rate(by_prompt, level)
    seeds, cells = np.asarray(by_seed), np.asarray(list(scores.values()))
    added = float(seeds.var(ddof=1) / len(seeds) - cells.var(ddof=1) / len(cells))
    return share_rate(by_prompt, [1.0] * len(by_prompt), level, max(0.0, added), len(seeds) - 1.0)


def _means(scores: Mapping[tuple[str, int], float], part: int) -> list[float]:
    """Over all that share this part of their key."""
    groups: dict[str | int, list[float]] = {}
    for key, score in scores.items():
        groups.setdefault(key[part], []).append(score)
    return [sum(values) / len(values) for values in groups.values()]


def share_rate(
    counted: Sequence[float],
    of: Sequence[float],
    level: float = LEVEL,
    more_variance: float = 0.0,
    more_freedom: float = 1.0,
) -> Rate:
    """sum(counted) / sum(of), with one value of each per prompt, 0 <= counted <= of and of > 0. `more_variance`, with
    its degrees of freedom, is what the share has beside that over prompts.

    The prompt is the unit: whatever happens within one (orders, seeds) may hang together. Wilson's interval with an
    effective number of prompts (Dean and Pagano 2015; Korn and Graubard 1998),

        p (1 - p) / v,  v = sum_i (counted_i - p of_i)^2 / (n (n - 1) mean(of)^2)

    the variance of a ratio over clusters, and Student's quantile for n - 1. For single yes-or-no answers that is
    Wilson's interval, near enough. Where the prompts are more alike than if one of them had half of its cases the other
    way (one verdict of two orders), v is taken as in that case, and the number as n at least: when all agree by chance
    there is no telling how much they vary.

    Of 1000 made-up sets of 16 prompts with scores 0, 1/4 ... 1 it covers 92 to 99 % by their distribution, where a BCa
    bootstrap covers 38 to 95 % and Student's interval 39 to 95 %: both have no width when all prompts agree.
    """
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    top, bottom = np.asarray(counted, dtype=np.float64), np.asarray(of, dtype=np.float64)
    assert len(top) == len(bottom) > 0 and (bottom > 0).all() and (top >= 0).all() and (top <= bottom).all()
    prompts = len(top)
    share = float(top.sum() / bottom.sum())
    if prompts < MIN_PROMPTS:
        return Rate(share, None, None, prompts)
    variance = float(((top - share * bottom) ** 2).sum()) / (prompts * (prompts - 1) * float(bottom.mean()) ** 2)
    freedom = prompts - 1.0
    if more_variance > 0.0:  # by Satterthwaite
        freedom = (variance + more_variance) ** 2 / (variance**2 / freedom + more_variance**2 / more_freedom)
        variance += more_variance
    smallest = 0.25 / (prompts * (prompts - 1))
    effective = max(share * (1.0 - share) / max(variance, smallest), 1.0 if variance >= smallest else float(prompts))
    low, high = _wilson(share, effective, float(stdtrit(freedom, (1.0 + level) / 2.0)))
    return Rate(share, low, high, prompts)


def _wilson(share: float, count: float, quantile: float) -> tuple[float, float]:
    """Wilson 1927: all p with |share - p| <= quantile sqrt(p (1 - p) / count)."""
    square = quantile**2 / count
    centre = (share + square / 2.0) / (1.0 + square)
    half_width = quantile / (1.0 + square) * math.sqrt(share * (1.0 - share) / count + square / (4.0 * count))
    # The share lies within; rounding may say otherwise where all agree.
    return max(0.0, min(share, centre - half_width)), min(1.0, max(share, centre + half_width))
