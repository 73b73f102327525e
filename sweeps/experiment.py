"""From configs to finished runs: those finished earlier are skipped, the others driven to their end and reported."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from rich.console import Console

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.frozen import starts_anew
from rlhf.config.identity import input_runs, run_folder, run_id, sweep_folder
from rlhf.config.inputs import check_inputs
from rlhf.config.sizes import derived_sizes, sizes_in_words
from rlhf.errors import one_line
from rlhf.runs.state import OVER, finished
from rlhf.terminal import console as made_console
from rlhf.terminal import tell
from rlhf.waiting import stop_requested
from sweeps.display import STATE_STYLES, RunProgress, duration, number, watching
from sweeps.driver import Driver
from sweeps.local_launcher import LocalRuns
from sweeps.records import write_record
from sweeps.resources import check_device, thread_environment
from sweeps.runs import Outcome, RunLauncher, log_path
from sweeps.sources import composed_run
from sweeps.wandb_sweep import log_sweep

if TYPE_CHECKING:
    from hydra.types import HydraContext
    from omegaconf import DictConfig

EXECUTE = "rlhf.run:execute"

# What a sweeper that looks for good settings is told of a run.
TUNED_METRIC = "eval/reward"

# Of a file's values, how many the first lines show.
MOST_VALUES = 8

# What the last lines of a single run tell: from the first evaluation to the last.
CHANGES = {"reward": "eval/reward", "gold reward": "eval/gold_reward"}

VERBOSE = "RLHF_VERBOSE"
"""Environment variable; 1 shows the batch arithmetic whole."""


class Stopped(Exception):
    """The command ends here with this exit code; all there is to say has been printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def run_experiment(runs: Sequence[RunConfig], target: str = EXECUTE) -> list[Outcome]:
    """All runs to their end, whatever happens to one of them; those finished earlier are not started again.

    Args:
        runs: of one `hardware`.
        target: what a run is, "module:function" as `rlhf.run:execute`.

    Raises:
        Stopped: with 0 where the runs were submitted and left, 1 where runs failed, 130 after Ctrl-C.
    """
    if _rank_of() is not None:
        raise ConfigError(["torchrun: starts one run; a sweep (-m) starts the ranks of its runs itself, without it"])
    console = made_console()
    started = time.monotonic()
    distinct = run_folders(runs)
    summaries = {folder: found for folder, run in distinct.items() if (found := finished(run))}
    outcomes = {
        folder: Outcome(distinct[folder], found["status"], summary=found) for folder, found in summaries.items()
    }
    todo = [run for folder, run in distinct.items() if folder not in outcomes]
    if len(distinct) < len(runs):
        tell(console, f"{len(runs)} settings, {len(distinct)} distinct runs")
    if not todo:
        tell(console, f"all {count_runs(len(distinct))} finished; overwrite=true would start afresh")
    else:
        earlier = f", {len(outcomes)} finished earlier" if outcomes else ""
        launcher = launcher_for(todo, target)
        if target == EXECUTE:
            check_inputs(todo)
        tell(console, f"{count_runs(len(distinct))}{earlier}; {launcher.open(todo)}")
        if near := starts_anew(todo):
            tell(console, near)
        print_settings(todo, console)
        print_sizes(todo, console)
        print_cached(todo, console)
        outcomes |= drive(todo, launcher, console)
    ordered = [outcomes[folder] for folder in distinct]
    report_sweeps(ordered, console)
    if todo:
        inputs = [outcome for folder, outcome in outcomes.items() if folder not in distinct]
        closing_lines(inputs, ordered, time.monotonic() - started, console)
    return ordered


def launcher_for(runs: Sequence[RunConfig], target: str = EXECUTE) -> RunLauncher:
    """SLURM where the runs' hardware says so, children of this process otherwise.

    Raises:
        ConfigError: there is no such target.
    """
    _check_target(target)
    if runs[0].hardware.slurm is None:
        return LocalRuns(target)
    from sweeps.slurm_launcher import SlurmRuns

    return SlurmRuns(target)


def _check_target(target: str) -> None:
    module, _, name = target.partition(":")
    try:
        there = bool(name) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        there = False
    if not there:
        raise ConfigError([f"hydra.launcher.target: {target} is no module:function that can be imported"])


