"""What the parts of a sweep tell one another: how a run ended, and what is asked of a launcher."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder, run_id, sweep_folder


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: RunConfig
    status: str
    """finished, pruned, failed or interrupted."""
    reason: str = ""
    """Why it failed, one line."""
    summary: dict[str, Any] = field(default_factory=dict)
    cause: str = ""
    """"locked" where another process is at work on the run, "rank failed" where another rank of it is."""

    @cached_property
    def folder(self) -> Path:
        return run_folder(self.run)


class RunLauncher(Protocol):
    """Takes runs by `submit`, tells how they ended by `poll`, stops them by `cancel`."""

    leaves_on_interrupt: bool
    """Whether Ctrl-C ends the driver alone and the runs go on."""

    def open(self, runs: Sequence[RunConfig]) -> str:
        """Settle how many runs like these go at a time; says so, and why. Called once, first."""
        ...

    @property
    def slots(self) -> int:
        """Runs at a time."""
        ...

    @property
    def trouble(self) -> str:
        """Why the state of runs cannot be told at the moment; empty where it can."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a submitted run has not been told of by `poll`."""
        ...

    @property
    def running(self) -> list[Path]:
        """The folders of the runs at work."""
        ...

    def announce(self, run: RunConfig) -> bool:
        """Note a run that will be submitted, for `python -m sweeps status`; True where an earlier command submitted it
        and `poll` will tell of it without another `submit`."""
        ...

    def submit(self, run: RunConfig) -> None:
        """Start a run whose inputs are finished, as soon as there is room."""
        ...

    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        """The runs that have ended since the last call; waits up to `timeout` seconds for the first."""
        ...

    def cancel(self, folders: Collection[Path] | None = None, *, kill: bool = False) -> None:
        """Ask the runs of these folders (None: all) to checkpoint and stop; `kill`: do not ask."""
        ...


def log_path(run: RunConfig) -> Path:
    """Where a run's prints and tracebacks go."""
    return sweep_folder(run) / "logs" / f"{run_id(run)}.log"
