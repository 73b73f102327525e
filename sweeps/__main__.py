"""`python -m sweeps status|cancel|rerun runs/<sweep>`: look after a sweep that is at work, or was.

What became of its runs is told by their own files; SLURM is asked only where a job may be in its queue.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError, build_config
from rlhf.config.identity import input_runs, run_folder, sweep_folder
from rlhf.errors import FileError, one_line, reason
from rlhf.runs.lock import process_start, seems_alive
from rlhf.runs.state import OVER, finished, read_summary
from rlhf.terminal import Column, complain, fitted_columns, fitted_table, tell
from rlhf.terminal import console as made_console
from sweeps.display import STATE_STYLES, RunProgress, number, state_columns
from sweeps.runs import JOBS, Stopped, log_path, outcome_path, read_json, read_records, record_path, stop_path
from sweeps.slurm_commands import ORDINARY_REASONS, Queue, has_slurm, scancel
from sweeps.slurm_submission import SETUP_FAILED, why_job_ended

# Wide enough that no log path is cut where the output is no terminal.
WIDTH_IN_FILES = 400

LOG = "log"
AT_WORK = ("running", "pending", "queued")


@dataclass(frozen=True)
class RunStatus:
    run: RunConfig
    name: str
    state: str
    """finished, pruned, failed, interrupted, running, pending (in SLURM's queue), queued (in a driver's), unknown
    (SLURM does not answer) or lost (it ended without a word)."""
    reason: str
    progress: RunProgress
    job: str
    node: str
    log: str
    """As short as it can be typed here; "" where there is none."""
    driver: int | None
    """Process on this machine that drives the run."""
    target: str
    """What does the run, "module:function"."""
    is_input: bool
    """An SFT or reward-model run that runs of the sweep wait for, and perhaps other sweeps too."""


def sweep_status(folder: Path) -> tuple[list[RunStatus], list[str]]:
    """The inputs that are not finished, then every run that a sweep started into this folder, by name; and a line for
    each that cannot be read."""
    unreadable: list[str] = []
    queue = Queue()

    def status_of(file: Path, record: dict[str, Any], is_input: bool) -> list[RunStatus]:
        if record.get("job_id") and not queue.answers and has_slurm():
            queue.refresh()
        try:
            return [_run_status(file, record, queue, is_input)]
        except FileError as error:
            unreadable.append(str(error))
        except (ConfigError, KeyError) as error:
            unreadable.append(f"{file}: not of this version of the program ({reason(error)})")
        return []

    statuses: list[RunStatus] = []
    for name, record in read_records(folder).items():
        statuses += status_of(folder / JOBS / f"{name}.json", record, False)
    inputs: list[RunStatus] = []
    unfinished = [status.run for status in statuses if status.state not in OVER]
    for need in {run_folder(need): need for run in unfinished for need in input_runs(run)}.values():
        record = read_json(record_path(need))
        if record and finished(need) is None:
            inputs += status_of(record_path(need), record, True)
    return inputs + statuses, unreadable


def _run_status(file: Path, record: dict[str, Any], queue: Queue, is_input: bool) -> RunStatus:
    run, folder = build_config(record["config"]), file.parent.parent.absolute()
    # Where it lies now, from wherever this is typed.
    run = dataclasses.replace(run, output_dir=str(folder.parent), sweep_name=folder.name)
    progress = RunProgress(run)
    progress.look()
    lock, job = read_json(progress.folder / "lock.json"), str(record.get("job_id", ""))
    driver = None
    if record["host"] == socket.gethostname():
        started = process_start(record["driver"])
        driver = record["driver"] if started is not None and started == record["driver_started"] else None
    state, reason = _state(run, record, lock, queue, driver is not None and not job)
    progress.state = state
    in_queue = queue.jobs.get(job)
    node = (in_queue.node if in_queue is not None else "") or str(lock.get("host", ""))
    log = log_path(run)
    log_text = min(str(log), os.path.relpath(log), key=len) if log.is_file() else ""
    return RunStatus(run, file.stem, state, reason, progress, job, node, log_text, driver, record["target"], is_input)


def _state(
    run: RunConfig, record: dict[str, Any], lock: dict[str, Any], queue: Queue, has_driver: bool
) -> tuple[str, str]:
    """(state, reason)."""
    summary, outcome = read_summary(run_folder(run)), read_json(outcome_path(run))
    job = str(record.get("job_id", ""))
    in_queue = queue.jobs.get(job)
    if summary.get("status") in OVER:
        return summary["status"], ""
    if outcome.get("status") == "failed":
        return "failed", _failed_input(run) or outcome["reason"]
    if seems_alive(lock):
        return "running", ""
    if in_queue is not None and not in_queue.ended:
        why = "" if in_queue.reason in ORDINARY_REASONS[:3] else f"waits for {in_queue.reason}"
        return ("running", "") if in_queue.state == "RUNNING" else ("pending", why)
    if outcome:
        return outcome["status"], outcome["reason"]
    if has_driver:
        return "queued", ""
    if summary.get("finished_at", 0.0) >= record["submitted_at"]:
        return summary["status"], str(summary.get("error", ""))
    if job and queue.trouble:
        return "unknown", "squeue does not answer"
    return _lost(run, job)


def _lost(run: RunConfig, job: str) -> tuple[str, str]:
    """Of a run that ended without a word of its own."""
    if failed := _failed_input(run):
        return "failed", failed
    if not job:
        return "lost", "its driver is gone (killed, or the machine was restarted); the same command goes on"
    why = why_job_ended(run, job)
    return ("failed", why) if why.startswith(SETUP_FAILED) else ("lost", f"its job ended without a word {why}".strip())


def _failed_input(run: RunConfig) -> str:
    """Which of the runs that this one starts from has failed, why, and what to do."""
    for need in input_runs(run):
        outcome, summary = read_json(outcome_path(need)), read_summary(run_folder(need))
        if "failed" in (outcome.get("status"), summary.get("status")):
            why = outcome.get("reason") or summary.get("error", "")
            return f"its input {run_folder(need).name} failed ({why}); once that is mended, the same command goes on"
    return ""


def status_columns(statuses: Sequence[RunStatus]) -> list[Column]:
    """What a table of them shows: values of evaluations, and beside them those of the last iteration."""
    shown = [status.progress for status in statuses]

    def metric(name: str) -> list[str]:
        return [number(progress.latest.get(name)) for progress in shown]

    return [
        *state_columns([status.name for status in statuses], [status.state for status in statuses]),
        Column("progress", [f"{progress.done}/{progress.total}" for progress in shown], right=True),
        Column("eval reward", [progress.change_of("reward") for progress in shown], right=True),
        Column("eval KL", metric("eval/kl"), right=True),
        Column("train reward", metric("train/reward"), right=True, drop=2),
        Column("train KL", metric("train/kl"), right=True, drop=2),
        Column("job", [status.job or "-" for status in statuses], drop=1),
        Column("node", [status.node or "-" for status in statuses], drop=3),
        Column(LOG, [status.log or "-" for status in statuses], drop=4),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 where the arguments cannot be."""
    options = _parser().parse_args(arguments)
    console = made_console(width=WIDTH_IN_FILES)
    named = Path("runs") / options.folder  # a sweep's name is enough where it lies in the default place
    options.folder = named if not options.folder.exists() and named.exists() else options.folder
    statuses, unreadable = sweep_status(options.folder)
    for line in unreadable:
        complain(line)
    if not statuses:
        complain(f"{options.folder}: no sweep was started there (runs/<sweep name>)")
        return 2
    if options.command == "status":
        return _status(statuses, console)
    if options.command == "cancel":
        return _cancel(statuses, console)
    return _rerun(statuses, options.failed, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweeps", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "status": "each run with its state, progress, last reward and KL, job, node and log",
        "cancel": "ask what runs to checkpoint and stop, and take what waits out of the queue",
        "rerun": "start what did not finish again, with the config it had; it goes on from its checkpoint",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="the sweep's folder, as runs/default")
        if name == "rerun":
            command.add_argument("--failed", action="store_true", help="only what failed, not what was interrupted")
    return parser


