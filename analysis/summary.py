"""Runs -> one row per algorithm and setting, with intervals over runs, and all that has to be said beside it.

Runs that differ in `seed`, `sft.seed` or `reward_model.seed` alone are repetitions of one setting. Each is read against
the reference samples of its own initial policy, scored by its own reward model. A reward model's unit is its own: the
standard deviation of its scores of reference answers (`reward_model.normalize=mean_std`), which makes gains by several
of them alike in size, and their mean a gain in such deviations. The share of the optimum has no unit, each run's E(K)
being divided by the optimum for its own initial policy and reward model, and can always be averaged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from analysis.crossed import Run, sampled_axes
from analysis.evaluations import Evaluations, UnusableRunError, evaluations
from analysis.kl_efficiency import GainCurve
from analysis.labels import REPLICATES, differing_settings, named
from analysis.load import RL_STAGES, RunRecord
from analysis.optimum import ReferenceSamples
from analysis.parallel import mapped
from analysis.statistics import Interval, iqm_interval, run_interval, shares_draws
from rlhf.runs.state import KEPT_REFERENCES

# Sums and squares of more would not be finite.
_LARGEST = 1e100
# Settings that make a reward another quantity, or a KL one from another policy.
_SAME_SCALE = ("dataset.", "model.", "reward.", "reward_model.", "sft.")
_KEYS_NAMED = 4
# A run that reached less than so many nats hardly left the initial policy, and is left out where others did.
MOVED = 0.01


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
    taken: dict[tuple[str, str, Run], str] = {}
    for record in records:
        if record.stage not in RL_STAGES:
            continue
        try:
            found = _usable(record)
            place = (record.algo, record.label, record.replicate)
            if place in taken:
                raise UnusableRunError(f"of the same algorithm, settings and seed as {taken[place]}, which counts")
            taken[place] = record.id
            usable.append((record, *found))
        except UnusableRunError as error:
            excluded.append(ExcludedRun(record, str(error)))
    crossed = share_prompts([(record, points) for record, points, _ in usable])
    references = _references([(record, points) for record, points, _ in usable]) if crossed else [None] * len(usable)
    usable = [
        (record, points if one is None else evaluations(record, one.baseline), budgets)
        for (record, points, budgets), one in zip(usable, references, strict=True)
    ]
    curves = mapped(_curve, [points for _, points, _ in usable])
    compared = [
        ComparedRun(record, points, curve, budgets, one)
        for (record, points, budgets), curve, one in zip(usable, curves, references, strict=True)
    ]
    least = MOVED if any(run.curve.largest_kl >= MOVED for run in compared) else 0.0
    still = [run for run in compared if run.curve.largest_kl < least or run.curve.largest_kl == 0.0]
    excluded += [ExcludedRun(run.record, _hardly_moved(run)) for run in still]
    compared = [run for run in compared if run not in still]
    groups: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in compared:
        groups.setdefault((run.record.algo, run.record.label), []).append(run)
    measure = Measure(common_budget([run.curve.largest_kl for run in compared]), crossed)
    settings = [measure.setting(algo, label, runs) for (algo, label), runs in sorted(groups.items())]
    notes = _notes(compared, settings, excluded)
    return Comparison(list(records), settings, excluded, notes, crossed)


def together(sides: Mapping[str, SettingSummary], kl: float | None = None) -> Comparison:
    """Settings of any sweeps, measured alike and at one budget: by name, in their order.

    Args:
        kl: nats, which every run reached; None: the largest such.
    """
    runs = [run for setting in sides.values() for run in setting.runs]
    records = [run.record for run in runs]
    crossed = share_prompts([(run.record, run.evaluations) for run in runs])
    common = common_budget([run.curve.largest_kl for run in runs]) if kl is None else kl
    measure = Measure(common, crossed)
    settings = [measure.setting(name, "", list(setting.runs)) for name, setting in sides.items()]
    return Comparison(records, settings, [], [*scale_notes(records), *_draw_notes(settings)], crossed)


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


def _references(runs: Sequence[tuple[RunRecord, Evaluations]]) -> Sequence[ReferenceSamples | None]:
    """The scores that each run names in its summary; None for all where one names none that can be read."""
    read = functools.cache(_samples)
    found = [
        read(record.folder.parent / KEPT_REFERENCES / str(record.summary.get(KEPT_REFERENCES))) for record, _ in runs
    ]
    fits = (
        one is not None and len(one.baseline) == points.gains.shape[1]
        for one, (_, points) in zip(found, runs, strict=True)
    )
    return found if all(fits) else [None] * len(runs)


def _samples(place: Path) -> ReferenceSamples | None:
    try:
        with np.load(place) as file:
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
class Measure:
    """How settings are measured, which is the same for all of a comparison."""

    common: float  # nats that every run reached
    crossed: bool

    def setting(self, algo: str, label: str, runs: list[ComparedRun]) -> SettingSummary:
        runs = sorted(runs, key=lambda run: (*(one or 0 for one in run.record.replicate), run.record.id))
        replicates = [run.record.replicate for run in runs]

        def over_runs(value: Callable[[ComparedRun], float]) -> Interval:
            return run_interval([value(run) for run in runs], replicates)

        def gold(index: int) -> Interval | None:
            values = [run.evaluations.gold_reward[index] for run in runs if run.evaluations.gold_reward is not None]
            return run_interval(values, replicates) if len(values) == len(runs) and np.isfinite(values).all() else None

        return SettingSummary(
            algo=algo,
            label=label,
            runs=tuple(runs),
            reward_before=over_runs(lambda run: run.evaluations.reward[0]),
            reward_after=over_runs(lambda run: run.evaluations.reward[-1]),
            gold_before=gold(0),
            gold_after=gold(-1),
            kl=over_runs(lambda run: run.evaluations.kl[-1]),
            headline=self.at(self.common, runs),
            budgets=tuple(self.within(budget, runs) for budget in sorted(runs[0].kl_budgets)),
        )

    def within(self, budget: float, runs: Sequence[OfOneSeed]) -> BudgetResult | NotReached:
        count = sum(run.curve.reaches(budget) for run in runs)
        return self.at(budget, runs) if count == len(runs) else NotReached(budget, count)

    def at(self, budget: float, runs: Sequence[OfOneSeed]) -> BudgetResult:
        """At a budget that all of them reached."""
        replicates = [run.record.replicate for run in runs]
        table = self._table([run.curve.efficiency(budget) for run in runs])
        shares = shares_of_optimum(runs, budget) if self.crossed else None
        return BudgetResult(
            kl_budget=budget,
            kl_efficiency=run_interval(table, replicates),
            iqm=None if shares_draws(replicates) else iqm_interval(table.mean(axis=1).tolist()),
            gain=run_interval(self._table([run.curve.gain(budget) for run in runs]), replicates),
            share=None if shares is None else run_interval(shares, replicates),
        )

    def _table(self, parts: Sequence[np.ndarray | None]) -> np.ndarray:
        """(S, P) of runs that share their prompts, (S, 1) of others."""
        known = [one for one in parts if one is not None]
        assert len(known) == len(parts)
        return np.array([one if self.crossed else [np.mean(one)] for one in known], dtype=np.float64)


def shares_of_optimum(runs: Sequence[OfOneSeed], budget: float) -> np.ndarray | None:
    """(S, P) whose mean over prompts is each run's share, E(K) / E*(K), at a budget that all reached, and whose spread
    over prompts is that of its linear form. None where the samples of a run cannot see as far."""
    of_samples = {id(run.reference): run.reference and run.reference.efficiency(budget) for run in runs}
    parts = []
    for run in runs:
        optimum, own = of_samples[id(run.reference)], run.curve.efficiency(budget)
        if optimum is None or own is None or optimum.mean() <= 0.0:
            return None
        share = own.mean() / optimum.mean()
        parts.append(share + (own - share * optimum) / optimum.mean())
    return np.array(parts)


def scale_notes(records: Sequence[RunRecord]) -> list[str]:
    """Where rewards or KLs of these runs may not be the same quantity."""
    notes = []
    differing = [key for key in differing_settings([one.config for one in records]) if key.startswith(_SAME_SCALE)]
    if differing:
        said = "Rewards may not be on one scale, or KL not from one initial policy."
        notes.append(f"Not the same in all runs: {_first(differing)}. {said}")
    unit = {one.setting("reward_model.normalize") for one in records} - {"mean_std", None}
    if unit and len({one.replicate[:-1] for one in records}) > 1:
        notes.append(
            "The reward models of several seeds have units of their own (reward_model.normalize is not mean_std): go "
            "by the share of the optimum, which has none."
        )
    return notes


def _draw_notes(settings: Sequence[SettingSummary]) -> list[str]:
    """Where settings are compared that do not start from the same SFT policies and reward models."""
    drawn = {frozenset(run[:-1] for run in setting.replicates) for setting in settings}
    if len(drawn) < 2:
        return []
    return ["Not all settings have runs of the same sft.seed and reward_model.seed: they differ by these, too."]


def _named_replicates(runs: Sequence[Run]) -> dict[Run, str]:
    """In order: by what they differ in, `3`, or `3 (sft.seed=1, reward_model.seed=0)`; runs without a seed left out."""
    outer = [axis for axis in sampled_axes(runs, least=2) if axis + 1 < len(REPLICATES)] if runs else []
    return {
        run: str(run[-1]) + (f" ({', '.join(f'{REPLICATES[axis]}={run[axis]}' for axis in outer)})" if outer else "")
        for run in sorted((run for run in runs if run[-1] is not None), key=lambda run: [one or 0 for one in run])
    }


def _first(names: Sequence[str]) -> str:
    more = len(names) - _KEYS_NAMED
    return ", ".join(names[:_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")


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
    drawn = {run.record.replicate for run in compared} | {run.record.replicate for run in excluded}
    named = _named_replicates(list(drawn))
    lacking: dict[str, list[str]] = {}
    for setting in settings:
        missing = [named[one] for one in named if one not in setting.replicates]
        if missing:
            lacking.setdefault(_first(missing), []).append(setting.name)
    for listed, names in lacking.items():
        has = "has" if len(names) == 1 else "have"
        notes.append(f"{', '.join(names)} {has} no usable run of seed {listed}; the row rests on the others.")
    notes += short_run_notes(settings)
    for run in compared:
        notes.extend(f"{run.record.id}: {note}." for note in (*skipped_notes(run), *run.record.notes))
    notes += [*scale_notes([run.record for run in compared]), *_draw_notes(settings)]
    commits = sorted({commit for run in compared if isinstance(commit := run.record.summary.get("git_commit"), str)})
    if len(commits) > 1:
        unclean = "; + stands for changes that were not committed" * any(one.endswith("+") for one in commits)
        notes.append(f"The runs come from {len(commits)} different states of the code ({_first(commits)}{unclean}).")
    return notes


def skipped_notes(run: ComparedRun) -> list[str]:
    """Evaluations that were made and do not count; at most one sentence without its full stop."""
    count = run.evaluations.skipped
    if not count:
        return []
    some = "1 evaluation has" if count == 1 else f"{count} evaluations have"
    return [f"{some} no finite KL, reward or reward of one half of the prompts, and no point"]
