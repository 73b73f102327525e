"""From configs to finished runs: those finished earlier are skipped, the others driven to their end and reported."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import run_folder, sweep_folder
from rlhf.config.packages import check_inputs
from rlhf.errors import one_line
from rlhf.runs.state import OVER, finished, unfinished_inputs
from rlhf.terminal import console as made_console
from rlhf.terminal import tell
from sweeps.display import STATE_STYLES, duration
from sweeps.driver import Driver
from sweeps.machine import check_places, counted
from sweeps.runs import EXECUTE, Outcome, RunLauncher, Stopped, log_path, typed
from sweeps.single import again, print_start, report_command, torchrun_rank

if TYPE_CHECKING:
    from analysis.compared import Comparison

CURVES = "curves"
"""Folder of a sweep's W&B run, beside the run folders: one pattern, */wandb, finds the W&B files of all."""


def run_experiment(runs: Sequence[RunConfig], target: str = EXECUTE) -> list[Outcome]:
    """All runs to their end, whatever happens to one of them; those finished earlier are not started again.

    Args:
        runs: of one `hardware`.
        target: what a run is, "module:function" as `rlhf.run:execute`.

    Raises:
        Stopped: with 0 where the runs were submitted and left, 1 where runs failed, 130 after Ctrl-C.
    """
    if torchrun_rank() is not None:
        raise ConfigError(["torchrun: starts one run; a sweep (-m) starts the ranks of its runs itself, without it"])
    console = made_console()
    started = time.monotonic()
    distinct = run_folders(runs)
    outcomes = {
        folder: Outcome(run, summary["status"], summary=summary)
        for folder, run in distinct.items()
        if (summary := finished(run))
    }
    todo = [run for folder, run in distinct.items() if folder not in outcomes]
    if len(distinct) < len(runs):
        tell(console, f"{len(runs)} settings, {len(distinct)} distinct runs")
    if not todo:
        tell(console, f"all {counted(len(distinct), 'run')} finished; overwrite=true would start afresh")
    else:
        earlier = f", {len(outcomes)} finished earlier" if outcomes else ""
        launcher = launcher_for(todo, target)
        check_before_start(todo, target)
        tell(console, f"{counted(len(distinct), 'run')}{earlier}{_inputs_first(todo)}; {launcher.open(todo)}")
        print_start(todo, console)
        outcomes |= drive(todo, launcher, console)
    ordered = [outcomes[folder] for folder in distinct]
    report_sweeps(ordered, console)
    if todo:
        inputs = [outcome for folder, outcome in outcomes.items() if folder not in distinct]
        closing_lines(inputs, ordered, time.monotonic() - started, console)
    return ordered


def _inputs_first(runs: Iterable[RunConfig]) -> str:
    """The runs of SFT and of reward models that must be made before these can start."""
    needed = {run_folder(need): need for run in runs for need in unfinished_inputs(run)}
    words = {"sft": "SFT", "reward_model": "reward model", "reference_samples": "reference samples"}
    kinds = dict.fromkeys(words.get(need.stage.name, need.stage.name) for need in needed.values())
    return f", after {counted(len(needed), 'input')} ({', '.join(kinds)})" if needed else ""


def run_folders(runs: Iterable[RunConfig]) -> dict[Path, RunConfig]:
    """The distinct runs by their folders.

    Raises:
        ConfigError: two rewards are one run.
    """
    distinct: dict[Path, RunConfig] = {}
    for run in runs:
        other = distinct.setdefault(run_folder(run), run)
        if other.reward.url != run.reward.url:
            line = "the addresses are no part of a run, and these would be one; give each its own reward.server=NAME"
            raise ConfigError([f"reward.url: {line}"])
    return distinct


def check_before_start(runs: Sequence[RunConfig], target: str) -> None:
    """Raises: ConfigError: a place that these runs write, or something that they read, is not as it must be."""
    module, _, name = target.partition(":")
    try:
        there = bool(name) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        there = False
    if not there:
        raise ConfigError([f"hydra.launcher.target: {target} is no module:function that can be imported"])
    check_places(runs)
    if target == EXECUTE:
        check_inputs([*(need for run in runs for need in unfinished_inputs(run)), *runs])


def launcher_for(runs: Sequence[RunConfig], target: str = EXECUTE) -> RunLauncher:
    """SLURM where the runs' hardware says so, children of this process otherwise."""
    if runs[0].hardware.slurm is None:
        from sweeps.local_launcher import LocalRuns

        return LocalRuns(target)
    from sweeps.slurm_launcher import SlurmRuns

    return SlurmRuns(target)


