"""Answers that have been paid for, one JSON line each.

A file that is only appended to, rather than sqlite: a line is written by one call and is on disk before the answer is
used, so that a process killed at any moment loses at most the line it was writing; a bad line costs that answer alone;
and one can read it. Two evaluations at a time would not see each other's lines, so the second is refused by a lock.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from analysis.plain import whole_text
from analysis.winrate.errors import WinrateError
from analysis.winrate.prompt import Reply

_TEXTS = ("content", "model", "finish_reason")
_COUNTS = ("prompt_tokens", "completion_tokens")


class AnswerCache:
    """Replies by key. Reading needs no lock; `put` works between `with` and its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock", timeout=0)
        self._file: IO[bytes] | None = None
        self._replies = _read(path)

    def __enter__(self) -> AnswerCache:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._replies = _read(self.path)  # what came since
            self._file = self.path.open("ab", buffering=0)
            if _ends_within_a_line(self.path):
                self._file.write(b"\n")
        except Timeout as error:
            raise WinrateError(f"{self.path} is in use by another evaluation; wait, or give --cache FILE") from error
        except OSError as error:
            raise WinrateError(f"--cache {self.path}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        assert self._file is not None
        self._file.close()
        self._file = None
        self._lock.release()

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """On disk when this returns."""
        assert self._file is not None, "the cache is open for reading only"
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        try:
            written = self._file.write(line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WinrateError(f"--cache {self.path}: cannot be written ({error.strerror}); make room") from error
        if written != len(line):
            raise WinrateError(f"--cache {self.path}: a line was cut off; make room on the disk")
        self._replies[key] = reply


def _read(path: Path) -> dict[str, Reply]:
    """Lines that are no replies, such as one cut off by a kill, are passed over: they will be asked for again."""
    replies: dict[str, Reply] = {}
    if not path.exists():
        return replies
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise WinrateError(f"--cache {path}: cannot be read ({error.strerror})") from error
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # the latter for what is nested too deep
            continue
        reply = _reply_of(row)
        if reply is not None:
            replies[row["key"]] = reply
    return replies


def _reply_of(row: Any) -> Reply | None:
    """None where it is no reply with a key."""
    if not isinstance(row, dict) or row.keys() != {"key", *_TEXTS, *_COUNTS}:
        return None
    if not all(isinstance(row[name], str) for name in ("key", *_TEXTS)):
        return None
    if not all(row[name] is None or type(row[name]) is int for name in _COUNTS):  # True is no count
        return None
    texts = {name: whole_text(row[name]) for name in _TEXTS}
    return Reply(**texts, **{name: row[name] for name in _COUNTS})


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
