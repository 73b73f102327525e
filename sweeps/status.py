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
from rlhf.runs.state import LOCK, OVER, finished, read_summary
from rlhf.terminal import Column, fitted_columns, fitted_table
from sweeps.display import STATE_STYLES, RunProgress, number
from sweeps.records import outcome_path, read_json, read_records, record_path
from sweeps.runs import log_path
from sweeps.slurm_queue import JobState, Queue, has_slurm
from sweeps.slurm_setup import SETUP_FAILED
from sweeps.slurm_submission import why_job_ended

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
    records = read_records(folder)
    queue = Queue()
    if any(record.get("job_id") for record in records.values()) and has_slurm():
        queue.refresh()
    statuses, unreadable = [], []
    for name, record in records.items():
        try:
            statuses.append(_status(folder, name, record, queue))
        except (ConfigError, FileError, KeyError) as error:
            unreadable.append(_not_readable(folder / "jobs" / f"{name}.json", error))
    return _unfinished_inputs(statuses, queue, unreadable) + statuses, unreadable


def _unfinished_inputs(statuses: list[RunStatus], queue: Queue, unreadable: list[str]) -> list[RunStatus]:
    needed = {run_folder(need): need for one in statuses if one.state not in OVER for need in input_runs(one.run)}
    found = []
    for folder, need in needed.items():
        record = read_json(record_path(need))
        if not record or finished(need) is not None:
            continue
        if record.get("job_id") and not queue.answers and has_slurm():
            queue.refresh()
        try:
            found.append(_status(sweep_folder(need), folder.name, record, queue))
        except (ConfigError, FileError, KeyError) as error:
            unreadable.append(_not_readable(record_path(need), error))
    return [dataclasses.replace(one, is_input=True) for one in found]


def _not_readable(record: Path, error: Exception) -> str:
    if isinstance(error, FileError):
        return str(error)
    return f"{record}: not of this version of the program ({reason(error)})"


def _status(folder: Path, name: str, record: dict[str, Any], queue: Queue) -> RunStatus:
    run = build_config(record["config"])
    # Where it lies now, from wherever this is typed.
    run = dataclasses.replace(run, output_dir=str(folder.absolute().parent), sweep_name=folder.absolute().name)
    progress = RunProgress(run)
    progress.look()
    lock = read_json(progress.folder / LOCK)
    job = str(record.get("job_id", ""))
    in_queue = queue.jobs.get(job)
    driver = _driver(record)
    queued = driver is not None and not job
    state, reason = _state(run, record, lock, in_queue, queued, bool(job and queue.trouble))
    progress.state = state
    node = (in_queue.node if in_queue is not None else "") or str(lock.get("host", ""))
    return RunStatus(run, name, state, reason, progress, job, node, log_path(run), driver, record["target"])


def _state(
    run: RunConfig,
    record: dict[str, Any],
    lock: dict[str, Any],
    in_queue: JobState | None,
    queued: bool,
    unanswered: bool,
) -> tuple[str, str]:
    summary = read_summary(run_folder(run))
    if summary.get("status") in OVER:
        return summary["status"], ""
    told = read_json(outcome_path(run))
    if told.get("status") == "failed":
        return "failed", told["reason"]
    if seems_alive(lock):
        return "running", ""
    if in_queue is not None and not in_queue.ended:
        return ("running", "") if in_queue.state == "RUNNING" else ("pending", _why_waiting(in_queue))
    if told:
        return told["status"], told["reason"]
    if queued:
        return "queued", ""
    if summary.get("finished_at", 0.0) >= record["submitted_at"]:
        return summary["status"], str(summary.get("error", ""))
    if unanswered:
        return "unknown", "squeue does not answer"
    if not record.get("job_id"):
        return "lost", "its driver is gone"
    why = why_job_ended(run, str(record["job_id"]))
    return ("failed", why) if why.startswith(SETUP_FAILED) else ("lost", f"its job ended without a word {why}".strip())


def _why_waiting(job: JobState) -> str:
    return "" if job.reason in ("None", "Priority", "Resources") else f"waits for {job.reason}"


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
