"""Requests to stop, and waits for another process that end when one comes in. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf.files import file_error
from rlhf.processes import STOP_SIGNALS
from rlhf.terminal import say

LOOK_SECONDS = 1.0
SAY_AFTER_SECONDS = 10.0


class Interrupted(Exception):
    """The run was asked to stop, and what it has saved is enough to go on; typing the command again does."""


class LateError(BaseException):
    """What `within` bounds took longer than it may; no Exception, which a stranger's code may well swallow."""


class StoppedWaiting(Interrupted):
    """The same, of a process that waited for another one; other ranks of the run may be elsewhere."""


_requested: str | None = None


def stop_requested() -> str | None:
    """Name of the signal that asked the run in this process to stop; None while it may go on."""
    return _requested


def request_stop(signal_name: str) -> None:
    """Ask the run in this process to stop, as a signal does."""
    global _requested
    _requested = signal_name


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While in the context, STOP_SIGNALS are requests to stop, and a second SIGINT is a KeyboardInterrupt.

    In the main thread alone, where Python lets handlers be set; elsewhere signals stay as they are.
    """
    global _requested

    def handle(number: int, _: object) -> None:
        if _requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        request_stop(signal.Signals(number).name)

    main = threading.current_thread() is threading.main_thread()
    requested_before, _requested = _requested, None
    handlers = {number: signal.signal(number, handle) for number in STOP_SIGNALS if main}
    try:
        yield
    finally:
        _requested = requested_before
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop_waiting_if_asked(meanwhile: str) -> None:
    """Raise StoppedWaiting where this run was asked to stop; `meanwhile` is as "the server rests"."""
    if _requested:
        raise StoppedWaiting(f"stopped by {_requested} while {meanwhile}; type the command again to go on")


@contextlib.contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it and is `doing`, as "converts the data", wait.

    Raises:
        StoppedWaiting: this run was asked to stop meanwhile.
        FileError: the file system has no locks, or the file cannot be written.
    """
    lock = FileLock(path)
    say_at: float | None = time.monotonic() + SAY_AFTER_SECONDS
    while not acquired(lock, LOOK_SECONDS):
        stop_waiting_if_asked(f"another process {doing}")
        if say_at is not None and time.monotonic() > say_at:
            say_at = None
            say(f"waiting while another process {doing}; if there is none, delete {path}")
    try:
        yield
    finally:
        lock.release()


def pause(seconds: float, meanwhile: str) -> None:
    """Sleep; raises StoppedWaiting, as `stop_waiting_if_asked` does, once this run is asked to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stop_waiting_if_asked(meanwhile)
        time.sleep(min(left, LOOK_SECONDS))


def acquired(lock: FileLock, timeout: float) -> bool:
    """Whether the lock was free within `timeout` seconds; FileError where the file system has no locks."""
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    except OSError as error:
        raise file_error(error, Path(lock.lock_file), "lock it") from error
    return True


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise LateError in the block once it has taken so long.

    By a signal, which ends Python code and waits alike, in the main thread alone; elsewhere nothing is bounded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_number: int, _frame: object) -> None:
        raise LateError(f"took more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
