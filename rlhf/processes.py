"""What all that starts, stops and watches processes of runs has in common. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import parent_process
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


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """What is started here inherits that these signals are blocked, until it calls `ignore_until_the_run_listens`.

    A signal for this process waits until the end of the context. Where multiprocessing starts something in it, its
    resource tracker must be running: to start that unblocks SIGINT and SIGTERM.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_until_the_run_listens() -> None:
    """In a process that was started in `signals_held`; who asks it to stop asks again."""
    for number in HELD_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def stop_without_parent() -> None:
    """A run whose parent process was killed checkpoints and stops instead of going on unseen."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        time.sleep(1.0)  # ranks have had SIGINT from the kernel, which after a SIGTERM would not let them checkpoint
        while True:  # the run may not listen yet
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(TELL_AGAIN_SECONDS)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def how_it_died(code: int) -> str:
    """Why a process ended that could not say so itself.

    Args:
        code: its exit code, or minus the number of the signal that killed it.
    """
    if code >= 0:
        return f"exited with code {code} before it had a result"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (out of memory, or kill -9)" if name == "SIGKILL" else "")
