"""`python -m tests.benchmarks.alarms`: how often a diagnosis is made of simulated runs, with white noise and KL rising.

Curves over 20 and 8 evaluations: flat; rising for the first half and staying; rising and then losing half of the gain
of 1. Noise is given as a share of that gain. A gold reward of noise alone stands beside a reward that rises.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.diagnoses import diagnose
from analysis.load import RunRecord, make_record
from analysis.summary import compare
from tests.analysis.made_up import config, rows

RUNS = 2000
CURVES = {"learns nothing": (0.0, 0.0), "rises and stays": (1.0, 0.0), "loses half of the gain": (1.0, 0.5)}
NOISES = (0.05, 0.1, 0.15)


def curve(gain: float, fall: float, count: int) -> np.ndarray:
    """(count,): up by `gain` in the first half, down by `fall` in the second."""
    t = np.linspace(0.0, 1.0, count)
    return gain * np.minimum(2.0 * t, 1.0) - fall * np.maximum(2.0 * t - 1.0, 0.0)


def simulated(rewards: np.ndarray, gold: np.ndarray | None = None) -> list[RunRecord]:
    """A run of each row of `rewards`, (runs, evaluations); its KL rises evenly."""
    kl = np.linspace(0.0, 1.0, rewards.shape[1]).tolist()
    finished = {"status": "finished"}
    golds = [None] * len(rewards) if gold is None else gold.tolist()
    return [
        make_record(Path(f"r{seed}"), config("apa", seed), rows(kl, one, gold=golds[seed]), finished, [], [])
        for seed, one in enumerate(rewards.tolist())
    ]


def rates(records: list[RunRecord]) -> dict[str, float]:
    """Shares of runs by diagnosis."""
    counts: dict[str, int] = {}
    for one in diagnose(compare(records)):
        if one.kind in ("reward falls", "over-optimisation"):
            kind = "below the initial one" if "below the initial" in one.text else one.kind
            counts[kind] = counts.get(kind, 0) + len(one.runs)
    return {kind: count / len(records) for kind, count in counts.items()}


def diverging(records: list[RunRecord], seeds: int) -> dict[str, float]:
    """The share of settings of so many runs that are said to diverge."""
    groups = [records[start : start + seeds] for start in range(0, len(records) - seeds + 1, seeds)]
    diverge = [any(one.kind == "seeds" for one in diagnose(compare(group))) for group in groups]
    return {f"seeds diverge ({seeds})": float(np.mean(diverge))}


def main(_: list[str] | None = None) -> None:
    for count in (20, 8):
        rng = np.random.default_rng(count)
        for name, (gain, fall) in CURVES.items():
            for noise in NOISES:
                records = simulated(curve(gain, fall, count) + noise * rng.normal(size=(RUNS, count)))
                settings = {} if fall else {**diverging(records, 3), **diverging(records, 10)}
                show(count, name, noise, {**rates(records), **settings})
        rising = np.tile(curve(1.0, 0.0, count), (RUNS, 1)) + np.linspace(0.0, 0.5, count)
        show(count, "gold is noise", 0.1, rates(simulated(rising, 0.1 * rng.normal(size=(RUNS, count)))))


def show(count: int, name: str, noise: float, shares: dict[str, float]) -> None:
    cells = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()) or "no diagnosis"
    print(f"{count:3} evaluations, {name:24} noise {noise:4}: {cells}", flush=True)


if __name__ == "__main__":
    main()
