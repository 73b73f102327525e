"""`python -m tests.benchmarks.coverage`: how often the intervals over seeds hold what they should, by simulation.

1,000 repetitions of each: values drawn per seed from a normal, a skewed (log-normal) and a two-peaked distribution (one
seed in five collapses); the stated rate is 95 %. Standard error of a share of 0.95: 0.7 points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from analysis.statistics import interval, iqm_interval, spread_interval, versus

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


def main() -> None:
    print(f"{'values':24}{'seeds':>6}  held by the 95 % interval of")
    for name in DRAWS:
        for seeds in SEEDS:
            shares = ", ".join(f"{statistic} {share:.1%}" for statistic, share in coverage(name, seeds).items())
            print(f"{name:24}{seeds:6}  {shares}", flush=True)


if __name__ == "__main__":
    main()
