"""What the parts of a sweep tell one another: how a run ended, its record beside the others', what a launcher does."""

from __future__ import annotations

import abc
import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import run_folder, run_id, sweep_folder
from rlhf.errors import FileError
from rlhf.files import file_errors, read_json_object, write_whole
from rlhf.runs.lock import process_start
from rlhf.runs.state import JOBS, LOGS

EXECUTE = "rlhf.run:execute"
"""What a run is, "module:function"; the function takes a RunConfig and returns the run's summary."""


class Stopped(Exception):
    """The command ends here with this exit code; all there is to say has been printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of it: libraries raise errors of their own out of an import that it broke off."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: RunConfig
    status: str
    """finished, pruned, failed or interrupted."""
    reason: str = ""
    """Why it failed, one line."""
    summary: dict[str, Any] = field(default_factory=dict)
    cause: str = ""
    """"locked" where another process is at work on the run, "rank failed" where another rank of it is."""

    @cached_property
    def folder(self) -> Path:
        return run_folder(self.run)


class RunLauncher(abc.ABC):
    """Takes runs by `submit`, tells how they ended by `poll`, stops them by `cancel`."""

    target: str
    leaves_on_interrupt = False
    """Whether Ctrl-C ends the driver alone and the runs go on."""

    @abc.abstractmethod
    def open(self, runs: Sequence[RunConfig]) -> str:
        """Decide how many runs like these go at a time; says so, and why. Called once, first."""

    @property
    @abc.abstractmethod
    def slots(self) -> int:
        """Runs at a time."""

    @property
    def trouble(self) -> str:
        """Why the state of runs cannot be told at the moment; empty where it can."""
        return ""

    @property
    @abc.abstractmethod
    def busy(self) -> bool:
        """Whether a submitted run has not been told of by `poll`."""

    @property
    @abc.abstractmethod
    def running(self) -> list[Path]:
        """The folders of the runs at work."""

    def announce(self, run: RunConfig) -> bool:
        """Note a run that will be submitted, for `python -m sweeps status`; True where an earlier command submitted it
        and `poll` will tell of it without another `submit`."""
        announce(run, self.target)
        return False

    @abc.abstractmethod
    def submit(self, run: RunConfig) -> None:
        """Start a run whose inputs are finished, as soon as there is room."""

    @abc.abstractmethod
    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        """The runs that have ended since the last call; waits up to `timeout` seconds for the first."""

    @abc.abstractmethod
    def cancel(self, folders: Collection[Path] | None = None, *, kill: bool = False) -> None:
        """Ask the runs of these folders (None: all) to checkpoint and stop; `kill`: do not ask."""


def log_path(run: RunConfig) -> Path:
    """Where a run's prints and tracebacks go."""
    return sweep_folder(run) / LOGS / f"{run_id(run)}.log"


def record_path(run: RunConfig) -> Path:
    """The frozen config, and where the run was started."""
    return sweep_folder(run) / JOBS / f"{run_id(run)}.json"


def outcome_path(run: RunConfig) -> Path:
    """Where a job or driver says how the run ended, for a run that could not say so itself."""
    return record_path(run).with_suffix(".outcome")


def stop_path(run: RunConfig) -> Path:
    """A file that asks the job to stop this run alone."""
    return record_path(run).with_suffix(".stop")


def announce(run: RunConfig, target: str) -> None:
    """Note a run that this process will do or have done; how an earlier command's ended is forgotten."""
    outcome_path(run).unlink(missing_ok=True)
    write_record(run, target)


def typed() -> str:
    """This command, without overwrite=true, which would start afresh once more."""
    program, *words = sys.argv
    start = ["-m", "sweeps"] if Path(program).parts[-2:] == ("sweeps", "__main__.py") else [program]
    return shlex.join(["python", *start, *(word for word in words if not word.lstrip("+").startswith("overwrite="))])


def note_interrupted(runs: Iterable[RunConfig]) -> None:
    """Say so for runs that had not begun, and so cannot themselves."""
    for run in runs:
        with contextlib.suppress(OSError):  # a full disk must not hide that the command ends
            write_json(outcome_path(run), {"status": "interrupted", "reason": ""})


def write_record(run: RunConfig, target: str, **where: Any) -> None:
    """Say that this driver has taken on `run`: on this machine, or as the SLURM job that `where` names."""
    driver = {"host": socket.gethostname(), "driver": os.getpid(), "driver_started": process_start(os.getpid())}
    folders = {name: str(Path(getattr(run, name)).absolute()) for name in ("output_dir", "cache_dir")}
    config = {**config_to_mapping(run), **folders, "overwrite": False}  # as `python -m sweeps rerun` takes it up
    times = dict.fromkeys(("submitted_at", "written_at"), time.time())
    write_json(record_path(run), {**driver, **times, "command": typed(), "target": target, **where, "config": config})


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a sweep folder by run id."""
    files = sorted((folder / JOBS).glob("*.json"))
    return {file.stem: record for file in files if (record := read_json(file))}


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
    """Complete or not at all; for its owner alone, since a record holds the whole config."""
    with file_errors(path.parent, "make it"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(mapping), mode=0o600)
