"""What runs inside a child process: one run, its output in a log file, its result sent to the driver."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.errors import one_line
from rlhf.processes import HELD_SIGNALS, RankFailed
from rlhf.runs.lock import WAIT_FOR_LOCK, LockError
from rlhf.terminal import complain
from sweeps.resources import thread_environment


def run_in_child(target: str, run: RunConfig, log: Path, result: Connection, environment: Mapping[str, str]) -> None:
    """Call `target` ("module:function") with `run`; send ("returned", summary), or ("raised" or a cause as `Outcome`
    has it, one line)."""
    for number in HELD_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # until the run listens; who asks it to stop asks again
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)  # blocked in the server
    # A process group of its own: Ctrl-C in the terminal reaches the driver alone, which tells its children once.
    os.setpgid(0, 0)
    # For what this process may start; torch, imported by the server, takes its threads from the run's config.
    os.environ.update({**thread_environment(run.hardware.threads), WAIT_FOR_LOCK: "1", **environment})
    _write_output_to(log)
    _stop_without_driver()
    try:
        module, _, function = target.partition(":")
        summary: dict[str, Any] = getattr(importlib.import_module(module), function)(run)
        result.send(("returned", summary))
    except Exception as error:
        complain(traceback.format_exc())
        cause = "locked" if isinstance(error, LockError) else "raised"
        result.send(("rank failed" if isinstance(error, RankFailed) else cause, one_line(error)))
    sys.stdout.flush()
    sys.stderr.flush()


def _write_output_to(log: Path) -> None:
    """Prints, warnings and what libraries write past Python; the terminal belongs to the display."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _stop_without_driver() -> None:
    """A run whose driver was killed checkpoints and stops instead of going on unseen."""
    driver = parent_process()
    if driver is None:
        return

    def watch() -> None:
        wait([driver.sentinel])
        while True:  # the run may not listen yet
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5.0)

    threading.Thread(target=watch, daemon=True, name="driver-watch").start()
