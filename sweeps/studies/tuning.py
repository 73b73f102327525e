"""Studies to their end: trials asked, run, pruned and told, by our launchers steadily, by foreign ones in batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from hydra.plugins.launcher import Launcher
from optuna.trial import TrialState
from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import run_folder, sweep_folder
from rlhf.errors import one_line
from rlhf.runs.state import read_summary
from rlhf.terminal import console as made_console
from rlhf.terminal import tell
from sweeps.driver import Driver
from sweeps.experiment import again, count_runs, launcher_for
from sweeps.launcher import HarnessLauncher
from sweeps.resources import room_for
from sweeps.runs import Outcome
from sweeps.settings import StudySettings
from sweeps.studies.storage import only_driver, open_storage, owner_of
from sweeps.studies.study import OpenTrial, StoredStudy
from sweeps.studies.study_spec import StudySpec
from sweeps.studies.trials_report import closing_lines, count_trials, report_studies, states_of, told
from sweeps.studies.tuner import End, Tuner


def tune(specs: Sequence[StudySpec], settings: StudySettings, launcher: Launcher) -> None:
    """Every study to `n_trials` trials, those of earlier commands counted.

    Raises:
        ConfigError: a study of that name is another one, or another command is at work on it.
        sweeps.experiment.Stopped: trials failed or were interrupted.
    """
    console = made_console()
    began = time.monotonic()
    distinct = list({spec.name: spec for spec in specs}.values())
    if problems := [line for spec in distinct for line in _sampler_problems(spec, settings)]:
        raise ConfigError(list(dict.fromkeys(problems)))
    folder = sweep_folder(distinct[0].middle[0])
    with only_driver(folder):
        storage, owner = open_storage(settings, folder), owner_of(folder)
        studies = [StoredStudy(spec, settings, storage, owner) for spec in distinct]
        end = End()
        begun = [study.begin(trial) for study in studies for trial in study.left()]
        left = [one for one in begun if isinstance(one, OpenTrial)]
        _announce(studies, left, console)
        if not left and not any(study.wants_more for study in studies):
            tell(console, "all trials are there; a larger hydra.sweeper.n_trials adds some")
        elif isinstance(launcher, HarnessLauncher):
            end = _steadily(studies, left, launcher.target, settings, console)
        else:
            end = _in_batches(studies, left, launcher, console)
        report_studies(studies, folder, console)
        closing_lines(studies, end.interrupted, end.lacking, time.monotonic() - began, console)


def _sampler_problems(spec: StudySpec, settings: StudySettings) -> Iterator[str]:
    for one in spec.cell.dimensions:
        if settings.sampler == "grid" and one.points is None:
            yield f"hydra.sweeper.sampler: grid needs steps; {one.key} has none ({one}); use range(a, b, step)"
        if settings.sampler == "qmc" and one.choices:
            yield f"hydra.sweeper.sampler: qmc spreads numbers, and {one.key} is {one}; use tpe or random"


def _announce(studies: Sequence[StoredStudy], left: Sequence[OpenTrial], console: Console) -> None:
    for study in studies:
        trials, taken_up = study.trials, sum(one.study is study for one in left)
        there = f"; there: {states_of(trials)}" if trials else ""
        there += " (failed trials count)" if study.failed() else ""
        there += f", {taken_up} of them taken up again" if taken_up else ""
        size = f"{count_trials(study.target)} of {count_runs(len(study.spec.middle))}"
        tell(console, f"{study.spec.name}: {size}{there}")


def _steadily(
    studies: Sequence[StoredStudy], left: list[OpenTrial], target: str, settings: StudySettings, console: Console
) -> End:
    runs = [run for study in studies for run in study.spec.middle]
    launcher = launcher_for(runs, target)
    tell(console, launcher.open(runs))
    wanted = sum(study.target - study.started for study in studies)
    if settings.sampler == "tpe" and launcher.slots >= wanted * len(studies[0].spec.middle) > 1:
        tell(console, "every trial starts at once and learns from none; hardware.parallel_runs=N runs fewer at a time")
    end = End()
    driver = Driver(launcher, console)
    tuner = Tuner(studies, left, driver, settings.pruner != "none", end)
    try:
        with driver:
            tuner.run()
    except KeyboardInterrupt:
        folder = sweep_folder(runs[0])
        tell(console, f"the jobs go on; {again()} picks them up, python -m sweeps cancel {folder} stops them")
        end.interrupted += tuner.unfinished
    return end


def _in_batches(studies: Sequence[StoredStudy], left: list[OpenTrial], launcher: Launcher, console: Console) -> End:
    """For launchers that only tell when all is over."""
    size = max(1, room_for(studies[0].spec.middle[0])[0].runs // len(studies[0].spec.middle))
    name = type(launcher).__name__
    tell(console, f"{name} is not this project's: trials go in batches of {size}, without pruning")
    end, index = End(), 0
    decided = [one for one in left if one.cancelled is not None]
    for one in decided:  # to be pruned, by a driver that was killed
        one.study.settle(one, [])
    left = [one for one in left if one not in decided]
    while not end.interrupted and (batch := [*left, *_asked(studies, size - len(left), console)]):
        left = []
        overrides = [runs for one in batch for runs in one.study.spec.overrides(one.trial.params)]
        returns = iter(launcher.launch(overrides, initial_job_idx=index))
        index += len(overrides)
        for one in batch:
            outcomes = [_told_by(run, next(returns)) for run in one.runs.values()]
            if one.study.settle(one, outcomes) == TrialState.RUNNING:
                end.interrupted.append(one)
            else:
                tell(console, told(one.study, one.study.trials[one.trial.number]))
    return end


def _asked(studies: Sequence[StoredStudy], number: int, console: Console) -> Iterator[OpenTrial]:
    while number > 0 and (wanting := [study for study in studies if study.wants_more]):
        study = min(wanting, key=lambda study: study.started)
        one = study.ask()
        if isinstance(one, OpenTrial):
            number -= 1
            yield one
        else:
            tell(console, told(study, one))


def _told_by(run: RunConfig, result: object) -> Outcome:
    """How a foreign launcher's run ended: by its own files, or by the error that the launcher hands over."""
    summary = read_summary(run_folder(run))
    status = summary.get("status")
    if status in ("finished", "interrupted", "pruned"):
        return Outcome(run, status, summary=summary)
    try:
        reason = f"no result: {getattr(result, 'return_value', None)}"
    except Exception as error:
        reason = one_line(error)
    return Outcome(run, "failed", str(summary.get("error", reason)))
