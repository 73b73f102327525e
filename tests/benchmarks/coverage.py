"""`python -m tests.benchmarks.coverage`: how often the intervals over seeds hold what they should, by simulation.

1,000 repetitions of each: values drawn per seed from a normal, a skewed (log-normal) and a two-peaked distribution (one
seed in five collapses); the stated rate is 95 %. Standard error of a share of 0.95: 0.7 points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.measures import expected, order_weights
from analysis.overoptimization import fitted_line
from analysis.statistics import interval, iqm_interval, spread_interval, versus
from analysis.winrate.results import seeds_rate

REPETITIONS = 1000
SEEDS = (3, 5, 8, 10, 30)
DRAWS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float, float]] = {
    # How to draw, the true mean and the true standard deviation.
    "normal": (lambda rng, n: rng.normal(size=n), 0.0, 1.0),
    "log-normal": (
        lambda rng, n: np.exp(rng.normal(0.0, 0.5, size=n)),
        math.exp(0.125),
        math.exp(0.125) * math.sqrt(math.exp(0.25) - 1.0),
    ),
    "one in five collapses": (
        lambda rng, n: rng.normal(0.0, 0.1, size=n) - (rng.random(n) < 0.2),
        -0.2,
        math.sqrt(0.01 + 0.16),
    ),
}


def coverage(name: str, seeds: int) -> dict[str, float]:
    """Shares of repetitions whose interval holds the truth, by statistic."""
    draw, mean, deviation = DRAWS[name]
    rng = np.random.default_rng([seeds, *name.encode()])

    def once() -> dict[str, bool | None]:
        sample, other = draw(rng, seeds).tolist(), draw(rng, seeds).tolist()
        against = versus(sample, other)
        ends = against.probability_ends or (None, None)
        iqm = {"iqm": _holds(iqm_interval(sample), mean)} if name == "normal" else {}
        return {
            "mean": _holds(interval(sample), mean),
            "spread": _holds(spread_interval(sample), deviation),
            **iqm,
            "difference": _between(against.low, 0.0, against.high),
            "P(A > B)": _between(ends[0], 0.5, ends[1]),
        }

    return _shares(once)


def sensitivity_coverage(seeds: int, apart: float) -> dict[str, float]:
    """Of best, median and worst of 3 out of 6 settings whose true values lie `apart` standard deviations of one seed
    from one another."""
    rng = np.random.default_rng([seeds, round(100 * apart)])
    values = apart * np.arange(6.0)
    truth = order_weights(6, 3) @ values

    def once() -> dict[str, bool | None]:
        table = values + rng.normal(size=(seeds, 6))
        three = expected([{(seed,): one for seed, one in enumerate(column)} for column in table.T.tolist()], 0, 3)
        places = zip(("best", "median", "worst"), three, truth.tolist(), strict=True)
        return {name: _holds(one, true) for name, one, true in places}

    return _shares(once)


def gold_coverage(seeds: int) -> dict[str, float]:
    """Of alpha and beta of a line through 8 evaluations of each seed, whose coefficients, noise and largest KL
    differ."""
    rng = np.random.default_rng(seeds)

    def once() -> dict[str, bool | None]:
        points = []
        for _ in range(seeds):
            d = np.linspace(0.2, rng.uniform(1.5, 2.5), 8)
            alpha, beta = 1.0 + 0.1 * rng.normal(), 0.3 + 0.1 * rng.normal()
            points.append((d, d * (alpha - beta * np.log(d)) + 0.05 * rng.normal(size=8)))
        line = fitted_line(points)
        assert line is not None
        return {"alpha": _holds(line[0], 1.0), "beta": _holds(line[1], 0.3)}

    return _shares(once)


def winrate_coverage(seeds: int, spread: float) -> dict[str, float]:
    """Of a win rate on 16 prompts, whose chances vary by 0.15 between prompts and by `spread` between seeds."""
    rng = np.random.default_rng([seeds, round(100 * spread)])

    def once() -> dict[str, bool | None]:
        chances = 0.5 + 0.15 * rng.normal(size=(16, 1)) + spread * rng.normal(size=(1, seeds))
        won = (rng.random((16, seeds)) < chances).astype(float)
        rate = seeds_rate({(f"p{i}", j): float(won[i, j]) for i in range(16) for j in range(seeds)})
        return {"win rate": _holds(rate, 0.5)}

    return _shares(once)


def _holds(one: Any, truth: float) -> bool | None:
    return None if one is None else _between(one.low, truth, one.high)


def _between(low: float | None, truth: float, high: float | None) -> bool | None:
    """None where there is no interval."""
    return None if low is None or high is None else bool(low <= truth <= high)


def _shares(once: Callable[[], dict[str, bool | None]]) -> dict[str, float]:
    """Over the repetitions that have an interval, by statistic."""
    holds = [once() for _ in range(REPETITIONS)]
    by_name = {name: [bool(one[name]) for one in holds if one[name] is not None] for name in holds[0]}
    return {name: float(np.mean(values)) for name, values in by_name.items() if values}


def main(_: list[str] | None = None) -> None:
    for seeds in SEEDS:
        show("gold line", seeds, gold_coverage(seeds))
        for apart in (0.0, 0.5, 2.0):
            show(f"sensitivity, {apart:g} apart", seeds, sensitivity_coverage(seeds, apart))
        for spread in (0.0, 0.1, 0.2):
            show(f"{spread:g} between seeds", seeds, winrate_coverage(seeds, spread))
    for name in DRAWS:
        for seeds in SEEDS:
            show(name, seeds, coverage(name, seeds))


def show(values: str, seeds: int, shares: dict[str, float]) -> None:
    cells = ", ".join(f"{statistic} {share:.1%}" for statistic, share in shares.items())
    print(f"{values:24}{seeds:3} seeds: {cells}", flush=True)


if __name__ == "__main__":
    main()
