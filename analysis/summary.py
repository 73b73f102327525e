"""Runs -> one row per algorithm and setting, with intervals over seeds, and all that has to be said beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.crossed import crossed_mean
from analysis.evaluations import Evaluations, UnusableRunError, evaluations
from analysis.kl_efficiency import GainCurve
from analysis.labels import differing_settings
from analysis.load import RL_STAGES, RunRecord
from analysis.optimum import ReferenceSamples
from analysis.parallel import mapped
from analysis.statistics import Interval, interval, iqm_interval
from rlhf.runs.state import KEPT_REFERENCES

# Sums and squares of more would not be finite.
_LARGEST = 1e100
# Settings that make a reward another quantity, or a KL one from another policy.
_SAME_SCALE = ("dataset.", "model.", "reward.", "reward_model.", "sft.")
_KEYS_NAMED = 4
# A run that spent less than so many nats hardly left the initial policy, and is left out where others did.
MOVED = 0.01


@dataclass(frozen=True)
class ComparedRun:
    """A run that enters the comparison."""

    record: RunRecord
    evaluations: Evaluations
    curve: GainCurve
    kl_budgets: tuple[float, ...]  # dataset.kl_budgets, nats

    def efficiency(self, budget: float) -> float:
        """E(K) at a budget in nats that the run spent."""
        return _mean(self.curve.efficiency(budget))

    def gain(self, kl: float) -> float:
        """The best gain at no more KL, in nats, than `kl`, which the run spent."""
        return _mean(self.curve.gain(kl))


@dataclass(frozen=True)
class ExcludedRun:
    """A run of an RL stage that does not, and why."""

    record: RunRecord
    reason: str


@dataclass(frozen=True)
class BudgetResult:
    """What one setting reached at a KL budget that all its runs spent."""

    kl_budget: float  # nats
    kl_efficiency: Interval  # units of reward
    iqm: Interval | None  # interquartile mean over seeds of the KL efficiency; None below 8 seeds
    gain: Interval  # reward gain at KL <= budget
    share: Interval | None  # of the optimum's KL efficiency; None without reference samples that see as far


@dataclass(frozen=True)
class NotReached:
    """A KL budget that not all runs of a setting spent, at which it has no value."""

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
    """At the largest KL that every compared run spent: the budget of the comparison."""
    budgets: tuple[BudgetResult | NotReached, ...]
    """At those of dataset.kl_budgets, rising."""

    @property
    def name(self) -> str:
        return f"{self.algo} ({self.label})" if self.label else self.algo

    @property
    def intended_kl(self) -> float:
        """Nats that runs on the data set are meant to spend: the first of dataset.kl_budgets."""
        return self.runs[0].kl_budgets[0]

    @property
    def seeds(self) -> list[int]:
        return [run.record.seed for run in self.runs if run.record.seed is not None]


@dataclass(frozen=True)
class Comparison:
    """A sweep's result. `records` holds every run folder, whatever its stage and status."""

    records: list[RunRecord]
    settings: list[SettingSummary]
    excluded: list[ExcludedRun]
    notes: list[str]
    reference: ReferenceSamples | None = None
    """Of the initial policy that all compared runs started from."""
    crossed: bool = False
    """Whether intervals hold for prompts and seeds; over seeds alone where runs kept no numbers of prompts."""


