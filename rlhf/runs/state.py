"""The files of a run folder by name, and how its run stands by them. Imports no torch.

Every reader here raises FileError, which names the file, where it is damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.errors import FileError
from rlhf.files import file_errors, read_json_lines, read_json_object, write_whole

CONFIG, METRICS, SAMPLES, SUMMARY = "config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json"
EVALUATIONS = "evaluations.jsonl"  # a row per evaluation with the numbers of every prompt
LOCK, LOCK_GUARD, OVERWRITES = "lock.json", ".lock.guard", "overwrites.json"
REFERENCE_SAMPLES = "scores.npz"  # in final/ of stage=reference_samples
KEPT_REFERENCES = "reference_samples"  # in a sweep's folder: these files by the id of the run that made them
JOBS, LOGS = "jobs", "logs"  # in a sweep's folder: how each run was started, and what it printed
CHECKPOINTS, BAD_STEPS, FINAL = "checkpoints", "bad_steps", "final"

OVER = ("finished", "pruned")
"""States after which a run is skipped."""


def read_summary(folder: Path) -> dict[str, Any]:
    """A run folder's summary.json; empty where the run has not ended."""
    summary = read_json_object(folder / SUMMARY)
    if summary is not None and not isinstance(summary.get("status"), str):
        raise FileError(f"{folder / SUMMARY}: does not say how the run ended; delete it and type the command again")
    return summary or {}


def finished(run: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that need not be started again."""
    summary = {} if run.overwrite else read_summary(run_folder(run))
    return summary if summary.get("status") in OVER else None


def unfinished_inputs(run: RunConfig) -> list[RunConfig]:
    """The runs that this one starts from and that are still to be done, in order."""
    return [need for need in input_runs(run) if finished(need) is None]


def keep_reference_samples(sweep: Path, final: Path) -> str:
    """Copy the scores of stage=reference_samples beside the runs that start from them, once for all; their name there.

    Raises:
        FileError: they cannot be read, or the disk is full.
    """
    name = f"{final.parent.name}.npz"
    place = sweep / KEPT_REFERENCES / name
    if not place.exists():
        with file_errors(final / REFERENCE_SAMPLES, "read it"):
            content = (final / REFERENCE_SAMPLES).read_bytes()
        with file_errors(place, "write it"):
            place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, content)
    return name


def times_emptied(folder: Path) -> int:
    """How often overwrite=true has started a run's folder afresh."""
    content = read_json_object(folder / OVERWRITES)
    count = 0 if content is None else content.get("count")
    if not isinstance(count, int) or count < 0:
        raise FileError(f"{folder / OVERWRITES}: holds no count; delete the file and type the command again")
    return count


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl."""
    return read_json_lines(folder / METRICS)
