"""How many runs this machine carries at a time."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.config import RunConfig

# Working set of one run beside what it shares with the forkserver, GiB: measured for the tiny model, a safe guess
# (weights, reference, value network, reward model, optimizer states) for real ones.
TINY_GIB = 0.75
REAL_GIB = 4.0


def parallel_runs(run: RunConfig) -> tuple[int, str]:
    """How many runs like `run` go side by side, and why."""
    hardware = run.hardware
    if hardware.parallel_runs is not None:
        return hardware.parallel_runs, "hardware.parallel_runs"
    if hardware.device == "cuda":
        return 1, "one run on the GPU"
    cores = usable_cores()
    by_cores = max(1, cores // hardware.threads)
    memory = available_gib()
    by_memory = max(1, int(memory / (TINY_GIB if run.model.source == "random" else REAL_GIB)))
    if by_memory < by_cores:
        return by_memory, f"{memory:.1f} GiB of free memory"
    threads = f"{hardware.threads} thread{'s' if hardware.threads > 1 else ''} each"
    return by_cores, f"{cores} core{'s' if cores > 1 else ''}, {threads}"


def usable_cores() -> int:
    """Cores that this process may use, a container's quota included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _words(Path("/sys/fs/cgroup/cpu.max"))
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def available_gib() -> float:
    """Free memory, a container's limit included; where it cannot be told, enough for every core."""
    free = [float("inf")]
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    limit, used = _words(Path("/sys/fs/cgroup/memory.max")), _words(Path("/sys/fs/cgroup/memory.current"))
    if limit and used and limit[0].isdigit():
        free.append(int(limit[0]) - int(used[0]))
    return min(min(free) / 2**30, 1e6)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def thread_environment(threads: int) -> dict[str, str]:
    """What holds the numeric libraries to the run's threads; they read it when they are imported.

    Threads that wait for one another spin for a while only: for ever, libgomp's default, makes a run of two threads
    ten times slower as soon as anything else wants one of its cores. At this count it loses nothing on idle ones.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**{name: str(threads) for name in names}, "GOMP_SPINCOUNT": "10000", "TOKENIZERS_PARALLELISM": "false"}