def samples_name(settings: Sequence[SettingSummary]) -> str:
    """What `samples` counts, as an axis says it: an offline run generates none."""
    stages = {run.record.stage for setting in settings for run in setting.runs}
    if stages == {"offline"}:
        return "responses trained on"
    return "responses generated or trained on" if "offline" in stages else "responses generated"


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Sort the runs of the RL stages into compared and excluded ones, and summarise the former."""
    usable: list[tuple[RunRecord, Evaluations, tuple[float, ...]]] = []
    excluded: list[ExcludedRun] = []
    taken: dict[tuple[str, str, int | None], str] = {}
    for record in records:
        if record.stage not in RL_STAGES:
            continue
        try:
            found = _usable(record)
            place = (record.algo, record.label, record.seed)
            if place in taken:
                raise UnusableRunError(f"of the same algorithm, settings and seed as {taken[place]}, which counts")
            taken[place] = record.id
            usable.append((record, *found))
        except UnusableRunError as error:
            excluded.append(ExcludedRun(record, str(error)))
    crossed = share_prompts([(record, points) for record, points, _ in usable])
    reference = _reference([record for record, _, _ in usable]) if crossed else None
    if reference is not None:
        usable = [(record, evaluations(record, reference.baseline), budgets) for record, _, budgets in usable]
    curves = mapped(_curve, [points for _, points, _ in usable])
    compared = [
        ComparedRun(record, points, curve, budgets)
        for (record, points, budgets), curve in zip(usable, curves, strict=True)
    ]
    least = MOVED if any(run.curve.largest_kl >= MOVED for run in compared) else 0.0
    still = [run for run in compared if run.curve.largest_kl < least or run.curve.largest_kl == 0.0]
    excluded += [ExcludedRun(run.record, _hardly_moved(run)) for run in still]
    compared = [run for run in compared if run not in still]
    groups: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in compared:
        groups.setdefault((run.record.algo, run.record.label), []).append(run)
    measure = _Measure(common_budget([run.curve.largest_kl for run in compared]), crossed, reference)
    settings = [measure.setting(algo, label, runs) for (algo, label), runs in sorted(groups.items())]
    notes = _notes(compared, settings, excluded)
    return Comparison(list(records), settings, excluded, notes, reference, crossed)


def together(sides: Mapping[str, SettingSummary], kl: float | None = None) -> Comparison:
    """Settings of any sweeps, measured alike and at one budget: by name, in their order.

    Args:
        kl: nats, which every run reached; None: the largest such.
    """
    runs = [run for setting in sides.values() for run in setting.runs]
    records = [run.record for run in runs]
    crossed = share_prompts([(run.record, run.evaluations) for run in runs])
    reference = _reference(records) if crossed else None
    common = common_budget([run.curve.largest_kl for run in runs]) if kl is None else kl
    measure = _Measure(common, crossed, reference)
    settings = [measure.setting(name, "", list(setting.runs)) for name, setting in sides.items()]
    return Comparison(records, settings, [], scale_notes([record.config for record in records]), reference, crossed)


def share_prompts(runs: Sequence[tuple[RunRecord, Evaluations]]) -> bool:
    """Whether all kept numbers of the same prompts, so that they can be compared prompt by prompt."""
    one_task = not any(key.startswith("dataset.") for key in differing_settings([record.config for record, _ in runs]))
    prompts = {points.gains.shape[1] if points.by_prompt else 0 for _, points in runs}
    return one_task and len(prompts) == 1 and prompts != {0}


def common_budget(largest: Sequence[float]) -> float:
    """What every run reached, of the largest KL of each, nats above 0: rounded down to three digits; 0 of none."""
    if not largest:
        return 0.0
    least = min(largest)
    digit = 10.0 ** (math.floor(math.log10(least)) - 2)
    return min(least, round(math.floor(least / digit) * digit, 12))


def _hardly_moved(run: ComparedRun) -> str:
    return f"hardly left the initial policy: its largest KL is {run.curve.largest_kl:.2g} nats"


def _reference(runs: Sequence[RunRecord]) -> ReferenceSamples | None:
    """The scores that all runs name in their summaries; None where they name different ones, or they cannot be read."""
    places = {run.folder.parent / KEPT_REFERENCES / str(run.summary.get("reference_samples")) for run in runs}
    contents = {place.name: place for place in places}
    if len(contents) != 1:
        return None
    try:
        with np.load(contents.popitem()[1]) as file:
            return ReferenceSamples(file["reward"])
    except (OSError, ValueError, KeyError):
        return None


def _usable(record: RunRecord) -> tuple[Evaluations, tuple[float, ...]]:
    """Its evaluations and KL budgets."""
    if record.reason is not None:
        raise UnusableRunError(record.reason)
    given = record.setting("dataset.kl_budgets", ())
    if not given:
        raise UnusableRunError("config.yaml has no dataset.kl_budgets")
    if not isinstance(given, list) or not all(_is_budget(one) for one in given):
        raise UnusableRunError(f"dataset.kl_budgets: {given!r} is no list of numbers above 0")
    points = evaluations(record)
    if max(float(np.abs(values).max()) for values in (points.kl, points.reward)) > _LARGEST:
        raise UnusableRunError(f"a KL or reward of its evaluations lies beyond {_LARGEST:g}")
    if _lost_its_end(record):
        raise UnusableRunError("the last evaluation in summary.json is not in metrics.jsonl, which was cut")
    return points, tuple(map(float, given))


def _lost_its_end(record: RunRecord) -> bool:
    """Whether summary.json tells of a later evaluation than metrics.jsonl: rows were lost after the run had ended."""
    told = record.summary.get("eval/reward")
    found = record.column("eval/reward")[record.metrics.evaluated]
    if not isinstance(told, int | float) or not math.isfinite(told) or not len(found) or not np.isfinite(found[-1]):
        return False
    return not math.isclose(told, float(found[-1]), rel_tol=1e-6, abs_tol=1e-9)


def _is_budget(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value < _LARGEST


def _mean(parts: np.ndarray | None) -> float:
    assert parts is not None, "callers ask for what the run reached"
    return float(parts.mean())


def _curve(points: Evaluations) -> GainCurve:
    return GainCurve(points.kl, points.gains)


@dataclass(frozen=True)
class _Measure:
    """How settings are measured, which is the same for all of a comparison."""

    common: float  # nats that every run reached
    crossed: bool
    reference: ReferenceSamples | None

    def setting(self, algo: str, label: str, runs: list[ComparedRun]) -> SettingSummary:
        runs = sorted(runs, key=lambda run: (run.record.seed or 0, run.record.id))

        def over_seeds(value: Callable[[ComparedRun], float]) -> Interval:
            return interval([value(run) for run in runs])

        def gold(index: int) -> Interval | None:
            values = [run.evaluations.gold_reward[index] for run in runs if run.evaluations.gold_reward is not None]
            return interval(values) if len(values) == len(runs) and np.isfinite(values).all() else None

        return SettingSummary(
            algo=algo,
            label=label,
            runs=tuple(runs),
            reward_before=over_seeds(lambda run: run.evaluations.reward[0]),
            reward_after=over_seeds(lambda run: run.evaluations.reward[-1]),
            gold_before=gold(0),
            gold_after=gold(-1),
            kl=over_seeds(lambda run: run.evaluations.kl[-1]),
            headline=self.at(self.common, runs),
            budgets=tuple(self.within(budget, runs) for budget in sorted(runs[0].kl_budgets)),
        )

    def within(self, budget: float, runs: Sequence[ComparedRun]) -> BudgetResult | NotReached:
        count = sum(run.curve.reaches(budget) for run in runs)
        return self.at(budget, runs) if count == len(runs) else NotReached(budget, count)

    def at(self, budget: float, runs: Sequence[ComparedRun]) -> BudgetResult:
        """At a budget that all of them spent."""
        table = self._table([run.curve.efficiency(budget) for run in runs])
        return BudgetResult(
            kl_budget=budget,
            kl_efficiency=self._interval(table),
            iqm=iqm_interval(table.mean(axis=1).tolist()),
            gain=self._interval(self._table([run.curve.gain(budget) for run in runs])),
            share=self._share(table, budget),
        )

    def _table(self, parts: Sequence[np.ndarray | None]) -> np.ndarray:
        """(S, P) of runs that share their prompts, (S, 1) of others."""
        known = [one for one in parts if one is not None]
        assert len(known) == len(parts)
        return np.array([one if self.crossed else [np.mean(one)] for one in known], dtype=np.float64)

    def _share(self, table: np.ndarray, budget: float) -> Interval | None:
        """E(K) / E*(K), whose interval is that of its linear form, prompt by prompt."""
        optimum = None if self.reference is None else self.reference.efficiency(budget)
        if optimum is None or optimum.mean() <= 0.0:
            return None
        ratio = table.mean() / optimum.mean()
        found = self._interval((table - ratio * optimum) / optimum.mean())
        shares = table.mean(axis=1) / optimum.mean()
        low, high = (None if end is None else end + ratio for end in (found.low, found.high))
        return Interval(float(ratio), low, high, float(shares.min()), float(shares.max()), found.seeds, found.method)

    def _interval(self, table: np.ndarray) -> Interval:
        """Of (S, P) parts: over seeds and prompts, or over seeds alone."""
        values = table.mean(axis=1)
        if not self.crossed:
            return interval(values.tolist())
        found = crossed_mean(table)
        method = "prompts" if found.of_these_runs else "crossed"
        ends = (found.low, found.high) if found.standard_error > 0.0 else (None, None)
        return Interval(found.value, *ends, float(values.min()), float(values.max()), len(values), method)


def scale_notes(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Where rewards or KLs of these runs may not be the same quantity; at most one sentence."""
    differing = [key for key in differing_settings(configs) if key.startswith(_SAME_SCALE)]
    if not differing:
        return []
    more = len(differing) - _KEYS_NAMED
    named = ", ".join(differing[:_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return [f"Not the same in all runs: {named}. Rewards may not be on one scale, or KL not from one initial policy."]


def short_run_notes(settings: Sequence[SettingSummary]) -> list[str]:
    """One sentence for all budgets, the smallest first; none where every run reached them."""
    counts: dict[float, tuple[int, int]] = {}
    for setting in settings:
        for budget in (setting.headline, *setting.budgets):
            short, runs = counts.get(budget.kl_budget, (0, 0))
            short += len(setting.runs) - budget.runs if isinstance(budget, NotReached) else 0
            counts[budget.kl_budget] = short, runs + len(setting.runs)
    said = [f"{short} of {runs} never reached {kl:g} nats" for kl, (short, runs) in sorted(counts.items()) if short]
    if not said:
        return []
    return [f"Of the compared runs {', '.join(said)}; where a run of a setting did not, it has no value there."]


def _notes(compared: list[ComparedRun], settings: list[SettingSummary], excluded: list[ExcludedRun]) -> list[str]:
    """What a reader of the table must know, one sentence each."""
    notes = []
    seeds = {run.record.seed for run in compared} | {run.record.seed for run in excluded}
    lacking: dict[str, list[str]] = {}
    for setting in settings:
        missing = sorted(seed for seed in seeds - set(setting.seeds) if seed is not None)
        if missing:
            lacking.setdefault(", ".join(map(str, missing)), []).append(setting.name)
    for listed, names in lacking.items():
        has = "has" if len(names) == 1 else "have"
        notes.append(f"{', '.join(names)} {has} no usable run of seed {listed}; the row rests on the others.")
    notes += short_run_notes(settings)
    for run in compared:
        notes.extend(f"{run.record.id}: {note}." for note in (*skipped_notes(run), *run.record.notes))
    notes += scale_notes([run.record.config for run in compared])
    commits = sorted({commit for run in compared if isinstance(commit := run.record.summary.get("git_commit"), str)})
    if len(commits) > 1:
        listed = ", ".join(commits[:_KEYS_NAMED]) + (" and others" if len(commits) > _KEYS_NAMED else "")
        unclean = "; + stands for changes that were not committed" * any(one.endswith("+") for one in commits)
        notes.append(f"The runs come from {len(commits)} different states of the code ({listed}{unclean}).")
    return notes


def skipped_notes(run: ComparedRun) -> list[str]:
    """Evaluations that were made and do not count; at most one sentence without its full stop."""
    count = run.evaluations.skipped
    if not count:
        return []
    some = "1 evaluation has" if count == 1 else f"{count} evaluations have"
    return [f"{some} no finite KL, reward or reward of one half of the prompts, and no point"]
