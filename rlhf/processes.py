"""What all that starts, stops and watches processes of runs has in common. Imports no torch."""

from __future__ import annotations

import signal
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Where this project's packages lie; processes that are started need it on PYTHONPATH."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What asks a run to write a checkpoint and stop."""

HELD_SIGNALS = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1)
"""What must end no process of a run before the run listens: the above, a closed terminal, and SLURM's other warning."""

TELL_AGAIN_SECONDS = 3.0
"""A process ignores what asks it to stop until its run listens; so it is asked again."""


class RankFailed(RuntimeError):
    """Another rank of this run has failed or is gone; the message says which and why, as far as is known."""


def how_it_died(code: int) -> str:
    """Why a process ended that could not say so itself.

    Args:
        code: its exit code, or minus the number of the signal that killed it.
    """
    if code >= 0:
        return f"exited with code {code} before it had a result"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (out of memory, or kill -9)" if name == "SIGKILL" else "")