def _status(statuses: list[RunStatus], console: Console) -> int:
    columns = status_columns(statuses)
    console.print(fitted_table(columns, console.width))
    for status in statuses:
        if status.reason:
            log = f" (log: {status.log})" if status.log and status.state not in OVER else ""
            tell(console, f"{status.state}: {status.name}: {status.reason}{log}", STATE_STYLES.get(status.state, ""))
    folders = {os.path.dirname(status.log): None for status in statuses if status.log}
    if folders and all(column.name != LOG for column in fitted_columns(columns, console.width)):
        tell(console, f"logs: {', '.join(folders)}")
    return 0


def _cancel(statuses: list[RunStatus], console: Console) -> int:
    at_work = [status for status in statuses if status.state in AT_WORK and not status.is_input]
    in_jobs = [status for status in at_work if status.job]
    for status in in_jobs:
        stop_path(status.run).touch()  # its job lets the iteration at work end, however long that is
    running = {status.job for status in in_jobs if status.state == "running"}
    complaint = scancel({status.job for status in in_jobs} - running)
    # A driver ends by itself once its jobs have; one whose runs are no jobs yet would submit them.
    drivers = {status.driver for status in at_work if status.driver is not None and not status.job}
    for driver in drivers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(driver, signal.SIGTERM)
    if complaint:
        complain(complaint)
    if not at_work:
        tell(console, "nothing of this sweep runs or waits")
    else:
        stopped = [f"{len({status.job for status in in_jobs})} jobs"] * bool(in_jobs)
        stopped += [f"the driver {driver}" for driver in sorted(drivers)]
        tell(console, f"told to stop: {', '.join(stopped) or 'nothing'}; runs write a checkpoint first")
    if elsewhere := [status.name for status in at_work if not status.job and status.driver is None]:
        tell(console, f"{', '.join(elsewhere)}: driven from another machine; type this there")
    for status in statuses:
        if status.state in AT_WORK and status.is_input and status.job:
            line = f"{status.name} goes on, as other sweeps may wait for it, too; python -m sweeps cancel "
            tell(console, f"{line}{sweep_folder(status.run)} stops all inputs")
    return 1 if complaint else 0


def _rerun(statuses: list[RunStatus], failed_only: bool, console: Console) -> int:
    from sweeps.experiment import run_experiment

    states = ("failed", "lost") if failed_only else ("failed", "lost", "interrupted")
    # Inputs are started again by the runs that need them.
    chosen = [status for status in statuses if status.state in states and not status.is_input]
    if not chosen:
        tell(console, f"no run of this sweep is {' or '.join(states)}")
        return 0
    groups: dict[tuple[str, str], list[RunConfig]] = {}
    for status in chosen:
        groups.setdefault((status.target, repr(status.run.hardware)), []).append(status.run)
    code = 0
    for (target, _), runs in groups.items():
        try:
            run_experiment(runs, target)
        except Stopped as stopped:
            code = max(code, stopped.exit_code)
        except ConfigError as error:
            complain(f"config error: {error}")
            return 2
        except Exception as error:
            complain(f"failed: {one_line(error)}")
            code = max(code, 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
