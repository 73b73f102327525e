"""Which processes belong to a cluster: those started with its SLURM_CONF, and their descendants."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def processes_of(slurm_conf: Path) -> dict[int, str]:
    """Process id -> name of everything alive that has this SLURM_CONF in its environment or an ancestor that has.

    A job that cleans its environment is found through its parents. Zombies and the caller itself are left out; so are
    processes whose environment we may not read, unless an ancestor is found.
    """
    mark = b"\0SLURM_CONF=" + os.fsencode(slurm_conf) + b"\0"
    names: dict[int, str] = {}
    parents: dict[int, int] = {}
    members: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(errors="replace")
        except OSError:  # ended meanwhile
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        state, parent = rest.split()[:2]
        if state in "ZX" or int(folder.name) == os.getpid():
            continue
        names[int(folder.name)], parents[int(folder.name)] = name, int(parent)
        with contextlib.suppress(OSError):  # another user's, or ended meanwhile
            if mark in b"\0" + (folder / "environ").read_bytes() + b"\0":
                members.add(int(folder.name))
    while found := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= found
    return {pid: names[pid] for pid in members}


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
