"""One Optuna study: its trials are asked, taken up again after a kill, and told."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import run_folder, run_id, sweep_folder
from rlhf.runs.state import OVER, read_summary
from sweeps.grid import Dimension
from sweeps.runs import JOBS, Outcome, log_path, outcome_path, read_json, write_json
from sweeps.settings import StudySettings
from sweeps.study_spec import OBJECTIVES, StudySpec, UnmeasuredError, measure
from sweeps.study_storage import budget_of, open_study

# A driver that lives marks its trial at once; one without a mark after this belongs to none.
MARKED_WITHIN_SECONDS = 3.0

# Trials whose runs are compared with the medians of others begin after so many.
TRIALS_BEFORE_PRUNING = 4

# User attributes of a trial, beside `runs` (seed -> run id), `per_seed` and `reason`.
OWNER = "owner"  # its driver's folder
POINT = "point"  # its place in the grid
RETRY_OF = "retry_of"  # the number of the failed trial whose values it has
STOPPED = "stopped"  # ids of the runs that were stopped to prune it
PERMANENT = "permanent"  # a failure that would come again: its values cannot be together, or its runs have no measure


@dataclass
class OpenTrial:
    """A trial whose runs have not all ended."""

    study: StoredStudy
    trial: Trial
    runs: dict[Path, RunConfig]
    reported: set[int] = field(default_factory=set)
    """Samples at which Optuna has been told how it goes."""

    @property
    def name(self) -> str:
        return f"{self.study.spec.name} trial {self.trial.number}"


class StoredStudy:
    """A study in its storage, by ask and tell."""

    def __init__(self, spec: StudySpec, settings: StudySettings, storage: BaseStorage, owner: str) -> None:
        """Args: owner: which drivers' trials are taken up again.

        Raises:
            ConfigError: a study of that name is there and searches something else.
        """
        self.spec = spec
        self.storage = storage
        self.objective = OBJECTIVES[settings.objective]
        self.budget = budget_of(spec, settings)
        self._settings = settings
        self._owner = owner
        dimensions = spec.cell.dimensions
        made = (sampler(settings, dimensions), pruner(settings))
        self.study = open_study(spec, settings, self.objective.directions, storage, *made)
        self.target = settings.n_trials
        if settings.sampler == "grid":
            points = [dimension.points or [] for dimension in dimensions]
            self.target = min(self.target, math.prod(map(len, points)))
            there = {trial.user_attrs.get(POINT) for trial in self.study.get_trials(deepcopy=False)}
            # A queue: each point once, in order, also where drivers share the study.
            for place, point in enumerate(itertools.islice(itertools.product(*points), self.target)):
                if place not in there:
                    values = {dimension.key: v for dimension, v in zip(dimensions, point, strict=True)}
                    self.study.enqueue_trial(values, user_attrs={POINT: place})
        if settings.retry_failed:
            for failed in self.worth_retrying():
                self.study.enqueue_trial(failed.params, user_attrs={RETRY_OF: failed.number})

    @property
    def trials(self) -> list[FrozenTrial]:
        """All that have begun."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def failed(self) -> list[FrozenTrial]:
        """Trials that failed and were not tried again."""
        trials = self.study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        return [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in again]

    def worth_retrying(self) -> list[FrozenTrial]:
        return [trial for trial in self.failed() if PERMANENT not in trial.user_attrs]

    @property
    def started(self) -> int:
        """Trials that count towards the target, whatever became of them; second tries do not."""
        return sum(RETRY_OF not in trial.user_attrs for trial in self.trials)

    @property
    def wants_more(self) -> bool:
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return bool(waiting) or self.started < self.target

    def left_running(self) -> list[Trial]:
        """Trials that a killed or interrupted driver of this folder left at work."""

        def running() -> dict[int, Any]:
            trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return {trial.number: trial.user_attrs.get(OWNER) for trial in trials}

        unmarked = {number for number, owner in running().items() if owner is None}
        if unmarked and self._settings.storage is not None:
            time.sleep(MARKED_WITHIN_SECONDS)
        ours = [
            number
            for number, owner in running().items()
            if owner == self._owner or (owner is None and number in unmarked)
        ]
        study = self.storage.get_study_id_from_name(self.spec.name)
        find = self.storage.get_trial_id_from_study_id_trial_number
        return [Trial(self.study, find(study, number)) for number in ours]

    def ask(self) -> OpenTrial | FrozenTrial:
        """A new trial; as it is stored where it has ended at once: the values it got cannot be together, or a driver
        that shares the grid has taken its last point meanwhile."""
        trial = self.study.ask()
        if self._settings.sampler == "grid" and not trial.user_attrs.keys() & {POINT, RETRY_OF}:
            trial.set_user_attr("reason", "the grid has no point left")
            self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
            return self.trial(trial.number)
        return self.begin(trial)

    def begin(self, trial: Trial) -> OpenTrial | FrozenTrial:
        """Give a trial its values, those it has already included."""
        trial.set_user_attr(OWNER, self._owner)
        values = {dimension.key: _suggest(trial, dimension) for dimension in self.spec.cell.dimensions}
        try:
            runs = self.spec.runs(values)
        except ConfigError as error:
            trial.set_user_attr(PERMANENT, True)
            self._fail(trial, "; ".join(error.problems))
            return self.trial(trial.number)
        trial.set_user_attr("runs", {str(run.seed): run_id(run) for run in runs})
        reported = set(self.trial(trial.number).intermediate_values)
        return OpenTrial(self, trial, {run_folder(run): run for run in runs}, reported)

    def prune(self, opened: OpenTrial, stopped: Collection[Path]) -> None:
        """End a trial by stopping these of its runs, whatever becomes of this driver before they have stopped."""
        opened.trial.set_user_attr(STOPPED, sorted(folder.name for folder in stopped))
        self.study.tell(opened.trial.number, state=TrialState.PRUNED, skip_if_finished=True)

    def left_stopping(self) -> dict[Path, RunConfig]:
        """Runs of pruned trials that a driver of this folder, which was killed, had no time to stop."""
        folder = sweep_folder(self.spec.middle[0])
        left: dict[Path, RunConfig] = {}
        for trial in self.trials:
            if STOPPED not in trial.user_attrs or trial.user_attrs[OWNER] != self._owner:
                continue
            self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
            names = [
                name
                for name in trial.user_attrs[STOPPED]
                if read_summary(folder / name).get("status") not in OVER
                and read_json(folder / JOBS / f"{name}.outcome").get("status") != "pruned"
            ]
            if names:
                left |= {run_folder(run): run for run in self.spec.runs(trial.params) if run_id(run) in names}
        return left

    def tell(self, opened: OpenTrial, outcomes: Sequence[Outcome]) -> TrialState:
        """Say how a trial's runs ended; RUNNING where they were interrupted and go on with the next command."""
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        statuses = {outcome.status for outcome in outcomes}
        if "pruned" in statuses:  # another trial had its settings
            self.study.tell(opened.trial.number, state=TrialState.PRUNED, skip_if_finished=True)
            return TrialState.PRUNED
        if any(outcome.cause == "locked" for outcome in failed):
            return TrialState.RUNNING  # the child of a driver that was killed a moment ago is at work on it
        if failed:
            share = f"{len(failed)} of {len(outcomes)} runs failed: " if len(outcomes) > 1 else ""
            log = log_path(failed[0].run)
            where = f" (log: {log})" if log.is_file() else ""
            return self._fail(opened.trial, f"{share}{failed[0].folder.name}: {failed[0].reason}{where}")
        return self._complete(opened) if statuses == {"finished"} else TrialState.RUNNING

    def _complete(self, opened: OpenTrial) -> TrialState:
        per_seed: dict[str, dict[str, float]] = {}
        for folder, run in opened.runs.items():
            try:
                per_seed[str(run.seed)] = measure(folder, self.objective, self.budget)
            except UnmeasuredError as error:
                opened.trial.set_user_attr(PERMANENT, True)
                return self._fail(opened.trial, f"{run_id(run)}: {error}")

        def mean(name: str) -> float:
            return math.fsum(of_seed[name] for of_seed in per_seed.values()) / len(per_seed)

        opened.trial.set_user_attr("per_seed", per_seed)
        if self._settings.constraint and not self.trial(opened.trial.number).constraints:
            opened.trial.set_constraint("eval/kl", mean("eval/kl") - self.budget)
        self.study.tell(opened.trial.number, [mean(name) for name in self.objective.values], skip_if_finished=True)
        return TrialState.COMPLETE

    def _fail(self, trial: Trial, reason: str) -> TrialState:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        return TrialState.FAIL


