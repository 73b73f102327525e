"""What a comparison is made of: runs, settings, their values at KL budgets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from analysis.crossed import Run
from analysis.evaluations import Evaluations
from analysis.kl_efficiency import GainCurve
from analysis.labels import named
from analysis.load import RunRecord
from analysis.optimum import ReferenceSamples
from analysis.statistics import Interval

# What to raise for a run that hardly left the initial policy.
_MOVING = ("optimization.learning_rate", "rollout.iterations")


class OfOneSeed(Protocol):
    """A curve among those that intervals are made of: of one run, or the envelope of several."""

    @property
    def record(self) -> RunRecord: ...
    @property
    def curve(self) -> GainCurve: ...
    @property
    def reference(self) -> ReferenceSamples | None: ...
    @property
    def initial_reward(self) -> float: ...
    @property
    def runs(self) -> Sequence[ComparedRun]: ...
    def efficiency(self, budget: float) -> float: ...


class Contender(Protocol):
    """What is compared with others: one setting, or the frontier of an algorithm."""

    @property
    def algo(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def runs(self) -> Sequence[OfOneSeed]: ...
    @property
    def replicates(self) -> list[Run]: ...
    @property
    def headline(self) -> BudgetResult: ...
    @property
    def budgets(self) -> tuple[BudgetResult | NotReached, ...]: ...


@dataclass(frozen=True)
class ComparedRun:
    """A run that enters the comparison."""

    record: RunRecord
    evaluations: Evaluations
    curve: GainCurve
    kl_budgets: tuple[float, ...]  # dataset.kl_budgets, nats
    reference: ReferenceSamples | None = None  # of its own initial policy

    @property
    def runs(self) -> tuple[ComparedRun, ...]:
        """One, where an envelope has several."""
        return (self,)

    @property
    def initial_reward(self) -> float:
        """From which gains are counted."""
        return self.evaluations.initial_reward

    def efficiency(self, budget: float) -> float:
        """E(K) at a budget in nats that the run reached."""
        return _mean(self.curve.efficiency(budget))

    def gain(self, kl: float) -> float:
        """The best gain at no more KL, in nats, than `kl`, which the run reached."""
        return _mean(self.curve.gain(kl))


@dataclass(frozen=True)
class ExcludedRun:
    """A run of an RL stage that does not, and why."""

    record: RunRecord
    reason: str
    stayed: bool = False  # finished, but hardly left the initial policy


@dataclass(frozen=True)
class BudgetResult:
    """What one setting reached at a KL budget that all its runs reached."""

    kl_budget: float  # nats
    kl_efficiency: Interval  # units of reward
    iqm: Interval | None  # interquartile mean over seeds of the KL efficiency; None below 8, or of several SFT policies
    gain: Interval  # reward gain at KL <= budget
    share: Interval | None  # of the optimum's KL efficiency; None without reference samples that see as far


@dataclass(frozen=True)
class NotReached:
    """A KL budget that not all runs of a setting reached, at which it has no value."""

    kl_budget: float  # nats
    runs: int  # those that did


@dataclass(frozen=True)
class SettingSummary:
    """One algorithm under one setting, over its seeds. Before is the initial policy, after the last evaluation."""

    algo: str
    label: str
    runs: tuple[ComparedRun, ...]
    reward_before: Interval
    reward_after: Interval
    gold_before: Interval | None
    gold_after: Interval | None
    kl: Interval  # at the last evaluation, nats
    headline: BudgetResult
    """At the largest KL that every compared run reached: the budget of the comparison."""
    budgets: tuple[BudgetResult | NotReached, ...]
    """At those of dataset.kl_budgets, rising."""

    @property
    def name(self) -> str:
        return named(self.algo, self.label)

    @property
    def intended_kl(self) -> float:
        """Nats that runs on the data set are meant to spend: the first of dataset.kl_budgets."""
        return self.runs[0].kl_budgets[0]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.record.seed for run in self.runs if run.record.seed is not None})

    @property
    def replicates(self) -> list[Run]:
        """What was drawn for each run."""
        return [run.record.replicate for run in self.runs]


def runs_of(one: Contender) -> list[ComparedRun]:
    return [run for seed in one.runs for run in seed.runs]


@dataclass(frozen=True)
class Comparison:
    """A sweep's result. `records` holds every run folder, whatever its stage and status."""

    records: list[RunRecord]
    settings: list[SettingSummary]
    excluded: list[ExcludedRun]
    notes: list[str]
    crossed: bool = False
    """Whether intervals hold for prompts and seeds; over seeds alone where runs kept no numbers of prompts."""

    @property
    def nothing(self) -> str:
        """Why there is nothing to compare where there is no setting, and what to type."""
        stayed = [one.record for one in self.excluded if one.stayed]
        if not stayed:
            return "No finished run to compare."
        tried = ", ".join(f"{key} ({value})" for key in _MOVING if (value := stayed[0].setting(key)) is not None)
        runs = "1 run has finished, but it" if len(stayed) == 1 else f"{len(stayed)} runs have finished, but they"
        return f"{runs} hardly left the initial policy: there is no KL to compare at. Raise {tried or _MOVING[0]}."

    @functools.cached_property
    def reference(self) -> ReferenceSamples | None:
        """Of the initial policy that the compared runs started from; of all of them together, the prompts of one beside
        those of another, where there are several. None where a run has none."""
        found = [run.reference for setting in self.settings for run in setting.runs]
        distinct = {id(one): one for one in found if one is not None}
        if not found or None in found or len(distinct) == 1:
            return found[0] if len(distinct) == 1 and None not in found else None
        fewest = min(one.rewards.shape[1] for one in distinct.values())
        return ReferenceSamples(np.concatenate([one.rewards[:, :fewest] for one in distinct.values()]))


def _mean(parts: np.ndarray | None) -> float:
    assert parts is not None, "callers ask for what the run reached"
    return float(parts.mean())
