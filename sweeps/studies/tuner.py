"""The steady loop of studies on one driver: ask, start, watch, prune, tell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.runs.lock import held_here
from rlhf.runs.state import finished
from rlhf.terminal import tell
from sweeps.driver import Driver
from sweeps.records import stop_path
from sweeps.runs import Outcome
from sweeps.studies.objective import Progress
from sweeps.studies.study import OpenTrial, StoredStudy
from sweeps.studies.trials_report import told

# A run whose driver was killed ends by itself, at its next iteration; beyond this its lock decides.
WAIT_FOR_ORPHANS = 120.0


class End:
    """What a command left undone."""

    def __init__(self) -> None:
        self.interrupted: list[OpenTrial] = []
        self.lacking: dict[Path, Outcome] = {}
        """Failed SFT or reward-model runs, without which no trial can run."""


class Tuner:
    """Keeps every slot at work: a free one gets the next trial at once, of the study that has fewest."""

    def __init__(
        self, studies: Sequence[StoredStudy], left: list[OpenTrial], driver: Driver, prunes: bool, end: End
    ) -> None:
        self._studies = list(studies)
        self._left = left
        self._driver = driver
        self._prunes = prunes
        self._end = end
        self._open: list[OpenTrial] = []
        self._ended: dict[Path, Outcome] = {}
        """Runs that ended in an earlier command, and pruned ones."""
        self._progress: dict[Path, Progress] = {}
        self._waits_until = time.monotonic() + WAIT_FOR_ORPHANS

    @property
    def unfinished(self) -> list[OpenTrial]:
        return [*self._open, *self._left]

    def run(self) -> None:
        """Until all studies have their trials, or the user stops them."""
        while True:
            self._fill()
            if not self._open and not self._left:
                return
            self._driver.step()
            if self._left and not self._driver.busy:
                time.sleep(0.1)  # for the runs of a killed driver
            if self._prunes:
                self._prune()
            self._settle()

    def _fill(self) -> None:
        if self._driver.stopping:
            self._end.interrupted += self._left
            self._left = []
            return
        for one in [one for one in self._left if self._may_start(one)]:
            self._left.remove(one)
            self._start(one)
        while len(self._driver.unfinished) - len(self._driver.blocked) < self._driver.launcher.slots:
            self._studies = [study for study in self._studies if study.wants_more]
            able = [study for study in self._studies if not self._waits_for_inputs(study)]
            if not able:
                return
            study = min(able, key=lambda study: study.started)
            one = study.ask()
            if isinstance(one, OpenTrial):
                self._start(one)
            else:
                tell(self._driver.console, told(study, one))

    def _waits_for_inputs(self, study: StoredStudy) -> bool:
        """Another trial of it would wait for the same, and learn nothing from this one."""
        if not study.spec.shares_inputs:
            return False
        blocked = self._driver.blocked
        return any(one.study is study and not blocked.isdisjoint(one.runs) for one in self._open)

    def _may_start(self, one: OpenTrial) -> bool:
        """Not while the child of a killed driver still ends its iteration; SLURM's jobs are taken over as they are."""
        waits = not self._driver.launcher.leaves_on_interrupt and time.monotonic() < self._waits_until
        return not (waits and any(held_here(folder) for folder in one.runs))

    def _start(self, one: OpenTrial) -> None:
        new = {folder: run for folder, run in one.runs.items() if self._outcome(folder) is None}
        earlier = {
            folder: Outcome(run, found["status"], summary=found)
            for folder, run in new.items()
            if (found := finished(run))
        }
        self._ended |= earlier
        self._open.append(one)
        if one.cancelled is None and any(outcome.status == "pruned" for outcome in earlier.values()):
            one.cancelled = frozenset()  # an earlier trial had these settings
        awaited = one.runs if one.cancelled is None else one.cancelled
        self._driver.add([run for folder, run in new.items() if folder in awaited and folder not in earlier])
        if one.cancelled:
            self._driver.cancel(one.cancelled)
        self._settle()

    def _outcome(self, folder: Path) -> Outcome | None:
        return self._ended.get(folder) or self._driver.outcomes.get(folder)

    def _settle(self) -> None:
        for one in list(self._open):
            awaited = one.runs if one.cancelled is None else one.cancelled
            if any(self._outcome(folder) is None for folder in awaited):
                continue
            self._open.remove(one)
            outcomes = [outcome for folder in one.runs if (outcome := self._outcome(folder))]
            if one.study.spec.shares_inputs and (lacking := self._lacking_inputs(one)):
                self._end.lacking |= {f: outcome for f, outcome in lacking.items() if outcome.status == "failed"}
                if not self._end.lacking:
                    self._end.interrupted.append(one)
                self._studies = [study for study in self._studies if study is not one.study]
                continue
            try:
                if self._prunes and one.cancelled is None:
                    list(self._report(one))  # what runs reached since they were last looked at, for later trials
                state = one.study.settle(one, outcomes)
            except UpdateFinishedTrialError:
                tell(self._driver.console, f"{one.name}: told by another process")
                continue
            if state == TrialState.PRUNED:
                stopped = [self._outcome(folder) for folder in one.cancelled or ()]
                self._ended |= {o.folder: Outcome(o.run, "pruned") for o in stopped if o and o.status != "finished"}
            if state == TrialState.RUNNING:
                self._end.interrupted.append(one)
                if any(stop_path(run).exists() for run in one.runs.values()):
                    self._studies = []  # `python -m sweeps cancel` means the sweep
            else:
                tell(self._driver.console, told(one.study, one.study.trials[one.trial.number]))

    def _lacking_inputs(self, one: OpenTrial) -> dict[Path, Outcome]:
        """SFT or reward-model runs that did not finish: no trial's fault, and the next trial would lack them too."""
        needed = {run_folder(need) for run in one.runs.values() for need in input_runs(run)}
        found = {folder: self._driver.outcomes.get(folder) for folder in needed}
        return {folder: outcome for folder, outcome in found.items() if outcome and outcome.status != "finished"}

    def _prune(self) -> None:
        for one in self._open:
            try:
                if one.cancelled is not None or not self._should_prune(one):
                    continue
            except UpdateFinishedTrialError:
                continue  # by another process; its runs go on, and settling says so
            others = {folder for other in self._open if other is not one for folder in other.runs}
            chosen = frozenset(one.runs) - others
            if stopped := frozenset(folder for folder in chosen if self._outcome(folder) is None):
                one.stop(stopped)
                self._driver.cancel(stopped)

    def _should_prune(self, one: OpenTrial) -> bool:
        last = _last_samples(next(iter(one.runs.values())))
        return any(samples < last and one.trial.should_prune() for samples in self._report(one))

    def _report(self, one: OpenTrial) -> Iterator[int]:
        """Tell the study the mean over seeds at every evaluation that all seeds have reached, one by one."""
        for folder in one.runs:
            if folder not in self._progress:
                self._progress[folder] = Progress(folder, one.study.objective, one.study.budget)
            self._progress[folder].look()
        reached = [self._progress[folder].by_samples for folder in one.runs]
        for samples in sorted(set.intersection(*map(set, reached)) - one.reported):
            one.reported.add(samples)
            one.trial.report(sum(values[samples] for values in reached) / len(reached), samples)
            yield samples


def _last_samples(run: RunConfig) -> int:
    return run.rollout.iterations * run.rollout.num_responses
