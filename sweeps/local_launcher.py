"""Runs as child processes of this machine, forked from a warm server that has torch and the models imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder, run_id, sweep_folder
from sweeps.resources import thread_environment

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROOT = Path(__file__).parent.parent


@dataclass
class LocalLauncherConf:
    _target_: str = "sweeps.local_launcher.LocalLauncher"
    target: str = "rlhf.run:execute"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: RunConfig
    status: str
    """finished, failed or interrupted."""
    reason: str = ""
    """Why it failed, one line."""
    summary: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        return run_folder(self.run)


@dataclass
class _Child:
    run: RunConfig
    folder: Path
    process: ForkServerProcess
    result: Connection
    message: tuple[str, Any] | None = None
    cancelled: bool = False


class LocalLauncher(Launcher):
    """Takes runs by `submit`, tells how they ended by `poll`, stops them by `cancel`; at most `slots` at a time."""

    def __init__(self, target: str = "rlhf.run:execute") -> None:
        """Args: target: "module:function" that takes a RunConfig and returns the run's summary."""
        self.target = target
        self.slots = 1
        self._queue: deque[RunConfig] = deque()
        self._children: list[_Child] = []
        self._dropped: list[Outcome] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.sweep_config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """For sweepers other than ours: all runs to their end, in Hydra's form."""
        from sweeps.experiment import hydra_returns

        return hydra_returns(self, self.context, self.sweep_config, job_overrides)

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._children or self._dropped)

    @property
    def running(self) -> list[Path]:
        """The folders of the runs at work."""
        return [child.folder for child in self._children]

    def submit(self, run: RunConfig) -> None:
        """Queue a run whose inputs are finished."""
        self._queue.append(run)
        self._fill()

    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        """The runs that have ended since the last call; waits up to `timeout` seconds for the first."""
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
        self._fill()
        dropped, self._dropped = self._dropped, []
        return dropped + ended

    def cancel(self, *, kill: bool = False) -> None:
        """Start nothing more; ask what runs to checkpoint and stop (`kill`: do not ask)."""
        self._dropped += [Outcome(run, "interrupted") for run in self._queue]
        self._queue.clear()
        for child in self._children:
            child.cancelled = True
            if child.process.is_alive() and child.process.pid is not None:
                os.kill(child.process.pid, signal.SIGKILL if kill else signal.SIGTERM)

    def _fill(self) -> None:
        while self._queue and len(self._children) < self.slots:
            self._start(self._queue.popleft())

    def _start(self, run: RunConfig) -> None:
        from sweeps.child import run_in_child

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sweeps.child", self.target.partition(":")[0]])
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=run_in_child, args=(self.target, run, log_path(run), sender), name=run_id(run), daemon=False
        )
        with _server_environment(run.hardware.threads):
            forkserver.ensure_running()
        process.start()  # returns once the server has imported its preloads and forked
        sender.close()
        self._children.append(_Child(run, run_folder(run), process, receiver))

    @staticmethod
    def _receive(child: _Child) -> None:
        if child.message is None and child.result.poll():
            try:
                child.message = child.result.recv()
            except EOFError:
                child.message = ("died", None)


def log_path(run: RunConfig) -> Path:
    """Where a child's prints and tracebacks go."""
    return sweep_folder(run) / "logs" / f"{run_id(run)}.log"


def _outcome(child: _Child) -> Outcome:
    child.process.join()
    child.result.close()
    code = child.process.exitcode
    child.process.close()
    match child.message:
        case ("returned", summary):
            status = summary.get("status", "finished")
            return Outcome(child.run, status, str(summary.get("error", "")) if status == "failed" else "", summary)
        case _ if child.cancelled:
            return Outcome(child.run, "interrupted")
        case ("raised", line):
            return Outcome(child.run, "failed", line)
        case _:
            return Outcome(child.run, "failed", _how_it_died(code))


def _how_it_died(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exited with code {code} before it had a result"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (out of memory, or kill -9)" if name == "SIGKILL" else "")


@contextmanager
def _server_environment(threads: int) -> Iterator[None]:
    """What the forkserver, started by the first child, inherits and hands on to every child.

    PYTHONPATH and PYTHONSAFEPATH, because Python 3.11's forkserver imports its preloads with the current folder as
    sys.path[0] and a missing module passes silently: each child would import torch by itself. SIGINT is ignored, so
    that Ctrl-C while the server still imports does not end it.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = thread_environment(threads) | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in settings}
    handler = signal.getsignal(signal.SIGINT)
    os.environ.update(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
