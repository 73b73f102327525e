"""One process per run folder: lock.json with host, pid, job id, token and heartbeat. Imports no torch.

A second process takes the folder over only when the first one's pid is dead on this host, or, of another host (a lost
node), when its heartbeat has not changed for the time of a lease, by the watch of the second: no two clocks are
compared. Every append and checkpoint first checks that the token is still this process's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlhf.errors import FileError, UserError
from rlhf.files import file_errors, read_json_object, write_whole
from rlhf.runs.state import LOCK, LOCK_GUARD
from rlhf.terminal import say
from rlhf.waiting import SAY_AFTER_SECONDS, acquired, locked, stop_waiting_if_asked

# In the environment of a sweep's children and jobs: one that meets a live holder (another driver's, a killed driver's
# child that still ends its iteration, a requeued job's earlier self) waits for it instead of failing.
WAIT_FOR_LOCK = "RLHF_WAIT_FOR_LOCK"

LEASE_SECONDS = 120.0
"""After so long without a new heartbeat a process of another host counts as lost."""
HEARTBEAT_SECONDS = 10.0
LOOK_SECONDS = 1.0
GUARD_SECONDS = 30.0
"""Longest wait for the file that guards lock.json, which others hold for milliseconds."""

_FIELDS = {"host", "pid", "pid_started", "token", "heartbeat"}


class LockError(UserError, RuntimeError):
    """Another process is at work on this run, or has taken it over."""


class RunLock:
    """Holds a run folder while in a `with` block.

    Args:
        wait: for another live process to end, instead of failing; so does WAIT_FOR_LOCK in the environment.

    Raises:
        LockError: on entry, when another live process holds it; from `check`, when another has taken it over.
        StoppedWaiting: on entry, when this run was asked to stop meanwhile.
        FileError: lock.json cannot be written, or the file system has no locks.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self._wait = wait or WAIT_FOR_LOCK in os.environ
        self.path = folder / LOCK
        self.token = secrets.token_hex(8)
        self._guard = FileLock(folder / LOCK_GUARD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run-lock-heartbeat")

    def __enter__(self) -> RunLock:
        watch, began, said = _Watch(), time.monotonic(), False
        while (holder := self._take(watch)) is not None:
            stop_waiting_if_asked(f"another process held {self.path.parent}")
            name = f"pid {holder['pid']} on {holder['host']}"
            alive = watch.beats or holder["host"] == socket.gethostname()
            if alive and not self._wait:
                raise LockError(f"{self.path.parent}: {name} is at work on this run; wait for it, or end it")
            if not said and not alive:
                said = True
                lease = f"{LEASE_SECONDS:.0f} seconds"
                say(f"{self.path}: left by {name}; it is taken over if it does not change for {lease}")
            if not said and time.monotonic() - began > SAY_AFTER_SECONDS:
                said = True
                say(f"{self.path.parent}: waiting for {name}, which is at work on this run")
            time.sleep(LOOK_SECONDS)
        self._thread.start()
        return self

    def _take(self, watch: _Watch) -> dict[str, Any] | None:
        """Take the folder; the process that holds it and may live where there is one."""
        with locked(Path(self._guard.lock_file), f"looks at {self.path}"):
            holder = _read(self.path)
            if holder is not None and (_lives_here(holder) or watch.may_live(holder)):
                return holder
            self._write()
        return None

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with self._guarded() as alone:  # a lock.json that stays is taken over, since its process has ended
            if alone and self._mine():
                with file_errors(self.path, "delete it"):
                    self.path.unlink()

    def check(self) -> None:
        """Called before every write into the folder."""
        if not self._mine():
            raise LockError(f"{self.path.parent}: another process has taken this run over; stopping without a write")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A full disk now may have room at the next beat.
            with contextlib.suppress(OSError), self._guarded() as alone:
                if alone and not self._mine():
                    return
                if alone:
                    self._write()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[bool]:
        """Whether this process alone looks at lock.json meanwhile; not where others keep the guard for too long."""
        alone = acquired(self._guard, GUARD_SECONDS)
        try:
            yield alone
        finally:
            if alone:
                self._guard.release()

    def _mine(self) -> bool:
        holder = _read(self.path)
        return holder is not None and holder["token"] == self.token

    def _write(self) -> None:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_started": process_start(os.getpid()),
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "token": self.token,
            "heartbeat": time.time(),
        }
        write_whole(self.path, json.dumps(holder))


@dataclass
class _Watch:
    """Whether the heart of a process on another host beats, as seen from here."""

    beats: bool = False
    """A heartbeat has changed while it was watched."""
    _last: tuple[str, Any] | None = None
    _since: float = 0.0

    def may_live(self, holder: Mapping[str, Any]) -> bool:
        """Not a process of this host, nor one whose heartbeat has stood still for the time of a lease."""
        if holder["host"] == socket.gethostname():
            return False
        now, beat = time.monotonic(), (str(holder["token"]), holder["heartbeat"])
        if beat != self._last:
            self.beats = self._last is not None
            self._last, self._since = beat, now
        return now - self._since < LEASE_SECONDS


def _lives_here(holder: Mapping[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return False
    # A pid alone may have been given to another process since.
    return process_start(holder["pid"]) == holder["pid_started"] is not None


def _read(path: Path) -> dict[str, Any] | None:
    """What lock.json says; None where there is none, or one that was cut off by a full disk or a killed host."""
    try:
        holder = read_json_object(path) or {}
    except FileError as error:
        if error.errno is not None:  # it is there and cannot be read
            raise
        return None
    return holder if set(holder) >= _FIELDS else None


def held_here(folder: Path) -> bool:
    """Whether a process of this machine holds the run's folder."""
    holder = _read(folder / LOCK)
    return holder is not None and _lives_here(holder)


def seems_alive(holder: Mapping[str, Any]) -> bool:
    """Whether the process that a lock.json names seems to be at work, for a display that looks once.

    Of another host the two clocks are compared, which may differ: nothing may be taken over for this answer.
    """
    if not set(holder) >= _FIELDS:
        return False
    if holder["host"] == socket.gethostname():
        return _lives_here(holder)
    beat, now = holder["heartbeat"], time.time()
    return isinstance(beat, int | float) and now - LEASE_SECONDS < beat < now + LEASE_SECONDS


def process_start(pid: object) -> str | None:
    """When a process of this host began, in clock ticks since boot; None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, ValueError):
        no_proc = not Path("/proc/self/stat").exists()  # as on macOS, where only whether it lives is known
        return "alive" if no_proc and isinstance(pid, int) and _is_alive(pid) else None
    return None if fields[0] == "Z" else fields[19]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
