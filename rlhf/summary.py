"""How a run ended, as its folder says: summary.json. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder
from rlhf.errors import FileError
from rlhf.files import read_json_object

SUMMARY, OVERWRITES = "summary.json", "overwrites.json"
OVER = ("finished", "pruned")
"""States after which a run is skipped."""


def read_summary(folder: Path) -> dict[str, Any]:
    """A run folder's summary.json; empty where the run has not ended.

    Raises:
        FileError: the file is damaged.
    """
    path = folder / SUMMARY
    summary = read_json_object(path)
    if summary is not None and not isinstance(summary.get("status"), str):
        raise FileError(f"{path}: does not say how the run ended; delete it and type the command again")
    return {} if summary is None else summary


def finished(run: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that need not be started again.

    Raises:
        FileError: its summary.json is damaged.
    """
    if run.overwrite:
        return None
    summary = read_summary(run_folder(run))
    return summary if summary.get("status") in OVER else None


def times_emptied(folder: Path) -> int:
    """How often a run's folder was started afresh.

    Raises:
        FileError: overwrites.json is damaged.
    """
    path = folder / OVERWRITES
    found = read_json_object(path)
    count = 0 if found is None else found.get("count")
    if not isinstance(count, int) or count < 0:
        raise FileError(f"{path}: holds no count; delete the file and type the command again")
    return count
