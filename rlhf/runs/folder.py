"""The folder of the run at work: every row, sample, checkpoint and summary is written through `RunFolder`."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import edited, other_server
from rlhf.distributed import on_first_rank, rank
from rlhf.files import file_errors, flush_to_disk, write_whole
from rlhf.finite import check_saved
from rlhf.runs.checkpoint import Checkpoint, CheckpointError, find_checkpoint, read_checkpoint, save_checkpoint
from rlhf.runs.lock import RunLock
from rlhf.runs.state import (
    BAD_STEPS,
    CONFIG,
    EVALUATIONS,
    FINAL,
    LOCK,
    LOCK_GUARD,
    METRICS,
    OVERWRITES,
    SAMPLES,
    SUMMARY,
    read_rows,
    times_emptied,
)
from rlhf.terminal import say

if TYPE_CHECKING:
    from rlhf.runs.mirror import WandbMirror
    from rlhf.runs.tensorboard import TensorboardMirror


LOGS: tuple[str, ...] = (METRICS, SAMPLES, EVALUATIONS)
"""What grows during a run; a checkpoint says how long each was, and a resumed run cuts them back to that."""


class RunFolder:
    """One run's folder, made and locked while in a `with` block.

    Every rank has one and calls the same methods at the same places. Rank 0 alone holds the lock and writes, each time
    only if the folder is still its own.

    Args:
        wait: for another process that is at work on the run, instead of failing.

    Raises:
        LockError: another process is at work on the run, or has taken it over.
        Interrupted: on entry, when the run was asked to stop meanwhile.
        FileError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, wait: bool = False) -> None:
        self.path = path
        self.mirrors: list[WandbMirror | TensorboardMirror] = []
        self._lock = RunLock(path, wait)

    def __enter__(self) -> RunFolder:
        def take() -> str:
            with file_errors(self.path, "make it"):
                self.path.mkdir(parents=True, exist_ok=True)
            return self._lock.__enter__().token

        self._lock.token = on_first_rank(take)
        return self

    def __exit__(self, *_: object) -> None:
        if rank() == 0:
            self._lock.__exit__()

    @property
    def final(self) -> Path:
        """Where the final weights lie."""
        return self.path / FINAL

    def write(self, write: Callable[[], object]) -> None:
        """Let rank 0 write into the folder, if it is still this run's; the others go on when that is done."""

        def checked() -> None:
            self._lock.check()
            write()

        on_first_rank(checked)

    def begin(self, config: RunConfig, inputs: Mapping[str, str]) -> Checkpoint | None:
        """Make the folder as a stage expects it: emptied, or with the logs as the newest checkpoint covers them.

        Args:
            inputs: fingerprints of the weights that the run starts from.

        Returns:
            The checkpoint, None where the run begins.

        Raises:
            CheckpointError: none can be read, the logs lack what it covers, or it was made of other inputs.
        """
        newest = on_first_rank(lambda: self._begin(config, inputs))
        return None if newest is None else read_checkpoint(*newest)

    def _begin(self, config: RunConfig, inputs: Mapping[str, str]) -> tuple[Path, dict[str, Any]] | None:
        overwrites = self._empty() if config.overwrite else times_emptied(self.path)
        with file_errors(self.path, "begin in it"):
            (self.path / SUMMARY).unlink(missing_ok=True)
        if not config.overwrite:
            if change := edited(self.path, config):
                say(f"{self.path / CONFIG} is written anew: {change}; settings are those of the command")
            if change := other_server(self.path, config):
                say(change)
        write_whole(self.path / CONFIG, yaml.safe_dump(config_to_mapping(config), sort_keys=False))
        if config.tracking.wandb != "off":
            from rlhf.runs.mirror import WandbMirror

            self.mirrors.append(WandbMirror(config, self.path, overwrites))
        if config.tracking.tensorboard:
            from rlhf.runs.tensorboard import TensorboardMirror

            self.mirrors.append(TensorboardMirror(config, self.path))
        newest = find_checkpoint(self.path)
        lengths = dict.fromkeys(LOGS, 0)
        if newest is not None:
            with Checkpoint({}, newest[1]).reading() as state:
                same = state["inputs"] == inputs
                lengths = {name: int(state["log_lengths"][name]) for name in lengths}
            if not same:
                raise CheckpointError(
                    f"{self.path}: its SFT policy or reward model is another one than when it began; "
                    "overwrite=true starts afresh"
                )
        self.cut_back(lengths)
        return newest

    def _empty(self) -> int:
        """Delete all but the lock; how often that has been done tells W&B runs apart."""
        emptied = times_emptied(self.path) + (self.path / CONFIG).exists()
        write_whole(self.path / OVERWRITES, json.dumps({"count": emptied}))
        with file_errors(self.path, "empty it"):
            for path in self.path.iterdir():
                if path.name not in (LOCK, LOCK_GUARD, OVERWRITES):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return emptied

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl, flushed at once; NaN and infinities become null, which JSON can hold."""
        self._append(METRICS, [row])

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to samples.jsonl likewise."""
        self._append(SAMPLES, rows)

    def log_evaluation(self, row: Mapping[str, Any]) -> None:
        """Append to evaluations.jsonl likewise what an evaluation found at each prompt."""
        self._append(EVALUATIONS, [row])

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        if rank():
            return  # all ranks log the same rows
        self._lock.check()
        path = self.path / name
        with file_errors(path, "append to it"), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

    def last_evaluation(self) -> dict[str, Any]:
        """eval/* of the last row that has any: what a run ends with, even one that resumes with nothing left to do."""
        for row in reversed(on_first_rank(lambda: read_rows(self.path))):
            if metrics := {key: value for key, value in row.items() if key.startswith("eval/")}:
                return metrics
        return {}

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Checkpoint after everything up to `step` was logged, then let the mirrors have those rows.

        Raises:
            NotFinite: a number is NaN or infinite.
            CheckpointError: it cannot be written.
        """

        def write() -> None:
            check_saved(tensors, state, step)
            save_checkpoint(self.path, step, tensors, {**state, "log_lengths": self.log_lengths()})
            for mirror in self.mirrors:
                mirror.log(read_rows(self.path))

        self.write(write)

    def log_lengths(self) -> dict[str, int]:
        """Bytes of each log, which are on disk when this returns: a checkpoint is going to rely on them."""
        paths = {name: self.path / name for name in LOGS}
        for path in paths.values():
            if path.exists():
                with file_errors(path, "flush it to disk"):
                    flush_to_disk(path)
        return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}

    def cut_back(self, lengths: Mapping[str, int]) -> None:
        """Drop what was logged after a checkpoint with these `log_lengths`, or all of it: 0."""
        self._lock.check()
        for name, length in lengths.items():
            path = self.path / name
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise CheckpointError(
                    f"{path}: has {size} of the {length} bytes that its checkpoint covers; overwrite=true starts afresh"
                )
            if size > length:
                with file_errors(path, "cut it back"):
                    os.truncate(path, length)

    def keep_bad_step(self, step: int, content: Callable[[], Mapping[str, Any]]) -> Path:
        """Write down the batch of a step that was left out; returns its file.

        Args:
            content: asked on rank 0 alone; its numbers may be NaN or infinite, and are texts in the file.
        """
        file = self.path / BAD_STEPS / f"{step:08d}.json"

        def write() -> None:
            file.parent.mkdir(exist_ok=True)
            write_whole(file, json.dumps(_spelled(content()), ensure_ascii=False, indent=1))

        self.write(write)
        return file

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Say in summary.json how the run ended. Not collective: another rank may have ended."""
        if rank() == 0:
            self._lock.check()
            write_whole(self.path / SUMMARY, json.dumps(_finite(summary), indent=1, allow_nan=False))

    def close_mirrors(self, summary: Mapping[str, Any]) -> None:
        """The mirrors' end: of a run that is not finished, rows that no checkpoint covers will be made again.

        After `write_summary`, so that a mirror that hangs cannot hold back a result.
        """
        for mirror in self.mirrors:
            if summary["status"] == "finished":
                mirror.log(read_rows(self.path))
            mirror.finish(summary)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}


def _spelled(value: Any) -> Any:
    """The same with "nan", "inf" and "-inf" as texts: JSON has no such numbers, and they are what is looked for."""
    if isinstance(value, Tensor):
        return _spelled(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _spelled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(inner) for inner in value]
    return value