def drive(todo: Sequence[RunConfig], launcher: RunLauncher, console: Console) -> dict[Path, Outcome]:
    """Start each run when its inputs are finished, until none is left or the user stops it.

    Raises:
        Stopped: the driver ends and the runs go on elsewhere.
    """
    slurm = todo[0].hardware.slurm
    if slurm is not None and not slurm.wait:
        from sweeps.slurm_launcher import SlurmRuns
        from sweeps.slurm_leaving import submit_and_leave

        assert isinstance(launcher, SlurmRuns)
        raise Stopped(1 if submit_and_leave(todo, launcher, console) else 0)
    try:
        with Driver(launcher, console) as driver:
            driver.add(todo)
            while driver.busy:
                driver.step()
    except KeyboardInterrupt:
        folder = sweep_folder(todo[0])
        stop = f"python -m sweeps cancel {folder} stops them"
        tell(console, f"the jobs go on; {again()} picks them up, {stop}")
        raise Stopped(130) from None
    return driver.outcomes


def report_sweeps(outcomes: Iterable[Outcome], console: Console) -> None:
    """The table, the files and the W&B curves of each sweep that has a finished RL run."""
    compared = [one.run for one in outcomes if one.run.stage.name in RL_STAGES and one.status == "finished"]
    for folder, run in {sweep_folder(run): run for run in compared}.items():
        try:
            _report(folder, run, console)
        except Exception as error:  # must not hide which runs failed, said after this
            tell(console, f"no report ({one_line(error)}); {report_command(folder)} tries again")


def run_folders(runs: Iterable[RunConfig]) -> dict[Path, RunConfig]:
    """The distinct runs by their folders.

    Raises:
        ConfigError: two rewards are one run.
    """
    found: dict[Path, RunConfig] = {}
    for run in runs:
        other = found.setdefault(run_folder(run), run)
        if other.reward.url != run.reward.url:
            line = "the addresses are no part of a run, and these would be one; give each its own reward.server=NAME"
            raise ConfigError([f"reward.url: {line}"])
    return found


def run_single(run: RunConfig) -> dict[str, Any]:
    """One run in this process, with the display in a thread beside it.

    Raises:
        Stopped: with 130 after Ctrl-C.
    """
    if run.hardware.slurm is not None:
        return run_experiment([run])[0].summary
    first = _rank_of() in (None, 0)
    console = made_console(quiet=not first)
    if found := finished(run):
        tell(console, f"{run_id(run)} is finished ({run_folder(run)}); overwrite=true would start afresh")
        return found
    check_device(run)
    check_inputs([run])
    near = starts_anew([run])
    if first:
        write_record(run, EXECUTE)
    if near:
        tell(console, near)
    print_settings([run], console)
    print_sizes([run], console)
    print_cached([run], console)
    os.environ.update(thread_environment(run.hardware.threads))  # before torch is imported
    shown = [*(need for need in input_runs(run) if finished(need) is None), run]
    with watching(shown, console) if first else contextlib.nullcontext() as display:
        from rlhf.run import execute

        if display is not None:
            display.stopping = lambda: stop_requested() is not None
        summary = execute(run)
    if summary.get("status") == "interrupted":
        tell(console, f"{run_id(run)} interrupted; {again()} goes on where it stopped", STATE_STYLES["interrupted"])
        raise Stopped(130)
    print_result(run, summary, console)
    return summary


def print_settings(runs: Iterable[RunConfig], console: Console) -> None:
    """Which files set values, once for all runs that share them."""
    runs = list(runs)
    for option in ("model", "reward"):
        if any(getattr(run, option).trust_remote_code for run in runs):
            tell(console, f"warning: {option}.trust_remote_code=true: Python code that it brings runs with your rights")
    for line in dict.fromkeys(line for run in runs for line in run.settings_from):
        values = line.split(", ")
        more = f" and {len(values) - MOST_VALUES} more, in config.yaml" if len(values) > MOST_VALUES else ""
        tell(console, f"settings: {', '.join(values[:MOST_VALUES])}{more}")


def print_result(run: RunConfig, summary: Mapping[str, Any], console: Console) -> None:
    """What a single run came to, where it lies, and how to get its report."""
    progress = RunProgress(dataclasses.replace(run, overwrite=False))  # its rows are there now
    progress.look()
    told = [f"{run_id(run)} finished"]
    for name, key in CHANGES.items():
        before, after = progress.first.get(key), summary.get(key)
        if isinstance(after, int | float):
            trained = run.stage.name in RL_STAGES and before is not None
            told.append(f"{name} from {number(before)} to {number(after)}" if trained else f"{name} {number(after)}")
    if isinstance(kl := summary.get("eval/kl"), int | float):
        told.append(f"KL {number(kl)} (last evaluation)")
    tell(console, ", ".join(told))
    tell(console, f"results: {run_folder(run)}")
    if run.stage.name in RL_STAGES:
        tell(console, f"report: {report_command(sweep_folder(run))} writes it")