def drive(todo: Sequence[RunConfig], launcher: RunLauncher, console: Console) -> dict[Path, Outcome]:
    """Start each run when its inputs are finished, until none is left or the user stops it.

    Raises:
        Stopped: the driver ends and the runs go on elsewhere.
    """
    slurm = todo[0].hardware.slurm
    if slurm is not None and not slurm.wait:
        from sweeps.slurm_launcher import SlurmRuns, submit_and_leave

        assert isinstance(launcher, SlurmRuns)
        raise Stopped(1 if submit_and_leave(todo, launcher, console) else 0)
    try:
        with Driver(launcher, console) as driver:
            driver.add(todo)
            while driver.busy:
                driver.step()
    except KeyboardInterrupt:
        jobs_go_on(sweep_folder(todo[0]), console)
        raise Stopped(130) from None
    return driver.outcomes


def jobs_go_on(folder: Path, console: Console) -> None:
    """Say so after Ctrl-C."""
    tell(console, f"the jobs go on; {again()} picks them up, python -m sweeps cancel {folder} stops them")


def report_sweeps(outcomes: Iterable[Outcome], console: Console) -> None:
    """The table, the files and the W&B curves of each sweep that has a finished RL run."""
    compared = [o.run for o in outcomes if o.run.stage.name in RL_STAGES and o.status == "finished"]
    for folder, run in {sweep_folder(run): run for run in compared}.items():
        try:
            write_report(folder, run, console)
        except Exception as error:  # must not hide which runs failed, said after this
            tell(console, f"no report ({one_line(error)}); {report_command(folder)} tries again")


def write_report(folder: Path, run: RunConfig, console: Console) -> None:
    """The table and the problems in the terminal, the files in the sweep's folder, the curves on W&B."""
    from analysis import report

    files = report.write_report(folder)
    tables = report.summary_table(files.comparison, console.width), report.spread_table(files.comparison)
    console.print(*filter(None, tables))
    for line in (files.findings.verdict.sentence, files.findings.verdict.detail):
        tell(console, line)
    for line in report.problem_lines(files.findings):
        tell(console, line, "yellow")
    tell(console, f"report: {files.html}")
    _log_curves(run, folder, files.comparison)


def _log_curves(run: RunConfig, folder: Path, comparison: Comparison) -> None:
    """What the sweep's finished runs show by now, as a W&B run of the sweep, once for each set of them."""
    records = [run.record for setting in comparison.settings for run in setting.runs]
    finished_ids = sorted(record.id for record in records)
    times = sorted((record.id, record.summary.get("finished_at")) for record in records)
    state = hashlib.sha256(json.dumps(times).encode()).hexdigest()[:8]
    marker = folder / CURVES / f"{state}.logged"
    if run.tracking.wandb == "off" or not records or marker.exists():
        return
    marker.parent.mkdir(exist_ok=True)
    marker.touch()  # first: a command that is killed below would otherwise have every row logged twice
    from analysis.wandb_run import log_curves, sweep_curves
    from rlhf.runs.mirror import open_wandb_run

    wandb_run = open_wandb_run(
        run.tracking,
        marker.parent,
        id=f"{run.sweep_name}-curves-{state}",
        name=f"{run.sweep_name} curves",
        group=run.sweep_name,
        job_type="sweep",
        tags=[run.dataset.name, run.model.name, *run.tracking.tags],
        config={"runs": finished_ids, "sweep_name": run.sweep_name},
    )
    log_curves(wandb_run, sweep_curves(comparison))
    wandb_run.finish()


def closing_lines(inputs: Sequence[Outcome], outcomes: Sequence[Outcome], seconds: float, console: Console) -> None:
    """How many finished; which failed, why, and what to type. Raises Stopped unless all finished."""
    done = sum(outcome.status in OVER for outcome in outcomes)
    failed = [outcome for outcome in [*inputs, *outcomes] if outcome.status == "failed"]
    tell(console, f"{done} of {counted(len(outcomes), 'run')} finished in {duration(seconds)}")
    print_failed(failed, console)
    for outcome in outcomes:
        if outcome.status == "interrupted" and outcome.reason:
            tell(console, f"interrupted: {outcome.folder.name}: {outcome.reason}")
    if failed:
        tell(console, f"rerun just these: {typed()}")
        raise Stopped(1)
    if done < len(outcomes):
        tell(console, f"interrupted; {again()} goes on where it stopped")
        raise Stopped(130)


def print_failed(failed: Iterable[Outcome], console: Console) -> None:
    """A line for each: why, and where its log is."""
    for outcome in failed:
        log = log_path(outcome.run)
        where = f" (log: {log})" if log.is_file() else ""
        tell(console, f"failed: {outcome.folder.name}: {outcome.reason}{where}", STATE_STYLES["failed"])
