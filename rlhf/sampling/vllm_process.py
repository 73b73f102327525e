"""A vLLM server that lives as long as the run that started it, however the run ends. Imports no torch.

Between the two stands a keeper: this file as a program, the head of a session of its own, which no Ctrl-C reaches. It
holds the reading end of a pipe whose other end the run alone has: where the run ends, even by kill -9, the pipe does,
and the keeper ends its whole process group, vLLM's own children too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf.files import file_errors
from rlhf.processes import ROOT

GRACE_SECONDS = 10.0
"""From asking the server to end to killing it."""


class ServerProcess:
    """`command` at work, its output in `log`.

    Raises:
        FileError: the log cannot be written.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        with file_errors(log, "write it"), log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", __name__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    **environment,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                },
                start_new_session=True,
            )
        self.group = self._keeper.pid
        """The process group of the server and all that it starts."""

    def ended(self, within: float = 0.0) -> int | None:
        """The exit code, or minus the number of the signal, that the server ends with `within` seconds; None where it
        stays at work."""
        try:
            code = self._keeper.wait(within)
        except subprocess.TimeoutExpired:
            return None
        return 128 - code if code > 128 else code

    def stop(self) -> None:
        """End the server and all that it has started, and wait for that."""
        assert self._keeper.stdin is not None
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(2 * GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # what a keeper that was killed has left
            os.killpg(self.group, signal.SIGKILL)
        self._keeper.wait()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def keep(command: Sequence[str]) -> None:
    """The keeper: start the server, and end the process group once the server or the run has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which it sends to the group it belongs to
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_as_usual)

    def end_with_the_run() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_the_run, daemon=True).start()
    code = server.wait()
    os.killpg(0, signal.SIGTERM)  # its children
    os._exit(code if code >= 0 else 128 - code)


def _as_usual() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    keep(sys.argv[1:])
