"""What became of a sweep's runs, told from their own files; SLURM is asked only where a job may be in its queue."""

from __future__ import annotations

import dataclasses
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError, build_config
from rlhf.config.identity import input_runs, run_folder, sweep_folder
from rlhf.errors import FileError, reason
from rlhf.runs.lock import process_start, seems_alive
from rlhf.runs.state import OVER, finished, read_summary
from rlhf.terminal import Column, fitted_columns, fitted_table
from sweeps.progress import STATE_STYLES, RunProgress, number
from sweeps.runs import log_path, outcome_path, read_json, read_records, record_path
from sweeps.slurm_commands import Queue, has_slurm
from sweeps.slurm_submission import SETUP_FAILED, why_job_ended

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
    log: Path
    driver: int | None
    """Process on this machine that drives the run."""
    target: str
    """What does the run, "module:function"."""
    is_input: bool = False
    """An SFT or reward-model run that runs of the sweep wait for, and perhaps other sweeps too."""

    @property
    def log_text(self) -> str:
        """As short as it can be typed here; "" where there is none."""
        if not self.log.is_file():
            return ""
        return min(str(self.log), os.path.relpath(self.log), key=len)


def sweep_status(folder: Path) -> tuple[list[RunStatus], list[str]]:
    """The inputs that are not finished, then every run that a sweep started into this folder, by name; and a line for
    each that cannot be read."""
    statuses, unreadable = [], []
    queue = Queue()

    def add(to: list[RunStatus], file: Path, folder: Path, record: dict[str, Any], is_input: bool = False) -> None:
        if record.get("job_id") and not queue.answers and has_slurm():
            queue.refresh()
        try:
            to.append(_status(folder, file.stem, record, queue, is_input))
        except (ConfigError, FileError, KeyError) as error:
            other = f"{file}: not of this version of the program ({reason(error)})"
            unreadable.append(str(error) if isinstance(error, FileError) else other)

    for name, record in read_records(folder).items():
        add(statuses, folder / "jobs" / f"{name}.json", folder, record)
    inputs: list[RunStatus] = []
    unfinished = [status.run for status in statuses if status.state not in OVER]
    for need in {run_folder(need): need for run in unfinished for need in input_runs(run)}.values():
        record = read_json(record_path(need))
        if record and finished(need) is None:
            add(inputs, record_path(need), sweep_folder(need), record, is_input=True)
    return inputs + statuses, unreadable


def _status(folder: Path, name: str, record: dict[str, Any], queue: Queue, is_input: bool) -> RunStatus:
    run = build_config(record["config"])
    # Where it lies now, from wherever this is typed.
    run = dataclasses.replace(run, output_dir=str(folder.absolute().parent), sweep_name=folder.absolute().name)
    progress = RunProgress(run)
    progress.look()
    lock = read_json(progress.folder / "lock.json")
    job = str(record.get("job_id", ""))
    driver = _driver(record)
    state, reason = _state(run, record, lock, queue, driver is not None and not job)
    progress.state = state
    in_queue = queue.jobs.get(job)
    node = (in_queue.node if in_queue is not None else "") or str(lock.get("host", ""))
    return RunStatus(run, name, state, reason, progress, job, node, log_path(run), driver, record["target"], is_input)


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
        waits = in_queue.reason not in ("None", "Priority", "Resources")
        why = f"waits for {in_queue.reason}" if waits else ""
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
        if outcome.get("status") == "failed" or summary.get("status") == "failed":
            why = outcome.get("reason") or summary.get("error", "")
            return f"its input {run_folder(need).name} failed ({why}); once that is mended, the same command goes on"
    return ""


def _driver(record: dict[str, Any]) -> int | None:
    """The process that started the run, where it lives on this machine."""
    if record["host"] != socket.gethostname():
        return None
    started = process_start(record["driver"])
    return record["driver"] if started is not None and started == record["driver_started"] else None


def status_table(statuses: list[RunStatus], width: int) -> Table:
    return fitted_table(_columns(statuses), width)


def shows_logs(statuses: list[RunStatus], width: int) -> bool:
    """Whether the table of this width has room for the logs."""
    return any(column.name == LOG for column in fitted_columns(_columns(statuses), width))


def _columns(statuses: list[RunStatus]) -> list[Column]:
    shown = [status.progress for status in statuses]
    return [
        Column("run", [status.name for status in statuses]),
        Column("state", [Text(status.state, style=STATE_STYLES.get(status.state, "")) for status in statuses]),
        Column("progress", [f"{progress.done}/{progress.total}" for progress in shown], right=True),
        Column("reward", [number(progress.reward) for progress in shown], right=True),
        Column("KL", [number(progress.kl) for progress in shown], right=True),
        Column("job", [status.job or "-" for status in statuses], drop=1),
        Column("node", [status.node or "-" for status in statuses], drop=2),
        Column(LOG, [status.log_text or "-" for status in statuses], drop=3),
    ]
