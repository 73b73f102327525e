"""What a run writes beside its weights: metrics.jsonl and samples.jsonl always, W&B as a mirror of the former."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlhf.checkpoint import CheckpointError
from rlhf.distributed import first_says, rank
from rlhf.files import flush_to_disk, read_json_lines, told_with_path
from rlhf.lock import RunLock

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Mirror(Protocol):
    """Where rows go once a checkpoint covers them. `log` gets all rows so far and passes on those it has not sent."""

    def log(self, rows: list[dict[str, Any]]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...


class Tracker:
    """Appends rows, each flushed at once; on resume the files are cut back to what the checkpoint covers.

    Of several ranks, which all log the same rows, the first alone writes them.
    """

    def __init__(self, folder: Path, lock: RunLock, mirror: Mirror | None) -> None:
        self.folder = folder
        self.lock = lock
        self.mirror = mirror

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl; NaN and infinities become null, which JSON can hold."""
        self._append(METRICS, [row])

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._append(SAMPLES, rows)

    def covered(self) -> None:
        """A checkpoint now holds everything logged so far: pass it on to the mirror."""
        if self.mirror is not None:
            self.mirror.log(read_rows(self.folder))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over: every row goes to the mirror."""
        self.covered()
        self.close(summary)

    def close(self, summary: Mapping[str, Any]) -> None:
        """The run stops here; rows that no checkpoint covers are not passed on, since they will be made again."""
        if self.mirror is not None:
            self.mirror.finish(summary)

    def lengths(self) -> dict[str, int]:
        """Bytes of each file, which are on disk when this returns: a checkpoint is going to rely on them."""
        paths = {name: self.folder / name for name in (METRICS, SAMPLES)}
        for path in paths.values():
            if path.exists():
                with told_with_path(path, "flush it to disk"):
                    flush_to_disk(path)
        return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}

    def cut_back(self, lengths: Mapping[str, int]) -> None:
        """Drop what was written after the checkpoint (or all of it: length 0)."""
        self.lock.check()
        for name, length in lengths.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise CheckpointError(
                    f"{path}: has {size} of the {length} bytes that its checkpoint covers; overwrite=true starts afresh"
                )
            if size > length:
                with told_with_path(path, "cut it back"):
                    os.truncate(path, length)

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        if rank():
            return
        self.lock.check()
        path = self.folder / name
        with told_with_path(path, "append to it"), path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

    def last_evaluation(self) -> dict[str, Any]:
        """eval/* of the last row that has any: what a run ends with, even one that resumes with nothing left to do."""
        for row in reversed(first_says(lambda: read_rows(self.folder))):
            if found := {key: value for key, value in row.items() if key.startswith("eval/")}:
                return found
        return {}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl.

    Raises:
        FileError: a line holds something else.
    """
    return read_json_lines(folder / METRICS)


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with null for NaN and infinities, which JSON does not have."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
