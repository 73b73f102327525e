"""The trials of one study: asked, taken up again after a kill, and told how their runs ended."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import run_folder, run_id
from rlhf.runs.state import SUMMARY, read_summary
from sweeps.records import outcome_path, write_json
from sweeps.runs import Outcome, log_path
from sweeps.settings import StudySettings
from sweeps.studies.objective import OBJECTIVES, Measured, UnmeasuredError, measure
from sweeps.studies.samplers import RETRY_OF, place_of, pruner, sampler
from sweeps.studies.space import Dimension
from sweeps.studies.storage import budget_of, open_study
from sweeps.studies.study_spec import StudySpec

# A driver that lives marks its trial at once; one without a mark after this belongs to none.
MARKED_WITHIN_SECONDS = 3.0

# User attributes of a trial.
STOPPED = "stopped"
HOPELESS = "hopeless"


@dataclass
class OpenTrial:
    """A trial whose runs have not all ended."""

    study: StoredStudy
    trial: Trial
    runs: dict[Path, RunConfig]
    cancelled: frozenset[Path] | None = None
    """The runs that were stopped to prune it; None: it is not pruned."""
    reported: set[int] = field(default_factory=set)
    """Samples at which Optuna has been told how it goes."""

    def stop(self, folders: frozenset[Path]) -> None:
        """Prune it by stopping these runs, whatever becomes of this driver before they have stopped."""
        self.trial.set_user_attr(STOPPED, sorted(folder.name for folder in folders))
        self.cancelled = folders

    @property
    def name(self) -> str:
        return f"{self.study.spec.name} trial {self.trial.number}"


class StoredStudy:
    """One cell's study.

    In the trials' user attributes: `owner` (its driver's folder), `runs` (seed -> run id), `per_seed`, `reason`,
    `retry_of`, `hopeless` (its values cannot be together, or its runs ended without a measure), `stopped` (ids of the
    runs that were stopped to prune it).
    """

    def __init__(self, spec: StudySpec, settings: StudySettings, storage: BaseStorage, owner: str) -> None:
        self.spec = spec
        self.storage = storage
        self.objective = OBJECTIVES[settings.objective]
        self.budget = budget_of(spec, settings)
        self.target = _target(spec, settings)
        self._constraint = settings.constraint
        self._owner = owner
        self._is_grid = settings.sampler == "grid"
        self._shared = settings.storage is not None
        made = (sampler(settings, spec.cell.dimensions), pruner(settings))
        self.study = open_study(spec, settings, self.objective.directions, storage, *made)
        if settings.retry_failed:
            for failed in self.worth_retrying():
                self.study.enqueue_trial(failed.params, user_attrs={RETRY_OF: failed.number})

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def failed(self) -> list[FrozenTrial]:
        """Trials that failed and were not tried again."""
        trials = self.trials
        again = {one.user_attrs.get(RETRY_OF) for one in trials}
        return [one for one in trials if one.state == TrialState.FAIL and one.number not in again]

    def worth_retrying(self) -> list[FrozenTrial]:
        """Not those that would fail the same way."""
        return [one for one in self.failed() if HOPELESS not in one.user_attrs]

    @property
    def started(self) -> int:
        """Trials that count towards the target, whatever became of them; second tries do not."""
        return sum(RETRY_OF not in one.user_attrs and one.state != TrialState.WAITING for one in self.trials)

    @property
    def wants_more(self) -> bool:
        return self.started < self.target or any(one.state == TrialState.WAITING for one in self.trials)

    def left(self) -> list[Trial]:
        """Trials that a killed or interrupted driver of this folder left at work."""
        unmarked = {one.number for one in self._running() if "owner" not in one.user_attrs}
        if unmarked and self._shared:
            time.sleep(MARKED_WITHIN_SECONDS)
        owners = {one.number: one.user_attrs.get("owner") for one in self._running()}
        own = [
            number for number, owner in owners.items() if owner == self._owner or (owner is None and number in unmarked)
        ]
        return [Trial(self.study, self.trials[number]._trial_id) for number in own]

    def _running(self) -> list[FrozenTrial]:
        return [one for one in self.trials if one.state == TrialState.RUNNING]

    def ask(self) -> OpenTrial | FrozenTrial:
        """A new trial; as it is stored where it has ended at once: the values it got cannot be together, or a driver
        that shares the grid has taken its last point meanwhile."""
        trial = self.study.ask()
        if self._is_grid and RETRY_OF not in trial.user_attrs and place_of(self.study, trial.number) >= self.target:
            trial.set_user_attr("reason", "the grid has no point left")
            self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
            return self.trials[trial.number]
        return self.begin(trial)

    def begin(self, trial: Trial) -> OpenTrial | FrozenTrial:
        """Give a trial its values, those it has already included."""
        trial.set_user_attr("owner", self._owner)
        values = {one.key: _suggest(trial, one) for one in self.spec.cell.dimensions}
        try:
            runs = self.spec.runs(values)
        except ConfigError as error:
            trial.set_user_attr(HOPELESS, True)
            self._fail(trial, "; ".join(error.problems))
            return self.trials[trial.number]
        trial.set_user_attr("runs", {str(run.seed): run_id(run) for run in runs})
        reported = set(self.trials[trial.number].intermediate_values)
        one = OpenTrial(self, trial, {run_folder(run): run for run in runs}, reported=reported)
        if (stopped := trial.user_attrs.get(STOPPED)) is not None:
            one.cancelled = frozenset(folder for folder in one.runs if folder.name in stopped)
        return one

    def settle(self, one: OpenTrial, outcomes: Sequence[Outcome]) -> TrialState:
        """Tell how a trial's runs ended; RUNNING where they were interrupted and go on with the next command."""
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        statuses = {outcome.status for outcome in outcomes}
        whole = statuses == {"finished"} and len(outcomes) == len(one.runs)
        if "pruned" in statuses or (one.cancelled is not None and not whole):
            for folder in one.cancelled or ():
                mark_pruned(one.runs[folder])
            self.study.tell(one.trial.number, state=TrialState.PRUNED, skip_if_finished=True)
            return TrialState.PRUNED
        if failed:
            at_work = [outcome for outcome in failed if outcome.reason.startswith("LockError:")]
            if at_work:  # by the child of a driver that was killed a moment ago
                return TrialState.RUNNING
            return self._fail(one.trial, _why_failed(failed, len(outcomes)))
        return self._complete(one) if whole else TrialState.RUNNING

    def _complete(self, one: OpenTrial) -> TrialState:
        measured: dict[str, Measured] = {}
        for folder, run in one.runs.items():
            try:
                measured[str(run.seed)] = measure(folder, self.objective, self.budget)
            except UnmeasuredError as error:
                one.trial.set_user_attr(HOPELESS, True)
                return self._fail(one.trial, f"{run_id(run)}: {error}")
        per_seed = {
            seed: {**dict(zip(self.objective.values, found.values, strict=True)), "eval/kl": found.kl}
            for seed, found in measured.items()
        }
        one.trial.set_user_attr("per_seed", per_seed)
        if self._constraint and not self.trials[one.trial.number].constraints:
            one.trial.set_constraint("eval/kl", _mean([found.kl for found in measured.values()]) - self.budget)
        columns = zip(*(found.values for found in measured.values()), strict=True)
        self.study.tell(one.trial.number, [_mean(column) for column in columns], skip_if_finished=True)
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
        write_json(folder / SUMMARY, {"run_id": folder.name, **summary, "status": "pruned"})


def _target(spec: StudySpec, settings: StudySettings) -> int:
    if settings.sampler != "grid":
        return settings.n_trials
    return min(settings.n_trials, math.prod(len(one.points or []) for one in spec.cell.dimensions))


def _suggest(trial: Trial, one: Dimension) -> Any:
    """The value it has, or else a new one."""
    if one.choices:
        return trial.suggest_categorical(one.key, one.choices)
    if one.integer:
        return trial.suggest_int(one.key, int(one.low), int(one.high), step=int(one.step or 1), log=one.log)
    return trial.suggest_float(one.key, one.low, one.high, step=one.step, log=one.log)


def _why_failed(failed: Sequence[Outcome], runs: int) -> str:
    first = failed[0]
    share = f"{len(failed)} of {runs} runs failed: " if runs > 1 else ""
    log = log_path(first.run)
    return f"{share}{first.folder.name}: {first.reason}" + (f" (log: {log})" if log.is_file() else "")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
