"""What became of a sweep's runs, told from their own files; SLURM is asked only where a job waits or runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rlhf.config import RunConfig
from rlhf.config.build import build_config
from sweeps.display import RunProgress
from sweeps.driver import read_summary
from sweeps.records import outcome_path, read_json, read_records
from sweeps.runs import OVER, log_path
from sweeps.slurm_queue import Queue, has_slurm

COLUMNS = ("run", "state", "progress", "reward", "KL", "job", "node", "log")
STALE_LEASE = "its process is gone"


@dataclass(frozen=True)
class RunStatus:
    run: RunConfig
    name: str
    state: str
    """finished, pruned, failed, interrupted, running, pending (in SLURM's queue), queued (in a driver's) or lost."""
    reason: str
    progress: RunProgress
    job: str
    node: str
    log: Path
    driver: int | None
    """Process on this machine that drives the run."""
    target: str
    """What does the run, "module:function"."""

    def cells(self) -> list[str]:
        shown = self.progress
        numbers = ["-" if value is None else f"{value:.3f}" for value in (shown.reward, shown.kl)]
        return [
            self.name,
            self.state,
            f"{shown.done}/{shown.total}",
            *numbers,
            self.job or "-",
            self.node or "-",
            str(self.log),
        ]


def sweep_status(folder: Path) -> list[RunStatus]:
    """Every run that was ever started into this sweep folder, in the order of their names."""
    records = read_records(folder)
    queue = Queue()
    if any("job_id" in record for record in records.values()) and has_slurm():
        queue.refresh()
    return [_status(name, record, queue) for name, record in records.items()]


def _status(name: str, record: dict[str, Any], queue: Queue) -> RunStatus:
    run = build_config(record["config"])
    progress = RunProgress(run)
    progress.look()
    summary = read_summary(progress.folder)
    summary |= {} if summary.get("status") in OVER else _told(run)
    lock = read_json(progress.folder / "lock.json")
    job = str(record.get("job_id", ""))
    in_queue = queue.jobs.get(job)
    waiting = in_queue is not None and not in_queue.ended
    driver = (
        record["driver"] if not job and record["host"] == socket.gethostname() and _drives(record["driver"]) else None
    )
    state, reason = _state(summary, lock, record, waiting and in_queue is not None and in_queue.state, driver)
    node = (in_queue.node if in_queue is not None else "") or str(lock.get("host", ""))
    return RunStatus(run, name, state, reason, progress, job, node, log_path(run), driver, record["target"])


def _told(run: RunConfig) -> dict[str, Any]:
    """What the run's job or driver says of its end, in the words of a summary."""
    told = read_json(outcome_path(run))
    return {"status": told["status"], "error": told["reason"]} if told else {}


def _state(
    summary: dict[str, Any], lock: dict[str, Any], record: dict[str, Any], in_queue: str | bool, driver: int | None
) -> tuple[str, str]:
    if summary.get("status") in OVER:
        return summary["status"], ""
    if in_queue:
        return ("running" if in_queue == "RUNNING" else "pending"), ""
    if driver is not None:
        told = summary.get("status")
        return (told, str(summary.get("error", ""))) if told else ("running" if lock else "queued", "")
    if "status" in summary:
        return summary["status"], str(summary.get("error", ""))
    if "job_id" in record:
        return "lost", "its job ended without a result"
    return "lost", STALE_LEASE if lock else "its driver is gone"


def _drives(pid: int) -> bool:
    """Whether that process lives and is one of ours, not another that was given the number since."""
    try:
        os.kill(pid, 0)
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return False
    return b"main.py" in words or b"sweeps" in words


def status_table(statuses: list[RunStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        right = column in ("progress", "reward", "KL")
        table.add_column(column, justify="right" if right else "left", no_wrap=True, overflow="ignore")
    for status in statuses:
        table.add_row(*status.cells())
    return table