def report_command(folder: Path) -> str:
    """What to type for the report of a sweep's folder."""
    return shlex.join(["python", "-m", "analysis", "report", str(folder)])


def print_cached(runs: Sequence[RunConfig], console: Console) -> None:
    """A line on the SFT policies and reward models that an earlier command has trained."""
    needed = {run_folder(need): need for run in runs for need in input_runs(run)}
    cached = [folder for folder, need in needed.items() if finished(need) is not None]
    if cached:
        names = ", ".join(folder.name for folder in cached)
        tell(console, f"from the cache, trained earlier: {names} (in {os.path.commonpath(f.parent for f in cached)})")


def print_sizes(runs: Sequence[RunConfig], console: Console) -> None:
    """What the batch sizes come to, once for all runs that share them; a line, or the whole arithmetic."""
    whole = os.environ.get(VERBOSE) == "1"
    for line in {sizes_in_words(run): None for run in runs}:
        tell(console, line if whole else f"{line} ({VERBOSE}=1 shows how)")
    for sizes in {tuple(derived_sizes(run)): None for run in runs} if whole else ():
        width = max(len(f"{size:,}") for _, size, _ in sizes)
        for name, size, how in sizes:
            tell(console, f"{size:>{width},} {name} ({how})")


def _rank_of() -> int | None:
    """Which rank torchrun has made this process; None where it has not."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def hydra_returns(
    target: str, context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> list[JobReturn]:
    """`run_experiment` in the form that sweepers other than ours expect of a launcher."""
    composed = [context.config_loader.load_sweep_config(config, list(overrides)) for overrides in job_overrides]
    runs = [composed_run(one, one.hydra) for one in composed]
    outcomes = {outcome.folder: outcome for outcome in run_experiment(runs, target)}
    returns = []
    for overrides, one, run in zip(job_overrides, composed, runs, strict=True):
        outcome = outcomes[run_folder(run)]
        result = JobReturn(overrides=overrides, cfg=one, working_dir=str(outcome.folder), task_name=run_id(run))
        if outcome.status == "finished":
            result.status, result.return_value = JobStatus.COMPLETED, outcome.summary.get(TUNED_METRIC)
        else:
            result.status, result.return_value = JobStatus.FAILED, RuntimeError(outcome.reason or outcome.status)
        returns.append(result)
    return returns


def _report(folder: Path, run: RunConfig, console: Console) -> None:
    """The table and the problems in the terminal, the files in the sweep's folder, the curves on W&B."""
    from analysis.report import problem_lines, summary_table, write_report

    files = write_report(folder)
    console.print(summary_table(files.comparison, console.width))
    for line in problem_lines(files.findings):
        tell(console, line, "yellow")
    tell(console, f"report: {files.html}")
    log_sweep(run, folder, files.comparison)


def closing_lines(inputs: Sequence[Outcome], outcomes: Sequence[Outcome], seconds: float, console: Console) -> None:
    """How many finished; which failed, why, and what to type. Raises Stopped unless all finished."""
    finished = sum(outcome.status in OVER for outcome in outcomes)
    failed = [outcome for outcome in [*inputs, *outcomes] if outcome.status == "failed"]
    tell(console, f"{finished} of {count_runs(len(outcomes))} finished in {duration(seconds)}")
    print_failed(failed, console)
    for outcome in outcomes:
        if outcome.status == "interrupted" and outcome.reason:
            tell(console, f"interrupted: {outcome.folder.name}: {outcome.reason}")
    if failed:
        tell(console, f"rerun just these: {_same_command()}")
        raise Stopped(1)
    if finished < len(outcomes):
        tell(console, f"interrupted; {again()} goes on where it stopped")
        raise Stopped(130)


def print_failed(failed: Iterable[Outcome], console: Console) -> None:
    """A line for each: why, and where its log is."""
    for outcome in failed:
        log = log_path(outcome.run)
        where = f" (log: {log})" if log.is_file() else ""
        tell(console, f"failed: {outcome.folder.name}: {outcome.reason}{where}", STATE_STYLES["failed"])


def again() -> str:
    """What to type to go on: overwrite=true would start afresh once more."""
    afresh = any(word.lstrip("+").startswith("overwrite=") for word in sys.argv)
    return f"the same command{' without overwrite=true' if afresh else ''}"


def _same_command() -> str:
    """As it was typed, but for what would start finished runs afresh."""
    program, *words = sys.argv
    start = ["-m", "sweeps"] if Path(program).parts[-2:] == ("sweeps", "__main__.py") else [program]
    return shlex.join(["python", *start, *(word for word in words if not word.lstrip("+").startswith("overwrite="))])


def count_runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"
