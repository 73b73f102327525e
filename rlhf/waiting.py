"""Waiting for another process, which ends when this one is asked to stop. Imports no torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf.files import os_error_with_path
from rlhf.terminal import say

LOOK_SECONDS = 1.0
SAY_AFTER_SECONDS = 10.0


class Interrupted(Exception):
    """The run was asked to stop, and what it has saved is enough to go on; typing the command again does."""


class StoppedWaiting(Interrupted):
    """The same, of a process that waited for another one; other ranks of the run may be elsewhere."""


@dataclass
class StopFlag:
    """Set by a signal handler, read where a run can stop."""

    requested: str | None = None
    """Name of the signal."""


_heeded = StopFlag()
"""The flag of the run at work in this process."""


@contextlib.contextmanager
def heeding(stop: StopFlag) -> Iterator[None]:
    """While in the context, `locked` stops waiting once `stop` is set."""
    global _heeded
    before, _heeded = _heeded, stop
    try:
        yield
    finally:
        _heeded = before


def stop_requested() -> str | None:
    """The signal that asked the run in this process to stop."""
    return _heeded.requested


@contextlib.contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it, wait.

    Args:
        doing: what the other process does, as "converts the data".

    Raises:
        StoppedWaiting: this run was asked to stop meanwhile.
        FileError: the file system has no locks, or the file cannot be written.
    """
    lock = FileLock(path)
    began, said = time.monotonic(), False
    while not acquired(lock, LOOK_SECONDS):
        if stopped := stop_requested():
            raise StoppedWaiting(f"stopped by {stopped} while another process {doing}; type the command again to go on")
        if not said and time.monotonic() - began > SAY_AFTER_SECONDS:
            said = True
            say(f"waiting while another process {doing}; if there is none, delete {path}")
    try:
        yield
    finally:
        lock.release()


def pause(seconds: float, meanwhile: str) -> None:
    """Sleep, unless this run is asked to stop.

    Args:
        meanwhile: what is waited for, as "the server rests".

    Raises:
        StoppedWaiting: this run was asked to stop before the time was over.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stopped := stop_requested():
            raise StoppedWaiting(f"stopped by {stopped} while {meanwhile}; type the command again to go on")
        time.sleep(min(left, LOOK_SECONDS))


def acquired(lock: FileLock, timeout: float) -> bool:
    """Whether the lock was free within `timeout` seconds.

    Raises:
        FileError: the file system has no locks, or the file cannot be written.
    """
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    except OSError as error:
        raise os_error_with_path(error, Path(lock.lock_file), "lock it") from error
    return True
