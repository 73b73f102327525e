"""What became of a sweep's runs, told from their own files; SLURM is asked only where a job may be in its queue."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError, build_config
from rlhf.config.identity import input_runs, run_folder
from rlhf.errors import FileError, reason
from rlhf.runs.lock import process_start, seems_alive
from rlhf.runs.state import OVER, finished, read_summary
from rlhf.terminal import Column
from sweeps.display import RunProgress, number, state_columns
from sweeps.runs import JOBS, log_path, outcome_path, read_json, read_records, record_path
from sweeps.slurm_commands import ORDINARY_REASONS, Queue, has_slurm
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
            return [_status(file, record, queue, is_input)]
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


def _status(file: Path, record: dict[str, Any], queue: Queue, is_input: bool) -> RunStatus:
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
    """What a table of them shows: values of the last evaluation, and beside them those of the last iteration."""
    shown = [status.progress for status in statuses]

    def metric(name: str) -> list[str]:
        return [number(progress.latest.get(name)) for progress in shown]

    return [
        *state_columns([status.name for status in statuses], [status.state for status in statuses]),
        Column("progress", [f"{progress.done}/{progress.total}" for progress in shown], right=True),
        Column("eval reward", metric("eval/reward"), right=True),
        Column("eval KL", metric("eval/kl"), right=True),
        Column("train reward", metric("train/reward"), right=True, drop=2),
        Column("train KL", metric("train/kl"), right=True, drop=2),
        Column("job", [status.job or "-" for status in statuses], drop=1),
        Column("node", [status.node or "-" for status in statuses], drop=3),
        Column(LOG, [status.log or "-" for status in statuses], drop=4),
    ]
