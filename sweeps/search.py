"""Studies to their end on one driver: trials asked, started, watched, pruned and told."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_folder, sweep_folder
from rlhf.runs.lock import held_here
from rlhf.runs.state import finished
from rlhf.terminal import console as made_console
from rlhf.terminal import tell
from sweeps.driver import Driver
from sweeps.experiment import check_before_start, jobs_go_on, launcher_for
from sweeps.machine import counted
from sweeps.runs import Outcome, stop_path
from sweeps.settings import StudySettings
from sweeps.study import OpenTrial, StoredStudy, mark_pruned
from sweeps.study_spec import ObjectiveSoFar, StudySpec
from sweeps.study_storage import only_driver, open_storage, owner_of
from sweeps.trials_report import closing_lines, line_on, report_studies, states_of

# A run whose driver was killed ends by itself, at its next iteration; beyond this its lock decides.
WAIT_FOR_ORPHANS = 120.0


def search(specs: Sequence[StudySpec], settings: StudySettings, target: str) -> None:
    """Every study to `n_trials` trials, those of earlier commands counted.

    Args:
        target: what a run is, "module:function".

    Raises:
        ConfigError: a study of that name is another one, or another command is at work on it.
        sweeps.runs.Stopped: trials failed or were interrupted.
    """
    console = made_console()
    began = time.monotonic()
    distinct = list({spec.name: spec for spec in specs}.values())
    if problems := [line for spec in distinct for line in _sampler_problems(spec, settings)]:
        raise ConfigError(list(dict.fromkeys(problems)))
    check_before_start([run for spec in distinct for run in spec.middle], target)
    folder = sweep_folder(distinct[0].middle[0])
    with only_driver(folder):
        storage, owner = open_storage(settings, folder), owner_of(folder)
        studies = [StoredStudy(spec, settings, storage, owner) for spec in distinct]
        stopping = {folder: run for study in studies for folder, run in study.left_stopping().items()}
        begun = [study.begin(trial) for study in studies for trial in study.left_running()]
        taken_up = [opened for opened in begun if isinstance(opened, OpenTrial)]
        _announce(studies, taken_up, console)
        searcher = None
        if not taken_up and not stopping and not any(study.wants_more for study in studies):
            tell(console, "all trials are there; a larger hydra.sweeper.n_trials adds some")
        else:
            driver = _driver(studies, settings, target, console)
            searcher = _Searcher(list(studies), taken_up, stopping, driver, settings.pruner != "none")
            searcher.run()
        report_studies(studies, folder, console)
        interrupted, failed_inputs = (searcher.interrupted, searcher.failed_inputs) if searcher else ([], {})
        closing_lines(studies, interrupted, failed_inputs, time.monotonic() - began, console)


def _sampler_problems(spec: StudySpec, settings: StudySettings) -> Iterator[str]:
    for dimension in spec.cell.dimensions:
        key = dimension.key
        if settings.sampler == "grid" and dimension.points is None:
            yield f"hydra.sweeper.sampler: grid needs steps; {key} has none ({dimension}); use range(a, b, step)"
        if settings.sampler == "qmc" and dimension.choices:
            yield f"hydra.sweeper.sampler: qmc spreads numbers, and {key} is {dimension}; use tpe or random"


def _announce(studies: Sequence[StoredStudy], left: Sequence[OpenTrial], console: Console) -> None:
    for study in studies:
        trials, taken_up = study.trials, sum(opened.study is study for opened in left)
        there = f"; there: {states_of(trials)}" if trials else ""
        there += " (failed trials count)" if study.failed() else ""
        there += f", {taken_up} of them taken up again" if taken_up else ""
        size = f"{counted(study.target, 'trial')} of {counted(len(study.spec.middle), 'run')}"
        tell(console, f"{study.spec.name}: {size}{there}")


def _driver(studies: Sequence[StoredStudy], settings: StudySettings, target: str, console: Console) -> Driver:
    runs = [run for study in studies for run in study.spec.middle]
    launcher = launcher_for(runs, target)
    tell(console, launcher.open(runs))
    wanted = sum(study.target - study.started for study in studies)
    if settings.sampler == "tpe" and launcher.slots >= wanted * len(studies[0].spec.middle) > 1:
        tell(console, "every trial starts at once and learns from none; hardware.parallel_runs=N runs fewer at a time")
    return Driver(launcher, console)


@dataclass
class _Searcher:
    """Keeps every slot at work: a free one gets the next trial at once, of the study that has fewest."""

    studies: list[StoredStudy]
    taken_up: list[OpenTrial]
    """Trials of an earlier command that have not begun again."""
    to_stop: dict[Path, RunConfig]
    """Runs that an earlier command had no time to stop."""
    driver: Driver
    prunes: bool
    interrupted: list[OpenTrial] = field(default_factory=list)
    failed_inputs: dict[Path, Outcome] = field(default_factory=dict)
    """SFT or reward-model runs without which no trial can run."""
    _open: list[OpenTrial] = field(default_factory=list)
    _stopping: dict[Path, RunConfig] = field(default_factory=dict)
    """Runs of pruned trials that have not ended."""
    _ended: dict[Path, Outcome] = field(default_factory=dict)
    """Runs that ended in an earlier command, and pruned ones."""
    _so_far: dict[Path, ObjectiveSoFar] = field(default_factory=dict)
    _waits_until: float = field(default_factory=lambda: time.monotonic() + WAIT_FOR_ORPHANS)

    def run(self) -> None:
        """Until all studies have their trials, or the user stops them."""
        folder = sweep_folder(self.studies[0].spec.middle[0])
        try:
            with self.driver:
                while self._fill():
                    self.driver.step()
                    if (self.taken_up or self.to_stop) and not self.driver.busy:
                        time.sleep(0.1)  # for the runs of a killed driver
                    if self.prunes:
                        self._prune()
                    self._tell_ended()
        except KeyboardInterrupt:
            jobs_go_on(folder, self.driver.console)
            self.interrupted += [*self._open, *self.taken_up]

    def _fill(self) -> bool:
        """Start what there is room for; returns whether anything is at work or waits."""
        if self.driver.stopping:
            self.interrupted += self.taken_up
            self.taken_up = []
            return bool(self._open or self._stopping)
        if ended := {folder: run for folder, run in self.to_stop.items() if self._is_free([folder])}:
            self.to_stop = {folder: run for folder, run in self.to_stop.items() if folder not in ended}
            self._stopping |= ended
            self.driver.add(ended.values())  # a job in SLURM's queue is taken over
            self.driver.cancel(ended)
        for opened in [opened for opened in self.taken_up if self._is_free(opened.runs)]:
            self.taken_up.remove(opened)
            self._start(opened)
        while len(self.driver.unfinished) - len(self.driver.blocked) < self.driver.launcher.slots:
            self.studies = [study for study in self.studies if study.wants_more]
            able = [study for study in self.studies if not self._waits_for_inputs(study)]
            if not able:
                break
            study = min(able, key=lambda study: study.started)
            asked = study.ask()
            if isinstance(asked, FrozenTrial):
                tell(self.driver.console, line_on(study, asked))
            else:
                self._start(asked)
        return bool(self._open or self.taken_up or self._stopping or self.to_stop)

    def _waits_for_inputs(self, study: StoredStudy) -> bool:
        """Another trial of it would wait for the same, and learn nothing from this one."""
        if not study.spec.shares_inputs:
            return False
        blocked = self.driver.blocked
        return any(opened.study is study and not blocked.isdisjoint(opened.runs) for opened in self._open)

    def _is_free(self, folders: Iterable[Path]) -> bool:
        """Not while the child of a killed driver still ends its iteration; SLURM's jobs are taken over as they are."""
        waits = not self.driver.launcher.leaves_on_interrupt and time.monotonic() < self._waits_until
        return not (waits and any(map(held_here, folders)))

    def _start(self, opened: OpenTrial) -> None:
        new = {folder: run for folder, run in opened.runs.items() if self._outcome(folder) is None}
        earlier = {
            folder: Outcome(run, summary["status"], summary=summary)
            for folder, run in new.items()
            if (summary := finished(run))
        }
        self._ended |= earlier
        if any(outcome.status == "pruned" for outcome in earlier.values()):  # an earlier trial had these settings
            self._tell(opened)
            return
        self._open.append(opened)
        self.driver.add([run for folder, run in new.items() if folder not in earlier])
        self._tell_ended()

    def _outcome(self, folder: Path) -> Outcome | None:
        return self._ended.get(folder) or self.driver.outcomes.get(folder)

    def _tell_ended(self) -> None:
        for folder in self._stopping.keys() & self.driver.outcomes.keys():
            run = self._stopping.pop(folder)
            if self.driver.outcomes[folder].status != "finished":
                mark_pruned(run)
                self._ended[folder] = Outcome(run, "pruned")
        for opened in list(self._open):
            if all(self._outcome(folder) is not None for folder in opened.runs):
                self._open.remove(opened)
                self._tell(opened)

    def _tell(self, opened: OpenTrial) -> None:
        outcomes = [outcome for folder in opened.runs if (outcome := self._outcome(folder))]
        needed = {run_folder(need) for run in opened.runs.values() for need in input_runs(run)}
        missing = [o for need in needed if (o := self.driver.outcomes.get(need)) and o.status != "finished"]
        if missing and opened.study.spec.shares_inputs:  # no trial's fault, and the next trial would lack them too
            self.failed_inputs |= {outcome.folder: outcome for outcome in missing if outcome.status == "failed"}
            if not self.failed_inputs:
                self.interrupted.append(opened)
            self.studies = [study for study in self.studies if study is not opened.study]
            return
        try:
            if self.prunes and all(outcome.status != "pruned" for outcome in outcomes):
                list(self._report(opened))  # what runs reached since they were last looked at, for later trials
            state = opened.study.tell(opened, outcomes)
        except UpdateFinishedTrialError:
            tell(self.driver.console, f"{opened.name}: told by another process")
            return
        if state == TrialState.RUNNING:
            self.interrupted.append(opened)
            if any(stop_path(run).exists() for run in opened.runs.values()):
                self.studies = []  # `python -m sweeps cancel` means the sweep
        else:
            tell(self.driver.console, line_on(opened.study, opened.study.trial(opened.trial.number)))

    def _prune(self) -> None:
        for opened in list(self._open):
            others = {folder for other in self._open if other is not opened for folder in other.runs}
            to_stop = [folder for folder in opened.runs if folder not in others and self._outcome(folder) is None]
            rollout = next(iter(opened.runs.values())).rollout
            last = rollout.iterations * rollout.num_responses
            try:
                worse = any(samples < last and opened.trial.should_prune() for samples in self._report(opened))
            except UpdateFinishedTrialError:
                continue  # by another process; its runs go on, and `_tell` says so
            if not (worse and to_stop):
                continue
            self._open.remove(opened)
            opened.study.prune(opened, to_stop)
            self._stopping |= {folder: opened.runs[folder] for folder in to_stop}
            self.driver.cancel(to_stop)
            tell(self.driver.console, line_on(opened.study, opened.study.trial(opened.trial.number)))

    def _report(self, opened: OpenTrial) -> Iterator[int]:
        """Tell the study the mean over seeds at every evaluation that all seeds have reached, one by one."""
        for folder in opened.runs:
            if folder not in self._so_far:
                self._so_far[folder] = ObjectiveSoFar(folder, opened.study.objective, opened.study.budget)
            self._so_far[folder].read()
        reached = [self._so_far[folder].by_samples for folder in opened.runs]
        for samples in sorted(set.intersection(*map(set, reached)) - opened.reported):
            opened.reported.add(samples)
            opened.trial.report(sum(values[samples] for values in reached) / len(reached), samples)
            yield samples
