"""Runs as child processes of this machine, forked from a warm server that has torch and the models imported."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder
from rlhf.errors import one_line
from rlhf.processes import (
    ROOT,
    TELL_AGAIN_SECONDS,
    RankFailed,
    how_it_died,
    ignore_until_the_run_listens,
    signals_held,
    stop_without_parent,
)
from rlhf.runs.lock import WAIT_FOR_LOCK, LockError
from rlhf.terminal import complain
from sweeps.machine import Room, check_device, room_for, thread_environment, threads_of
from sweeps.runs import EXECUTE, Outcome, RunLauncher, log_path

# What multiprocessing says of every child once the forkserver is gone.
SERVER_DIED = 255


@dataclass
class _Child:
    run: RunConfig
    folder: Path
    process: ForkServerProcess
    result: Connection
    threads: int
    gpus: tuple[str, ...]
    """One for each rank; none where there are none to hand out."""
    message: tuple[str, Any] | None = None
    asked_at: float | None = None
    """When it was last asked to stop; None: never."""

    def receive(self) -> None:
        if self.message is None and self.result.poll():
            try:
                self.message = self.result.recv()
            except EOFError:
                self.message = ("died", None)

    def ask_to_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.asked_at = time.monotonic()
        if self.process.is_alive() and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                # A killed one with all that it may have started.
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)

    def outcome(self) -> Outcome:
        """Of a process that has ended, which is let go."""
        self.process.join()
        self.result.close()
        code, pid = self.process.exitcode, self.process.pid
        self.process.close()
        if code == SERVER_DIED and self.message is None and pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)  # it may live on, unseen
        match self.message:
            case ("returned", summary):
                status = summary.get("status", "finished")
                return Outcome(self.run, status, str(summary.get("error", "")) if status == "failed" else "", summary)
            case ("" | "locked" | "rank failed" as cause, line):
                return Outcome(self.run, "failed" if self.asked_at is None else "interrupted", line, cause=cause)
            case _ if self.asked_at is not None:
                return Outcome(self.run, "interrupted")
            case _:
                lost = "lost with the process that started it (out of memory, or killed)"
                return Outcome(self.run, "failed", lost if code in (None, SERVER_DIED) else how_it_died(code or 0))


@dataclass
class LocalRuns(RunLauncher):
    """As many children at a time as threads, memory and GPUs carry."""

    target: str = EXECUTE
    environment: Mapping[str, str] = field(default_factory=dict)
    """What every child has in its environment besides (ranks of a SLURM job)."""
    room: Room = field(default_factory=lambda: Room(1, 1))
    _queue: deque[RunConfig] = field(default_factory=deque)
    _children: list[_Child] = field(default_factory=list)
    _dropped: list[Outcome] = field(default_factory=list)

    def open(self, runs: Sequence[RunConfig]) -> str:
        check_device(runs[0])
        self.room, why = room_for(runs[0])
        return f"at most {self.slots} at a time ({why})"

    @property
    def slots(self) -> int:
        return self.room.runs

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._children or self._dropped)

    @property
    def running(self) -> list[Path]:
        return [child.folder for child in self._children]

    def submit(self, run: RunConfig) -> None:
        self._queue.append(run)
        self._fill()

    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        if not self._dropped:
            open_results = [child.result for child in self._children if child.message is None]
            wait([*open_results, *(child.process.sentinel for child in self._children)], timeout)
        ended, self._dropped = self._dropped, []
        for child in list(self._children):
            child.receive()
            if not child.process.is_alive():
                child.receive()  # it may have sent between the two calls
                self._children.remove(child)
                ended.append(child.outcome())
            elif child.asked_at is not None and time.monotonic() - child.asked_at > TELL_AGAIN_SECONDS:
                child.ask_to_stop()
        self._fill()
        return ended

    def cancel(self, folders: Collection[Path] | None = None, *, kill: bool = False) -> None:
        dropped = [run for run in self._queue if folders is None or run_folder(run) in folders]
        self._dropped += [Outcome(run, "interrupted") for run in dropped]
        self._queue = deque(run for run in self._queue if run not in dropped)
        for child in self._children:
            if folders is None or child.folder in folders:
                child.ask_to_stop(signal.SIGKILL if kill else signal.SIGTERM)

    def _fill(self) -> None:
        """Start what there is room for, in order; a run that wants more threads than there are goes alone."""
        while self._queue and len(self._children) < self.room.runs:
            threads = threads_of(self._queue[0])
            if self._children and sum(child.threads for child in self._children) + threads > self.room.threads:
                return
            self._start(self._queue.popleft())

    def _start(self, run: RunConfig) -> None:
        taken = [gpu for child in self._children for gpu in child.gpus]
        gpus = tuple(sorted(self.room.gpus, key=taken.count)[: run.hardware.ranks])  # those with the fewest runs
        environment = {**self.environment, **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, self.target.partition(":")[0]])
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_in_child, args=(self.target, run, log_path(run), sender, environment))
        resource_tracker.ensure_running()
        with _server_environment(run.hardware.threads), signals_held():
            forkserver.ensure_running()
        process.start()  # returns once the server has imported its preloads and forked
        sender.close()
        self._children.append(_Child(run, run_folder(run), process, receiver, threads_of(run), gpus))


@contextmanager
def _server_environment(threads: int) -> Iterator[None]:
    """What the forkserver, started by the first child, inherits and hands on to every child.

    PYTHONPATH and PYTHONSAFEPATH, because Python 3.11's forkserver imports its preloads with the current folder as
    sys.path[0] and a missing module passes silently: each child would import torch by itself. It also inherits blocked
    signals, so that one sent to all processes (Ctrl-C, a closed terminal, SLURM's) does not end the server, by which
    the driver learns how its children ended.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = thread_environment(threads) | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_in_child(target: str, run: RunConfig, log: Path, result: Connection, environment: Mapping[str, str]) -> None:
    """What a child does: call `target` with `run`, its output in a log file, and send ("returned", summary), or
    (a cause as `Outcome` has it, one line)."""
    ignore_until_the_run_listens()
    # A process group of its own: Ctrl-C in the terminal reaches the driver alone, which asks its children once.
    os.setpgid(0, 0)
    # For what this process may start; torch, imported by the server, takes its threads from the run's config.
    os.environ.update({**thread_environment(run.hardware.threads), WAIT_FOR_LOCK: "1", **environment})
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):  # what libraries write past Python, too; the terminal belongs to the display
        os.dup2(file, stream)
    os.close(file)
    stop_without_parent()
    try:
        module, _, function = target.partition(":")
        summary: dict[str, Any] = getattr(importlib.import_module(module), function)(run)
        result.send(("returned", summary))
    except Exception as error:
        complain(traceback.format_exc())
        cause = "locked" if isinstance(error, LockError) else "rank failed" if isinstance(error, RankFailed) else ""
        result.send((cause, one_line(error)))
    sys.stdout.flush()
    sys.stderr.flush()
