"""One process per run folder: lock.json with host, pid, job id, token and heartbeat.

A second process takes the folder over only when the first one's pid is dead on this host or its lease has run out
(a lost node). Every append and checkpoint first checks that the token is still this process's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlhf.errors import UserError
from rlhf.files import write_whole

# In the environment of a sweep's children and jobs: one that meets a live holder (another driver's, a killed driver's
# child that still ends its iteration, a requeued job's earlier self) waits for it instead of failing.
WAIT_FOR_LOCK = "RLHF_WAIT_FOR_LOCK"

LEASE_SECONDS = 120.0
HEARTBEAT_SECONDS = 10.0


class LockError(UserError, RuntimeError):
    """Another process is at work on this run, or has taken it over."""


class RunLock:
    """Holds a run folder while in a `with` block.

    Args:
        wait_while: asked once a second while another live process holds the folder; False ends the wait. A job that
            SLURM has requeued may meet the lease of its own earlier self, whose node was lost.

    Raises:
        LockError: on entry, when another live process holds it; from `check`, when another has taken it over.
    """

    def __init__(self, folder: Path, wait_while: Callable[[], bool] = lambda: False) -> None:
        self._wait_while = wait_while
        self.path = folder / "lock.json"
        self.token = secrets.token_hex(8)
        self._guard = FileLock(folder / ".lock.guard")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run-lock-heartbeat")

    def __enter__(self) -> RunLock:
        while (holder := self._taken_by_another()) is not None:
            if not self._wait_while():
                raise LockError(
                    f"{self.path.parent}: pid {holder['pid']} on {holder['host']} is at work on this run; "
                    "wait for it, or end it"
                )
            time.sleep(1.0)
        self._thread.start()
        return self

    def _taken_by_another(self) -> dict[str, Any] | None:
        """The live process that holds the folder; None once it is this one's."""
        with self._guard:
            holder = self._read()
            if holder is not None and is_alive(holder):
                return holder
            self._write()
        return None

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with self._guard:
            if self._mine():
                self.path.unlink()

    def check(self) -> None:
        """Called before every write into the folder."""
        if not self._mine():
            raise LockError(f"{self.path.parent}: another process has taken this run over; stopping without a write")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError), self._guard:  # a full disk now may have room at the next beat
                if not self._mine():
                    return
                self._write()

    def _mine(self) -> bool:
        holder = self._read()
        return holder is not None and holder["token"] == self.token

    def _read(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:  # cut off by a full disk or a killed host: nobody's
            return None
        whole = isinstance(holder, dict) and {"host", "pid", "pid_started", "token", "heartbeat"} <= set(holder)
        return holder if whole else None

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


def is_alive(holder: Mapping[str, Any]) -> bool:
    """Whether the process that a lock.json names is, or may be, at work."""
    if holder["host"] == socket.gethostname():
        # A pid alone may have been given to another process since.
        return process_start(holder["pid"]) == holder["pid_started"] is not None
    return time.time() - holder["heartbeat"] < LEASE_SECONDS


def process_start(pid: int) -> str | None:
    """When a process of this host began, in clock ticks since boot; None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        return _start_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _start_without_proc(pid: int) -> str | None:
    """macOS and the like: whether the pid lives is all that can be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
