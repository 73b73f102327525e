"""What a sweep folder keeps of its runs beside their own folders: the frozen config, and where each was started."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import run_id, sweep_folder
from rlhf.errors import FileError
from rlhf.files import file_errors, read_json_object, write_whole
from rlhf.runs.lock import process_start

JOBS = "jobs"


def write_record(run: RunConfig, target: str, **where: Any) -> None:
    """Say that this driver has taken on `run`: on this machine, or as the SLURM job that `where` names."""
    driver = {"host": socket.gethostname(), "driver": os.getpid(), "driver_started": process_start(os.getpid())}
    folders = {name: str(Path(getattr(run, name)).absolute()) for name in ("output_dir", "cache_dir")}
    config = {**config_to_mapping(run), **folders, "overwrite": False}  # as `python -m sweeps rerun` takes it up
    now = time.time()
    times = {"submitted_at": now, "written_at": now}
    write_json(record_path(run), {**driver, **times, "target": target, **where, "config": config})


def record_path(run: RunConfig) -> Path:
    return sweep_folder(run) / JOBS / f"{run_id(run)}.json"


def outcome_path(run: RunConfig) -> Path:
    """Where a job says how the run ended, for a run that could not say so itself."""
    return record_path(run).with_suffix(".outcome")


def stop_path(run: RunConfig) -> Path:
    """A file that asks the job to stop this run alone."""
    return record_path(run).with_suffix(".stop")


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a sweep folder by run id."""
    files = sorted((folder / JOBS).glob("*.json"))
    return {file.stem: found for file in files if (found := read_json(file))}


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or one that was cut off or holds something else.

    Raises:
        FileError: there is one that this user may not read, as another user's job.
    """
    try:
        return read_json_object(path) or {}
    except FileError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise
        return {}


def write_json(path: Path, mapping: Mapping[str, Any]) -> None:
    """Whole or not at all; for its owner alone, since a record holds the whole config."""
    with file_errors(path.parent, "make it"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(mapping), mode=0o600)
