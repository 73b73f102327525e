"""W&B -> `RunRecord`s: a sweep's metrics from its W&B files or from the server, where run folders are out of reach.

W&B keeps the numbers of metrics.jsonl to the last bit. It does not keep what is null there, the `versions` of
summary.json and samples.jsonl; whole floats of the config come back as integers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.load import RunRecord, SweepFolderError, label_runs, load_run, make_record
from analysis.wandb_run import JOB_TYPE, WandbError, logged_in
from rlhf.errors import FileError, reason
from rlhf.runs.mirror import rows_sent

# What W&B's server writes for numbers that JSON does not have.
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
# One for each time that a run started, online or offline; `latest-run` is a link to one of them.
_SESSION = re.compile(r"(offline-)?run-\d{8}_\d{6}-.+")
# Runs about runs: the averaged curves, of a sweep's end and of the dashboard.
_NOT_RUNS = ("sweep", JOB_TYPE)


@dataclass
class _Session:
    """What W&B logged between one start of a run and its end."""

    run_id: str = ""
    job_type: str = ""
    started: str = ""  # UTC, ISO 8601
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # as logged, with W&B's own keys
    summary: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # what the reader said, where it ended early


def load_wandb_offline(sweep_folder: Path) -> list[RunRecord]:
    """Every run of a sweep folder by the W&B files that it holds, by id, labelled.

    Raises:
        SweepFolderError: there is no such folder, or no run in it has W&B files.
    """
    sweep_folder = Path(sweep_folder)
    if not sweep_folder.is_dir():
        raise SweepFolderError(f"{sweep_folder}: no such folder; give a sweep's folder, such as runs/default")
    folders = [folder for folder in sorted(sweep_folder.iterdir()) if folder.is_dir()]
    found = {folder: _session_folders(folder) for folder in folders}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # half a second each, in processes of their own
        read = {folder: list(pool.map(_read_session, sessions)) for folder, sessions in found.items()}
    records = [
        _offline_record(folder, sessions)
        for folder, sessions in read.items()
        if (sessions or (folder / "config.yaml").is_file())
        and not any(session.job_type in _NOT_RUNS for session in sessions)
    ]
    if not any(read[record.folder] for record in records):
        raise SweepFolderError(f"{sweep_folder}: no run has W&B files; leave out --from-wandb to read metrics.jsonl")
    return label_runs(records)


def load_wandb_server(path: str, group: str, api: Any = None) -> list[RunRecord]:
    """Every run of one sweep on W&B's server, by id, labelled.

    Args:
        path: entity/project.
        group: the sweep's name.
        api: a `wandb.Api`; one of the account that is logged in if not given.

    Raises:
        WandbError: not logged in, no answer, no such project, or no runs of that group.
    """
    records: dict[str, RunRecord] = {}
    try:
        for run in (api or _api()).runs(path, filters={"group": group}):  # in the order of their creation
            if run.job_type in _NOT_RUNS:
                continue
            # A run that was overwritten leaves its earlier self on the server, under the same name.
            notes = ["an earlier run of this name is on W&B; the last one counts"] if run.name in records else []
            summary = {key: run.summary[key] for key in run.summary.keys()}  # noqa: SIM118 (no dict: no iteration)
            records[run.name] = record_from_wandb(
                Path(run.name), dict(run.config), run.scan_history(), summary, notes=notes
            )
    except WandbError:
        raise
    except Exception as error:  # whatever W&B raises for no network, a rejected key or a missing project
        raise WandbError(f"W&B, {path}: {reason(error)}") from error
    if not records:
        raise WandbError(f"W&B, {path}: no runs of group {group!r}")
    return label_runs([records[name] for name in sorted(records)])


def record_from_wandb(
    folder: Path,
    config: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    summary: Mapping[str, Any],
    problems: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> RunRecord:
    """A run from what W&B has of it, without what W&B adds.

    Args:
        folder: of the run; its name is the run's id.
        rows: the history in order of step; of several rows with one step the first counts, as on the server.
    """
    by_step: dict[Any, dict[str, Any]] = {}
    for row in rows:
        # None: a metric that other rows have and this one lacks.
        logged = {key: _finite(value) for key, value in row.items() if not key.startswith("_") and value is not None}
        by_step.setdefault(row.get("_step", len(by_step)), logged)
    problems = list(problems)
    if not by_step:
        problems.append("W&B has no rows of it")
    return make_record(
        folder,
        {key: value for key, value in config.items() if not key.startswith("_")},
        [row for row in by_step.values() if row],
        {key: _finite(value) for key, value in summary.items() if not key.startswith("_")},
        problems,
        list(notes),
    )


def _finite(value: Any) -> Any:
    """None for what is no finite number, as in metrics.jsonl."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value in _NOT_FINITE else value


def _session_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("wandb/*run-*") if _SESSION.fullmatch(path.name)]


def _read_session(folder: Path) -> _Session:
    """By W&B's own reader, the one way that is not a private format."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    session = _Session()
    for line in done.stdout.splitlines():
        record = json.loads(line)
        content = record.get(record["type"])
        if record["type"] == "run":
            session.run_id, session.job_type = content["run_id"], content.get("job_type", "")
            session.started, session.config = content.get("start_time", ""), content.get("config", {}).get("update", {})
        elif record["type"] == "history":
            session.rows.append(content["item"])
        elif record["type"] == "summary":
            session.summary |= content.get("update", {})
    session.problem = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    return session


def _offline_record(folder: Path, sessions: list[_Session]) -> RunRecord:
    """The sessions of one run joined in order of start."""
    if not sessions:
        return dataclasses.replace(load_run(folder), reason="no W&B files: it ran with tracking.wandb=off")
    sessions = sorted(sessions, key=lambda session: session.started)
    last = sessions[-1]
    of_run = [session for session in sessions if session.run_id == last.run_id]
    rows = [row for session in of_run for row in session.rows]
    summary = {key: value for session in of_run for key, value in session.summary.items()}
    # A session that was killed has no status; that of the one before it says nothing any more.
    summary |= {"status": last.summary.get("status", "unfinished")}
    notes = [f"W&B: {session.problem}" for session in of_run if session.problem]
    sent = _rows_sent(folder)
    if sent is not None and len(rows) < sent:
        notes.append(f"W&B holds {len(rows)} of the {sent} rows that it was given; metrics.jsonl has all")
    return record_from_wandb(folder, last.config, rows, summary, notes=notes)


def _rows_sent(folder: Path) -> int | None:
    """What the run noted beside its W&B files."""
    try:
        return rows_sent(folder) or None
    except FileError:
        return None


def _api() -> Any:
    """Without a question: `wandb.Api` asks for a key where it finds none."""
    import wandb

    if not logged_in():
        raise WandbError("not logged in to W&B: `wandb login` first, or set WANDB_API_KEY")
    return wandb.Api(timeout=30)
