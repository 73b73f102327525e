"""Ends a cluster whose tests were killed: a process of its own that waits until they are gone.

    python -m tests.slurm.watcher FOLDER

Its standard input is a pipe whose other end the tests alone hold, so that it closes however they end.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.processes import kill, processes_of

ROOT = Path(__file__).resolve().parents[2]


def start_watcher(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The watcher of the cluster in `folder`; `environment` must not be the cluster's, or it would end itself."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.watcher", str(folder)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # what kills the tests' process group does not kill it
    )


def end_cluster(folder: Path, seconds: float = 20.0) -> dict[int, str]:
    """Kill all processes of the cluster, and those that they start meanwhile; returns what did not end."""
    deadline = time.monotonic() + seconds
    while left := processes_of(folder / "etc" / "slurm.conf"):
        if time.monotonic() > deadline:
            return left
        kill(left)
        time.sleep(0.02)
    return {}


def main() -> None:
    folder = Path(sys.argv[1])
    sys.stdin.buffer.read()  # until the tests are gone
    if folder.exists() and not end_cluster(folder):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
