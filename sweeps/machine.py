"""What this machine has: room for so many runs at a time, a GPU, folders that can be written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import sweep_folder
from rlhf.config.packages import cached_by
from rlhf.runs.state import unfinished_inputs

# Working set of one run beside what it shares with the forkserver, GiB: measured for the tiny model, a safe guess
# (weights, reference, value network, reward model, optimizer states) for real ones.
TINY_GIB = 0.75
REAL_GIB = 4.0


@dataclass(frozen=True)
class Room:
    """What a machine has for the runs of one sweep."""

    runs: int
    """At a time."""
    threads: int
    """Of all runs and their ranks together; a run that wants more (an input run) goes alone."""
    gpus: tuple[str, ...] = ()
    """Values of CUDA_VISIBLE_DEVICES to hand out."""


def room_for(run: RunConfig) -> tuple[Room, str]:
    """How many runs like `run` go side by side, and why."""
    hardware = run.hardware
    cores = usable_cores()
    gpus = visible_gpus() if hardware.device == "cuda" else ()
    count, why = _count(run, cores, len(gpus))
    return Room(count, max(cores, count * threads_of(run)), gpus), why


def threads_of(run: RunConfig) -> int:
    """Of all its ranks."""
    return run.hardware.ranks * run.hardware.threads


def _count(run: RunConfig, cores: int, gpus: int) -> tuple[int, str]:
    hardware = run.hardware
    if hardware.parallel_runs is not None:
        return hardware.parallel_runs, "hardware.parallel_runs"
    memory = available_gib()
    each = TINY_GIB if run.model.source == "random" else REAL_GIB
    threads, ranks = threads_of(run), hardware.ranks
    limits = [
        (max(1, cores // threads), f"{counted(cores, 'core')}, {counted(threads, 'thread')} each"),
        (max(1, int(memory / (ranks * each))), f"{memory:.1f} GiB of free memory"),
    ]
    if hardware.device == "cuda":
        sharing = "" if hardware.runs_per_gpu == 1 else f", {hardware.runs_per_gpu} on each"
        taking = "" if ranks == 1 else f", {ranks} for each run"
        limits.append(
            (max(1, max(1, gpus) * hardware.runs_per_gpu // ranks), f"{counted(gpus, 'GPU')}{taking}{sharing}")
        )
    return min(limits, key=lambda limit: limit[0])


def counted(number: int, name: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def visible_gpus() -> tuple[str, ...]:
    """What may be handed to runs; asked of the driver's tool, since torch takes a second to import."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    if shutil.which("nvidia-smi") is None:
        return ()
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return tuple(str(i) for i, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU ")))


def has_gpu() -> bool:
    """False only where nothing hints at one: containers may lack the driver's tool."""
    return bool(visible_gpus()) or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def check_device(run: RunConfig) -> None:
    """Raises: ConfigError: the run wants a GPU and this machine has none."""
    if run.hardware.device == "cuda" and run.hardware.slurm is None and not has_gpu():
        raise ConfigError(["hardware.device: cuda, but this machine shows no GPU; use hardware=cpu"])


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


def check_places(runs: Iterable[RunConfig]) -> None:
    """Refuse runs whose output_dir or, where they write there, cache_dir cannot be written.

    Raises:
        ConfigError: with all problems, one a line.
    """
    places = {("output_dir", run.output_dir, sweep_folder(run)): None for run in runs}
    for run in runs:
        places |= {("cache_dir", run.cache_dir, sweep_folder(need)): None for need in unfinished_inputs(run)}
        places |= {("cache_dir", run.cache_dir, folder): None for folder in cached_by(run)}
    if problems := [line for place in places if (line := _unwritable(*place))]:
        raise ConfigError(problems)


def _unwritable(option: str, folder: str, below: Path) -> str:
    """Why nothing can be made in `below`, or in the nearest folder above it that is there; empty where it can."""
    there = below.absolute()
    try:
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryDirectory(prefix=".writable", dir=there):  # rights alone do not tell, as in /proc
            return ""
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ""  # the folder is right; whoever writes there says how to go on
        why = f"cannot write in {there} ({error.strerror})"
        return f"{option}: {folder}: {why}; give a folder that can be written, {option}=FOLDER"
