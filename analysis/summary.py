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
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.compared import BudgetResult, ComparedRun, Comparison, ExcludedRun, NotReached, OfOneSeed, SettingSummary
from analysis.crossed import Run
from analysis.evaluations import Evaluations, UnusableRunError, evaluations
from analysis.kl_efficiency import GainCurve
from analysis.labels import differing_settings
from analysis.load import RL_STAGES, RunRecord
from analysis.notes import comparison_notes, draw_notes, optimum_notes, prompt_notes, scale_notes, these
from analysis.optimum import ReferenceSamples
from analysis.parallel import mapped
from analysis.statistics import Interval, iqm_interval, run_interval, shares_draws
from rlhf.runs.state import KEPT_REFERENCES

# Sums and squares of more would not be finite.
_LARGEST = 1e100
# A run that reached less than so many nats hardly left the initial policy, and is left out where others did.
MOVED = 0.01


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
        (record, points if one is None else replace(points, baseline=one.baseline, gold_baseline=one.gold), budgets)
        for (record, points, budgets), one in zip(usable, references, strict=True)
    ]
    curves = mapped(_curve, [points for _, points, _ in usable])
    compared = [
        ComparedRun(record, points, curve, budgets, one)
        for (record, points, budgets), curve, one in zip(usable, curves, references, strict=True)
    ]
    least = MOVED if any(run.curve.largest_kl >= MOVED for run in compared) else 0.0
    still = [run for run in compared if run.curve.largest_kl < least or run.curve.largest_kl == 0.0]
    excluded += [ExcludedRun(run.record, _hardly_moved(run), stayed=True) for run in still]
    compared = [run for run in compared if run not in still]
    groups: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in compared:
        groups.setdefault((run.record.algo, run.record.label), []).append(run)
    measure = Measure(common_budget([run.curve.largest_kl for run in compared]), crossed)
    settings = [measure.setting(algo, label, runs) for (algo, label), runs in sorted(groups.items())]
    notes = [*comparison_notes(compared, settings, excluded), *prompt_notes(compared, crossed)]
    notes += [*budget_notes(settings), *optimum_notes(settings)]
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
    notes = [*scale_notes(records), *draw_notes(settings), *prompt_notes(runs, crossed), *optimum_notes(settings)]
    notes += budget_notes(settings) if kl is None else []
    return Comparison(records, settings, [], notes, crossed)


def share_prompts(runs: Sequence[tuple[RunRecord, Evaluations]]) -> bool:
    """Whether all kept numbers of the same prompts, so that they can be compared prompt by prompt. By what they said
    of their prompts, and by their number and the configs where they did not."""
    differing = set(differing_settings([record.config for record, _ in runs])) - {"dataset.kl_budgets"}
    one_task = not any(key.startswith("dataset.") for key in differing)
    prompts = {points.gains.shape[1] if points.by_prompt else 0 for _, points in runs}
    said = {points.prompts for _, points in runs} - {None}
    return one_task and len(said) <= 1 and len(prompts) == 1 and prompts != {0}


def common_budget(largest: Sequence[float]) -> float:
    """What every run reached, of the largest KL of each, nats above 0: rounded down to three digits; 0 of none."""
    if not largest:
        return 0.0
    least = min(largest)
    digit = 10.0 ** (math.floor(math.log10(least)) - 2)
    return min(least, float(f"{math.floor(least / digit) * digit:.3g}"))


def budget_notes(settings: Sequence[SettingSummary]) -> list[str]:
    """Which runs hold the budget of all far below what others reached; not of sweeps over settings, which are meant to
    spend different KLs."""
    if len({setting.algo for setting in settings}) < len(settings):
        return []
    runs = {run.record.id: run.curve.largest_kl for setting in settings for run in setting.runs}
    half = float(np.median(list(runs.values()))) / 2.0 if runs else 0.0
    short = [name for name, kl in runs.items() if kl < half]
    if not short:
        return []
    without = common_budget([kl for kl in runs.values() if kl >= half])
    return [
        f"The budget is as small as it is because of {these(short)}, which ended below half the KL of the median run; "
        f"all others reached {without:g} nats."
    ]


def _hardly_moved(run: ComparedRun) -> str:
    return f"hardly left the initial policy: its largest KL is {run.curve.largest_kl:.2g} nats"


def _references(runs: Sequence[tuple[RunRecord, Evaluations]]) -> Sequence[ReferenceSamples | None]:
    """The scores that each run names in its summary; None for all where one names none that can be read."""
    read = functools.cache(_samples)
    found = [
        read(record.folder.parent / KEPT_REFERENCES / str(record.summary.get(KEPT_REFERENCES))) for record, _ in runs
    ]
    fits = (
        one is not None
        and len(one.baseline) == points.gains.shape[1]
        and (one.prompts is None or points.prompts is None or one.prompts == points.prompts)
        for one, (_, points) in zip(found, runs, strict=True)
    )
    return found if all(fits) else [None] * len(runs)


def _samples(place: Path) -> ReferenceSamples | None:
    try:
        with np.load(place) as file:
            return ReferenceSamples(
                file["reward"],
                file["gold_reward"].mean(axis=1) if "gold_reward" in file else None,
                str(file["prompts"]) if "prompts" in file else None,
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):  # none, or a damaged one
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

        def gold(values: Sequence[float | None]) -> Interval | None:
            known = [one for one in values if one is not None and math.isfinite(one)]
            return run_interval(known, replicates) if len(known) == len(runs) else None

        return SettingSummary(
            algo=algo,
            label=label,
            runs=tuple(runs),
            reward_before=over_runs(lambda run: run.initial_reward),
            reward_after=over_runs(lambda run: run.evaluations.reward[-1]),
            gold_before=gold([run.evaluations.initial_gold for run in runs]),
            gold_after=gold([None if (one := run.evaluations.gold_reward) is None else one[-1] for run in runs]),
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
        iqm = None if shares_draws(replicates) else iqm_interval(table.mean(axis=1).tolist())
        if iqm is not None and self.crossed:  # its interval is over seeds alone, beside one over prompts too
            iqm = replace(iqm, low=None, high=None, method="none")
        return BudgetResult(
            kl_budget=budget,
            kl_efficiency=run_interval(table, replicates),
            iqm=iqm,
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
