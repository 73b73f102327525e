"""The frontier of an algorithm: the upper envelope over its KL knob (lambda, beta) as well as over training.

A single setting shows how far one value of the knob goes; the envelope shows what the algorithm can reach. It is made
of one seed's runs at all values of the knob: at each KL the best point of all of them, chosen on one half of the
prompts and scored on the other. So a seed has one curve, as a run has, and intervals are made of them alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compared import BudgetResult, ComparedRun, Comparison, NotReached, SettingSummary
from analysis.crossed import Run
from analysis.kl_efficiency import GainCurve
from analysis.labels import differing_keys, flatten, label_configs, named
from analysis.load import RunRecord
from analysis.optimum import ReferenceSamples
from analysis.parallel import mapped
from analysis.summary import Measure, common_budget
from rlhf.config.build import kl_knobs


@dataclass(frozen=True)
class SeedEnvelope:
    """The runs of one seed, SFT policy and reward model at every value of the knob."""

    runs: tuple[ComparedRun, ...]
    curve: GainCurve
    """The upper envelope of theirs."""

    @property
    def record(self) -> RunRecord:
        """One that has the seeds of all."""
        return self.runs[0].record

    @property
    def initial_reward(self) -> float:
        return self.runs[0].initial_reward

    @property
    def reference(self) -> ReferenceSamples | None:
        """Of the initial policy of all."""
        return self.runs[0].reference

    def efficiency(self, budget: float) -> float:
        """E(K) at a budget in nats that one of the runs reached."""
        parts = self.curve.efficiency(budget)
        assert parts is not None, "callers ask for what was reached"
        return float(parts.mean())


@dataclass(frozen=True)
class Envelope:
    """One algorithm's frontier, over its seeds."""

    algo: str
    label: str
    """What else than the knob differs between the algorithm's settings; "" where nothing does."""
    settings: tuple[SettingSummary, ...]
    knobs: tuple[str, ...]
    """Dotted keys in which the settings differ; none where there is one setting."""
    runs: tuple[SeedEnvelope, ...]
    """Of the seeds that have a run of every setting."""
    headline: BudgetResult
    """At the largest KL that every envelope of every seed reaches."""
    budgets: tuple[BudgetResult | NotReached, ...]

    @property
    def name(self) -> str:
        return named(self.algo, self.label)

    @property
    def replicates(self) -> list[Run]:
        """What was drawn for each curve."""
        return [run.record.replicate for run in self.runs]


@dataclass(frozen=True)
class Frontiers:
    envelopes: list[Envelope]
    """By name of the algorithm; empty where settings are to be compared one by one."""
    notes: list[str]


def frontiers(comparison: Comparison) -> Frontiers:
    """The envelopes where there are several algorithms, one of them at several values of its knob. A single algorithm
    has none: there its values are what is compared."""
    groups = _groups(comparison.settings)
    if len(groups) < 2 or len(groups) == len(comparison.settings):
        return Frontiers([], [])
    labels = _labels(groups)
    seeds = [_complete_seeds(group) for group in groups]
    if lacking := [
        named(group[0].algo, label) for group, label, own in zip(groups, labels, seeds, strict=True) if not own
    ]:
        return Frontiers([], [f"No frontiers: no seed has a run at every value of the knob of {', '.join(lacking)}."])
    per_seed = [runs for own in seeds for runs in own]
    curves = iter(mapped(_curve, [(runs, comparison.crossed) for runs in per_seed]))
    made = [tuple(SeedEnvelope(runs, next(curves)) for runs in own) for own in seeds]
    measure = Measure(common_budget([one.curve.largest_kl for own in made for one in own]), comparison.crossed)
    envelopes = []
    for group, label, runs in zip(groups, labels, made, strict=True):
        knobs = differing_keys([flatten(one.runs[0].record.config) for one in group])
        budgets = tuple(measure.within(budget, runs) for budget in sorted(group[0].runs[0].kl_budgets))
        headline = measure.at(measure.common, runs)
        envelopes.append(Envelope(group[0].algo, label, tuple(group), tuple(knobs), runs, headline, budgets))
    return Frontiers(envelopes, _notes(envelopes))


def _groups(settings: Sequence[SettingSummary]) -> list[list[SettingSummary]]:
    """Settings of one algorithm that differ in its knobs alone."""
    groups: dict[Hashable, list[SettingSummary]] = {}
    for setting in settings:
        groups.setdefault((setting.algo, frozenset(_without_knobs(setting).items())), []).append(setting)
    return list(groups.values())


def _without_knobs(setting: SettingSummary) -> dict[str, Hashable]:
    record = setting.runs[0].record
    knobs = kl_knobs(str(record.setting("algo.name")))
    return {key: value for key, value in flatten(record.config).items() if key not in knobs}


def _labels(groups: Sequence[Sequence[SettingSummary]]) -> list[str]:
    """What tells the groups of one algorithm apart."""
    labels = [""] * len(groups)
    for algo in {group[0].algo for group in groups}:
        places = [place for place, group in enumerate(groups) if group[0].algo == algo]
        found = label_configs([_without_knobs(groups[place][0]) for place in places])
        for place, label in zip(places, found, strict=True):
            labels[place] = label
    return labels


def _complete_seeds(group: Sequence[SettingSummary]) -> list[tuple[ComparedRun, ...]]:
    """The runs of each replicate that has one of every setting."""
    by_seed: dict[Run, list[ComparedRun]] = {}
    for setting in group:
        for run in setting.runs:
            by_seed.setdefault(run.record.replicate, []).append(run)
    return [tuple(runs) for runs in by_seed.values() if len(runs) == len(group)]


def _curve(given: tuple[Sequence[ComparedRun], bool]) -> GainCurve:
    """Of one seed's runs; by the halves' means where not all runs kept numbers of the same prompts."""
    runs, crossed = given
    points = [run.evaluations for run in runs]
    gains = [one.gains for one in points]
    if not crossed:
        gains = [np.stack([one[:, half::2].mean(axis=1) for half in (0, 1)], axis=1) for one in gains]
    starts = np.cumsum([0, *(len(one.kl) for one in points[:-1])])
    return GainCurve(np.concatenate([one.kl for one in points]), np.concatenate(gains), starts.tolist())


def _notes(envelopes: Sequence[Envelope]) -> list[str]:
    notes = []
    for one in envelopes:
        seeds = {run for setting in one.settings for run in setting.replicates}
        missing = len(seeds) - len(one.runs)
        if missing:
            notes.append(
                f"The frontier of {one.name} is without {missing} of its {len(seeds)} seeds, which lack a value."
            )
    if len({len(one.settings) for one in envelopes}) > 1:
        listed = ", ".join(f"{one.name} {len(one.settings)}" for one in envelopes)
        notes.append(f"Frontiers of unequal numbers of knob values, which favours those with more: {listed}.")
    return notes
