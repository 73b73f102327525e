"""Runs as child processes of this machine, forked from a warm server that has torch and the models imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
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
from rlhf.config.identity import run_folder, run_id
from rlhf.processes import HELD_SIGNALS, ROOT, TELL_AGAIN_SECONDS, how_it_died
from sweeps.records import outcome_path, write_record
from sweeps.resources import Room, check_device, room_for, thread_environment, threads_of
from sweeps.runs import Outcome, log_path

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
    told_at: float | None = None
    """When it was last told to stop; None: never."""


@dataclass
class LocalRuns:
    """The local `RunLauncher`: so many children at a time as threads, memory and GPUs carry."""

    target: str = "rlhf.run:execute"
    """module:function that takes a RunConfig and returns the run's summary."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What every child has in its environment besides (ranks of a SLURM job)."""
    room: Room = field(default_factory=lambda: Room(1, 1))
    leaves_on_interrupt: bool = False
    trouble: str = ""
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

    def announce(self, run: RunConfig) -> bool:
        outcome_path(run).unlink(missing_ok=True)
        write_record(run, self.target)
        return False

    def submit(self, run: RunConfig) -> None:
        self._queue.append(run)
        self._fill()

    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        if not self._dropped:
            open_results = [child.result for child in self._children if child.message is None]
            wait([*open_results, *(child.process.sentinel for child in self._children)], timeout)
        ended = []
        for child in list(self._children):
            self._receive(child)
            if not child.process.is_alive():
                self._receive(child)  # it may have sent between the two calls
                self._children.remove(child)
                ended.append(_outcome(child))
            elif child.told_at is not None and time.monotonic() - child.told_at > TELL_AGAIN_SECONDS:
                _tell(child, signal.SIGTERM)
        self._fill()
        dropped, self._dropped = self._dropped, []
        return dropped + ended

    def cancel(self, folders: Collection[Path] | None = None, *, kill: bool = False) -> None:
        queued, self._queue = self._queue, deque()
        for run in queued:
            if folders is None or run_folder(run) in folders:
                self._dropped.append(Outcome(run, "interrupted"))
            else:
                self._queue.append(run)
        for child in self._children:
            if folders is None or child.folder in folders:
                _tell(child, signal.SIGKILL if kill else signal.SIGTERM)

    def _fill(self) -> None:
        """Start what there is room for, in order; a run that wants more threads than there are goes alone."""
        while self._queue and len(self._children) < self.room.runs:
            threads = threads_of(self._queue[0])
            if self._children and sum(child.threads for child in self._children) + threads > self.room.threads:
                return
            self._start(self._queue.popleft())

    def _start(self, run: RunConfig) -> None:
        from sweeps.child import run_in_child

        gpus = self._free_gpus(run.hardware.ranks)
        environment = {**self.environment, **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sweeps.child", self.target.partition(":")[0]])
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=run_in_child,
            args=(self.target, run, log_path(run), sender, environment),
            name=run_id(run),
            daemon=False,
        )
        with _server_environment(run.hardware.threads):
            forkserver.ensure_running()
        process.start()  # returns once the server has imported its preloads and forked
        sender.close()
        self._children.append(_Child(run, run_folder(run), process, receiver, threads_of(run), gpus))

    def _free_gpus(self, ranks: int) -> tuple[str, ...]:
        """The GPUs with the fewest of these runs on them."""
        taken = [gpu for child in self._children for gpu in child.gpus]
        return tuple(sorted(self.room.gpus, key=taken.count)[:ranks])

    @staticmethod
    def _receive(child: _Child) -> None:
        if child.message is None and child.result.poll():
            try:
                child.message = child.result.recv()
            except EOFError:
                child.message = ("died", None)


def _tell(child: _Child, number: signal.Signals) -> None:
    child.told_at = time.monotonic()
    if child.process.is_alive() and child.process.pid is not None:
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            if number == signal.SIGKILL:
                os.killpg(child.process.pid, number)  # what it started, too
            else:
                os.kill(child.process.pid, number)


def _outcome(child: _Child) -> Outcome:
    child.process.join()
    child.result.close()
    code, pid = child.process.exitcode, child.process.pid
    child.process.close()
    if code == SERVER_DIED and child.message is None and pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)  # it may live on, unseen
    match child.message:
        case ("returned", summary):
            status = summary.get("status", "finished")
            return Outcome(child.run, status, str(summary.get("error", "")) if status == "failed" else "", summary)
        case ("raised" | "locked" | "rank failed" as cause, line):
            status = "failed" if child.told_at is None else "interrupted"
            return Outcome(child.run, status, line, cause="" if cause == "raised" else cause)
        case _ if child.told_at is not None:
            return Outcome(child.run, "interrupted")
        case _:
            lost = "lost with the process that started it (out of memory, or killed)"
            return Outcome(child.run, "failed", lost if code is None or code == SERVER_DIED else how_it_died(code))


@contextmanager
def _server_environment(threads: int) -> Iterator[None]:
    """What the forkserver, started by the first child, inherits and hands on to every child.

    PYTHONPATH and PYTHONSAFEPATH, because Python 3.11's forkserver imports its preloads with the current folder as
    sys.path[0] and a missing module passes silently: each child would import torch by itself. The signals that ask
    runs to stop are blocked there, so that one sent to all processes (Ctrl-C, a closed terminal, SLURM's) does not end
    the server, by which the driver learns how its children ended; one for the driver waits until this is left.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = thread_environment(threads) | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    resource_tracker.ensure_running()  # by itself: to start it unblocks SIGINT and SIGTERM
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
