"""One number varied, as lambda or a KL coefficient: reward, KL and hypervolume over its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.crossed import Run
from analysis.labels import label_values
from analysis.statistics import Interval, run_interval
from analysis.summary import ComparedRun, Comparison, SettingSummary


@dataclass(frozen=True)
class AblationPoint:
    """One value of the setting, over its seeds."""

    value: float
    setting: SettingSummary
    hypervolume: Interval
    """Reward times nats, of each run's evaluations."""


@dataclass(frozen=True)
class Ablation:
    """The settings of one algorithm that differ in this one number alone."""

    algo: str
    key: str
    """As typed, such as algo.lam."""
    points: tuple[AblationPoint, ...]
    """By rising value."""
    hypervolume: Interval | None
    """Of what the whole sweep reached: each seed's evaluations under all values together, over the seeds that have a
    run of every value (`hypervolume.seeds` of them); None where no seed has."""
    incomplete_seeds: int
    """Seeds left out of it, since they miss a value."""

    @property
    def is_log(self) -> bool:
        """Whether the values are spread over orders of magnitude."""
        values = [point.value for point in self.points]
        return min(values) > 0.0 and max(values) / min(values) >= 8.0


ABLATION_QUANTITIES: dict[str, Callable[[AblationPoint], Interval]] = {
    "Last reward": lambda point: point.setting.reward_after,
    "Last KL, nats per response": lambda point: point.setting.kl,
    "Hypervolume, reward times nats": lambda point: point.hypervolume,
}
"""What is drawn over the values, by its title."""


def ablations(comparison: Comparison) -> list[Ablation]:
    """One for each algorithm whose settings differ in one number; none of those that differ in more."""
    found = []
    for algo in dict.fromkeys(setting.algo for setting in comparison.settings):
        settings = [setting for setting in comparison.settings if setting.algo == algo]
        varied = label_values([setting.runs[0].record.config for setting in settings])
        if len(settings) > 1 and len(varied) == 1:
            ((key, values),) = varied.items()
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                pairs = zip(values, settings, strict=True)
                finite = [(float(value), setting) for value, setting in pairs if math.isfinite(value)]
                if len(finite) > 1:
                    found.append(_ablation(algo, key, finite))
    return found


def _ablation(algo: str, key: str, pairs: Sequence[tuple[float, SettingSummary]]) -> Ablation:
    budget = pairs[0][1].intended_kl  # at the KL that every run spent the setting that spent least would have no area
    points = [
        AblationPoint(
            value, setting, run_interval([_of_runs([run], budget) for run in setting.runs], setting.replicates)
        )
        for value, setting in pairs
    ]
    seeds = [{run.record.replicate for run in setting.runs} for _, setting in pairs]
    complete = set.intersection(*seeds)
    by_seed: dict[Run, list[ComparedRun]] = {}
    for _, setting in pairs:
        for run in setting.runs:
            if run.record.replicate in complete:
                by_seed.setdefault(run.record.replicate, []).append(run)
    whole = run_interval([_of_runs(runs, budget) for runs in by_seed.values()], list(by_seed)) if by_seed else None
    left_out = len(set.union(*seeds) - complete)
    return Ablation(algo, key, tuple(sorted(points, key=lambda point: point.value)), whole, left_out)


def _of_runs(runs: Sequence[ComparedRun], budget: float) -> float:
    kl = np.concatenate([run.evaluations.kl for run in runs])
    gain = np.concatenate([run.evaluations.reward - run.evaluations.reward[0] for run in runs])
    return hypervolume(kl, gain, budget)


def hypervolume(kl: np.ndarray, gain: np.ndarray, budget: float) -> float:
    """Area that the points dominate (more gain, less KL) of the box from no gain up, and from `budget` nats down."""
    inside = (gain > 0.0) & (kl < budget)
    order = np.lexsort((-gain[inside], kl[inside]))
    area = best = 0.0
    for k, g in zip(np.maximum(kl[inside][order], 0.0), gain[inside][order], strict=True):
        if g > best:
            area += (budget - k) * (g - best)
            best = g
    return float(area)
