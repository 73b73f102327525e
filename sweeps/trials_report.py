"""What studies came to: a line for each trial, a table, trials.csv, the sweep's report, the closing lines."""

from __future__ import annotations

import csv
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import get_all_study_names, load_study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from rlhf.files import file_errors
from rlhf.terminal import console as made_console
from rlhf.terminal import tell
from sweeps.display import duration
from sweeps.experiment import print_failed, report_sweeps
from sweeps.machine import counted
from sweeps.runs import Outcome, Stopped
from sweeps.single import again
from sweeps.study import OpenTrial, StoredStudy
from sweeps.study_spec import OBJECTIVES
from sweeps.study_storage import DEFINITION

# Where the output is no terminal: settings are there to be copied.
WIDTH = 400

WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "at work",
}


def states_of(trials: Iterable[FrozenTrial]) -> str:
    """`18 complete, 1 failed`."""
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state]) or "no trial"


def line_on(study: StoredStudy, trial: FrozenTrial) -> str:
    """One line on a trial that has ended."""
    name = f"{study.spec.name} trial {trial.number}"
    if trial.state == TrialState.FAIL:
        return f"{name} failed: {trial.user_attrs.get('reason', '')}"
    if trial.state == TrialState.PRUNED:
        if "reason" in trial.user_attrs:
            return f"{name} not run: {trial.user_attrs['reason']}"
        if trial.last_step is not None:
            return f"{name} pruned after {trial.last_step} samples"
        return f"{name} pruned as an earlier trial of its settings"
    values = zip(study.objective.values, trial.values, strict=True)
    spread = _spread(study, trial)
    measured = ", ".join(f"{name} {value:.3f}" for name, value in values) + (f" ({spread})" if spread else "")
    return f"{name}: {measured}; {_settings(trial)}"


def report_studies(studies: Sequence[StoredStudy], folder: Path, console: Console) -> None:
    """The sweep's own report, then the best trial of each study, or its Pareto front, and trials.csv."""
    done = [study for study in studies if any(trial.state == TrialState.COMPLETE for trial in study.trials)]
    if done:
        report_sweeps([Outcome(done[0].spec.middle[0], "finished")], console)
    values = studies[0].objective.values
    table = Table(box=None, pad_edge=False)
    for name in ("study", "trials", "best", *values, "over seeds", "settings"):
        right = "right" if name in values else "left"
        table.add_column(name, no_wrap=name not in ("study", "settings"), justify=right, overflow="fold")
    for study in studies:
        names = [study.spec.name, states_of(study.trials)]
        best = _best_trials(study)
        if not best:
            table.add_row(*names, *["-"] * (len(values) + 3))
        for trial in best:
            shown = [f"{value:.3f}" for value in trial.values]
            table.add_row(*names, str(trial.number), *shown, _spread(study, trial), _settings(trial))
            names = ["", ""]
    tell(console, "Pareto front of each study:" if len(values) > 1 else "best trial of each study:")
    wide = console if console.is_terminal else made_console(file=console.file, width=WIDTH)
    wide.print(table)
    _write_trials(studies[0], folder / "trials.csv")
    tell(console, f"trials: {folder / 'trials.csv'}")


def _best_trials(study: StoredStudy) -> list[FrozenTrial]:
    """The best, or the Pareto front by its second value; with a constraint, of those within it."""
    if len(study.objective.values) > 1:
        return sorted(study.study.best_trials, key=lambda trial: trial.values[1])
    try:
        return [study.study.best_trial]
    except ValueError:  # none is complete, or none within the constraint
        return []


def _write_trials(study: StoredStudy, file: Path) -> None:
    """Of all studies of its sweep, those that this command left out too."""
    storage, sweep, begun = study.storage, study.spec.name.partition("/")[0], tuple(WORDS)
    rows = []
    for name in sorted(name for name in get_all_study_names(storage) if name.startswith(f"{sweep}/")):
        stored = load_study(study_name=name, storage=storage)
        values = OBJECTIVES[stored.user_attrs[DEFINITION]["objective"]].values
        for trial in stored.get_trials(deepcopy=False, states=begun):
            row = {"study": name, "number": trial.number, "state": trial.state.name}
            row |= dict(zip(values, trial.values or [""] * len(values), strict=True)) | trial.params
            row["runs"] = " ".join(f"{seed}={run}" for seed, run in trial.user_attrs.get("runs", {}).items())
            rows.append(row | {"reason": trial.user_attrs.get("reason", "")})
    first, last = ("study", "number", "state"), ("runs", "reason")
    columns = dict.fromkeys([*first, *(name for row in rows for name in row if name not in last)])
    with file_errors(file, "write it"), file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*columns, *last], restval="")
        writer.writeheader()
        writer.writerows(rows)


def closing_lines(
    studies: Sequence[StoredStudy],
    interrupted: Sequence[OpenTrial],
    failed_inputs: Mapping[Path, Outcome],
    seconds: float,
    console: Console,
) -> None:
    """How many trials there are; which failed, why, and what to type. Raises Stopped unless all is well."""
    trials = [trial for study in studies for trial in study.trials]
    tell(console, f"{counted(len(trials), 'trial')} in {duration(seconds)}: {states_of(trials)}")
    print_failed(failed_inputs.values(), console)
    failed = [(study, trial) for study in studies for trial in study.failed()]
    for study, trial in failed:
        tell(console, line_on(study, trial))
    words = [word for word in sys.argv if not word.startswith(("overwrite=", "hydra.sweeper.retry_failed="))]
    if failed_inputs:
        tell(console, f"no trial can run without these; then: python {shlex.join(words)}")
        raise Stopped(1)
    if any(study.worth_retrying() for study in studies):
        words.append("hydra.sweeper.retry_failed=true")
        tell(console, f"failed trials count; to try their settings again: python {shlex.join(words)}")
    if interrupted:
        in_order = sorted(interrupted, key=lambda opened: (studies.index(opened.study), opened.trial.number))
        names = ", ".join(opened.name for opened in in_order)
        tell(console, f"interrupted: {names}; {again()} goes on where they stopped")
        raise Stopped(130)
    if failed:
        raise Stopped(1)


def _spread(study: StoredStudy, trial: FrozenTrial) -> str:
    """The smallest to the largest value of the trial's seeds."""
    per_seed: Mapping[str, Mapping[str, Any]] = trial.user_attrs.get("per_seed", {})
    if len(per_seed) < 2:
        return ""
    columns = [[of_seed[name] for of_seed in per_seed.values()] for name in study.objective.values]
    return ", ".join(f"{min(column):.3f} to {max(column):.3f}" for column in columns)


def _settings(trial: FrozenTrial) -> str:
    return " ".join(
        f"{name}={f'{value:.4g}' if isinstance(value, float) else value}" for name, value in trial.params.items()
    )