def mark_pruned(run: RunConfig) -> None:
    """A run that was stopped for good; one that waited still has no folder, and one that finished stays finished."""
    folder = run_folder(run)
    summary = read_summary(folder)
    if summary.get("status") == "finished":
        return
    write_json(outcome_path(run), {"status": "pruned", "reason": ""})  # for `python -m sweeps`
    if folder.is_dir():
        write_json(folder / "summary.json", {"run_id": folder.name, **summary, "status": "pruned"})


def sampler(settings: StudySettings, dimensions: Sequence[Dimension]) -> BaseSampler:
    """Optuna's, so seeded that a study which was killed goes on without repeating itself; a grid is a queue."""
    if settings.sampler == "qmc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Its place in the sequence is kept in the study, for one seed.
            return _QMCFromTheFirstTrial(dimensions, settings.sampler_seed)
    kind = optuna.samplers.TPESampler if settings.sampler == "tpe" else optuna.samplers.RandomSampler
    return _seeded_by_trial(kind, settings.sampler_seed)


def _seeded_by_trial(kind: type[Any], seed: int) -> BaseSampler:
    """Draws as a function of (seed, number of the trial); a plain sampler begins its sequence again on resume."""

    class Seeded(kind):
        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            super().__init__(seed=int(np.random.SeedSequence([seed, trial.number]).generate_state(1)[0]))
            super().before_trial(study, trial)

    return Seeded(seed=seed)


class _QMCFromTheFirstTrial(optuna.samplers.QMCSampler):
    """Optuna's own draws at random, each time anew, until one trial has ended."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._space = {dimension.key: distribution(dimension) for dimension in dimensions}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space


def pruner(settings: StudySettings) -> optuna.pruners.BasePruner:
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING)
    return optuna.pruners.SuccessiveHalvingPruner() if settings.pruner == "halving" else optuna.pruners.NopPruner()


def distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices:
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    if dimension.integer:
        return optuna.distributions.IntDistribution(**_bounds(dimension))
    return optuna.distributions.FloatDistribution(**_bounds(dimension))


def _suggest(trial: Trial, dimension: Dimension) -> Any:
    """The value it has, or else a new one."""
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    return (trial.suggest_int if dimension.integer else trial.suggest_float)(dimension.key, **_bounds(dimension))


def _bounds(dimension: Dimension) -> dict[str, Any]:
    low, high, step, log = dimension.low, dimension.high, dimension.step, dimension.log
    if dimension.integer:
        return {"low": int(low), "high": int(high), "step": int(step or 1), "log": log}
    return {"low": low, "high": high, "step": step, "log": log}
