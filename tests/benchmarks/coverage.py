"""`python -m tests.benchmarks.coverage`: how often the intervals over seeds hold what they should, by simulation.

1,000 repetitions of each: values drawn per seed from a normal, a skewed (log-normal) and a two-peaked distribution (one
seed in five collapses); the stated rate is 95 %. Standard error of a share of 0.95: 0.7 points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from analysis.measures import expected, order_weights
from analysis.overoptimization import fitted_line
from analysis.statistics import interval, iqm_interval, spread_interval, versus
from analysis.winrate.intervals import seeds_rate

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
    """Shares of repetitions whose interval held the truth, by statistic."""
    draw, mean, deviation = DRAWS[name]
    rng = np.random.default_rng([seeds, *name.encode()])
    held: dict[str, list[bool]] = {}
    for _ in range(REPETITIONS):
        sample, other = draw(rng, seeds).tolist(), draw(rng, seeds).tolist()
        against = versus(sample, other)
        found = {"mean": (interval(sample), mean), "spread": (spread_interval(sample), deviation)}
        if name == "normal":
            found["iqm"] = (iqm_interval(sample), mean)
        for statistic, (one, truth) in found.items():
            if one is not None and one.low is not None and one.high is not None:
                held.setdefault(statistic, []).append(one.low <= truth <= one.high)
        if against.low is not None and against.high is not None:
            held.setdefault("difference", []).append(against.low <= 0.0 <= against.high)
        if against.probability_low is not None and against.probability_high is not None:
            held.setdefault("P(A > B)", []).append(against.probability_low <= 0.5 <= against.probability_high)
    return {statistic: float(np.mean(one)) for statistic, one in held.items()}


def sensitivity_coverage(seeds: int, apart: float) -> dict[str, float]:
    """Of best, median and worst of 3 out of 6 settings whose true values lie `apart` standard deviations of one seed
    from one another."""
    rng = np.random.default_rng([seeds, round(100 * apart)])
    truth = apart * np.arange(6.0)
    weights = order_weights(6, 3)
    held = np.zeros(3)
    for _ in range(REPETITIONS):
        table = truth + rng.normal(size=(seeds, 6))
        found = expected([dict(enumerate(column)) for column in table.T.tolist()], 0, 3)
        for place, (one, true) in enumerate(zip(found, weights @ truth, strict=True)):
            assert one.low is not None and one.high is not None
            held[place] += one.low <= true <= one.high
    return dict(zip(("best", "median", "worst"), (held / REPETITIONS).tolist(), strict=True))


def gold_coverage(seeds: int) -> dict[str, float]:
    """Of alpha and beta of a line through 8 evaluations a seed, with coefficients, noise and largest KL of its own."""
    rng = np.random.default_rng(seeds)
    held = np.zeros(2)
    for _ in range(REPETITIONS):
        points = []
        for _ in range(seeds):
            d = np.linspace(0.2, rng.uniform(1.5, 2.5), 8)
            alpha, beta = 1.0 + 0.1 * rng.normal(), 0.3 + 0.1 * rng.normal()
            points.append((d, d * (alpha - beta * np.log(d)) + 0.05 * rng.normal(size=8)))
        line = fitted_line(points)
        assert line is not None
        for place, (one, true) in enumerate(zip(line, (1.0, 0.3), strict=True)):
            assert one.low is not None and one.high is not None
            held[place] += one.low <= true <= one.high
    return dict(zip(("alpha", "beta"), (held / REPETITIONS).tolist(), strict=True))


def winrate_coverage(seeds: int, spread: float) -> float:
    """Of a win rate on 16 prompts, whose chances vary by 0.15 between prompts and by `spread` between seeds."""
    rng = np.random.default_rng([seeds, round(100 * spread)])
    held = 0
    for _ in range(REPETITIONS):
        chances = 0.5 + 0.15 * rng.normal(size=(16, 1)) + spread * rng.normal(size=(1, seeds))
        won = (rng.random((16, seeds)) < chances).astype(float)
        rate = seeds_rate({(f"p{i}", j): float(won[i, j]) for i in range(16) for j in range(seeds)})
        assert rate.low is not None and rate.high is not None
        held += rate.low <= 0.5 <= rate.high
    return held / REPETITIONS


def main() -> None:
    for seeds in SEEDS:
        print(f"gold line, {seeds} seeds: {gold_coverage(seeds)}", flush=True)
        for apart in (0.0, 0.5, 2.0):
            print(f"sensitivity, {seeds} seeds, {apart:g} apart: {sensitivity_coverage(seeds, apart)}", flush=True)
        for spread in (0.0, 0.1, 0.2):
            print(
                f"win rate, {seeds} seeds, {spread:g} between seeds: {winrate_coverage(seeds, spread):.1%}", flush=True
            )
    print(f"{'values':24}{'seeds':>6}  held by the 95 % interval of")
    for name in DRAWS:
        for seeds in SEEDS:
            shares = ", ".join(f"{statistic} {share:.1%}" for statistic, share in coverage(name, seeds).items())
            print(f"{name:24}{seeds:6}  {shares}", flush=True)


if __name__ == "__main__":
    main()
