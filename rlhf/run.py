"""One run in this process: its inputs, its folder, its stage, its summary."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from rlhf.checkpoint import Checkpoint, load_checkpoint, read_tensors
from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.frozen import edited, other_server
from rlhf.config.identity import SCORING_STAGES, input_runs, run_folder, run_id
from rlhf.distributed import RankFailed, count, first_says, rank
from rlhf.errors import UserError
from rlhf.files import os_error_with_path, told_with_path, write_whole
from rlhf.finite import check_metrics, not_finite
from rlhf.lock import WAIT_FOR_LOCK, LockError, RunLock
from rlhf.precision import without_cudnn_attention
from rlhf.processes import STOP_SIGNALS
from rlhf.random import compute_the_same_again
from rlhf.ranks import blamed, joined, start_ranks
from rlhf.stages import STAGES
from rlhf.stages.context import RunContext, input_fingerprints
from rlhf.summary import OVERWRITES, SUMMARY, finished, times_emptied
from rlhf.tracking import METRICS, SAMPLES, Tracker, finite
from rlhf.waiting import Interrupted, StopFlag, StoppedWaiting, heeding, locked

REPORTED_PACKAGES = ("transformers", "peft", "hydra-core", "wandb", "optuna", "numpy")


class RunError(UserError, RuntimeError):
    """A run that cannot go on; the message is one line that says what to do."""


def execute(config: RunConfig, stop: StopFlag | None = None) -> dict[str, Any]:
    """Do the run, after the runs it starts from; skip what is finished, go on where a checkpoint is.

    SIGINT, SIGTERM and SIGUSR2 let the iteration at work end, checkpoint and return status "interrupted". A run of
    several ranks is done by as many processes: this one is one of them where torchrun's variables say so, and starts
    them otherwise.

    Args:
        stop: where a request to stop is noted, for whoever wants to see it.

    Returns:
        The run's summary: `status`, the last eval/*, seconds, memory, versions.

    Raises:
        Exception: whatever stopped the stage, after it was written to summary.json with status "failed".
    """
    stop, ranks, present = stop or StopFlag(), config.hardware.ranks, os.environ.get("WORLD_SIZE")
    if present is not None and int(present) != ranks:
        raise RunError(f"hardware.ranks: {ranks}, but WORLD_SIZE in the environment is {present}; make them equal")
    with _signals_into(stop), heeding(stop):
        if ranks == 1:
            return _execute(config, stop)
        if present is None:
            return finished(config) or start_ranks(config, stop)
        with joined(config):
            return _execute(config, stop)


def _execute(config: RunConfig, stop: StopFlag) -> dict[str, Any]:
    folder = run_folder(config)
    if (over := first_says(lambda: finished(config))) is not None:
        return over
    inputs = {}
    for needed in input_runs(config):
        summary = _run_once(needed, stop)
        if summary["status"] != "finished":
            return summary
        inputs[needed.stage.name] = run_folder(needed) / "final"
    if config.stage.name in SCORING_STAGES and config.reward.path is not None:
        inputs["reward_model"] = Path(config.reward.path)
    _make(folder)
    waits = WAIT_FOR_LOCK in os.environ
    lock = RunLock(folder, wait_while=lambda: waits)
    with contextlib.ExitStack() as held:
        # Rank 0 holds it for all.
        if (stopped := first_says(lambda: _taken(held, lock))) is not None:
            return stopped
        lock.token = first_says(lambda: lock.token)
        if (over := first_says(lambda: finished(config))) is not None:  # whoever held the lock may have finished it
            return over
        return _in_folder(config, folder, inputs, lock, stop)


def _run_once(config: RunConfig, stop: StopFlag) -> dict[str, Any]:
    """An input run, by whichever process comes first; the others wait and take its result."""
    folder = run_folder(config)
    if (over := first_says(lambda: finished(config))) is not None:
        return over
    _make(folder.parent)
    lock = locked(folder.with_suffix(".lock"), f"does {folder}")
    with contextlib.ExitStack() as held:
        return first_says(lambda: _taken(held, lock)) or _execute(config, stop)


def _taken(held: contextlib.ExitStack, lock: contextlib.AbstractContextManager[Any]) -> dict[str, Any] | None:
    """Take the lock; a summary instead where this run is asked to stop meanwhile."""
    try:
        held.enter_context(lock)
    except StoppedWaiting as stopped:
        return {"status": "interrupted", "error": str(stopped)}
    return None


def _make(folder: Path) -> None:
    with told_with_path(folder, "make it"):
        folder.mkdir(parents=True, exist_ok=True)


def _in_folder(
    config: RunConfig, folder: Path, inputs: dict[str, Path], lock: RunLock, stop: StopFlag
) -> dict[str, Any]:
    _set_up_torch(config)  # before anything is deleted: it may refuse
    context = RunContext(config, folder, inputs, lock, Tracker(folder, lock, None), stop)  # its clock starts
    provenance = _provenance()
    try:
        summary = _attempt(context, provenance)
        _write_summary(folder, summary, lock)
    except BaseException as raised:
        error = blamed(raised)
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        summary = _summary(context, provenance, status) | {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(OSError, LockError):  # a full disk must not hide the error itself
            _write_summary(folder, summary, lock)
        context.tracker.close(summary)
        if isinstance(error, OSError) and not isinstance(error, UserError):
            where = Path(error.filename) if isinstance(error.filename, str) else folder
            raise RunError(str(os_error_with_path(error, where, "go on"))) from error
        if error is not raised:
            raise error from raised
        raise
    context.tracker.finish(summary)  # after the summary: a mirror that hangs cannot hold back a result
    return summary


def _attempt(context: RunContext, provenance: dict[str, Any]) -> dict[str, Any]:
    """The stage, from its checkpoint where there is one; returns the run's summary."""
    config = context.config
    checkpoint: Checkpoint | None = None

    def prepare() -> dict[str, Any] | None:
        nonlocal checkpoint
        checkpoint = _prepare(context)
        return None if checkpoint is None else checkpoint.state

    state = first_says(prepare)
    if state is not None and checkpoint is None:  # another rank than the first
        checkpoint = Checkpoint(read_tensors(context.folder, state["step"]), state)
    context.go_on_from(checkpoint)
    del checkpoint  # whose tensors the stage takes, and lets go
    try:
        metrics = STAGES[config.stage.name](context)
        check_metrics(metrics, "a smaller learning rate")
    except StoppedWaiting as stopped:
        if count() > 1:  # the others may not wait, and go on to where this one never comes
            raise RankFailed(str(stopped)) from stopped
        return _summary(context, provenance, "interrupted") | {"error": str(stopped)}
    except Interrupted as interruption:
        return _summary(context, provenance, "interrupted") | {"error": str(interruption)}
    return _summary(context, provenance, "finished") | metrics


def _prepare(context: RunContext) -> Checkpoint | None:
    """The folder as the stage expects it, and where the run goes on from."""
    config, folder, tracker = context.config, context.folder, context.tracker
    overwrites = _start_afresh(folder) if config.overwrite else times_emptied(folder)
    with told_with_path(folder, "begin in it"):
        (folder / SUMMARY).unlink(missing_ok=True)
    mapping = config_to_mapping(config)
    if (change := edited(folder, config)) and not config.overwrite:
        context.say(f"{folder / 'config.yaml'} is written anew: {change}; settings are those of the command")
    if (change := other_server(folder, config)) and not config.overwrite:
        context.say(change)
    write_whole(folder / "config.yaml", yaml.safe_dump(mapping, sort_keys=False))
    if config.tracking.wandb != "off":
        from rlhf.wandb_mirror import WandbMirror

        tracker.mirror = WandbMirror(config, mapping, run_id(config), folder, overwrites)
    checkpoint = _checkpoint(folder, context.inputs)
    lengths = {METRICS: 0, SAMPLES: 0}
    if checkpoint is not None:
        with checkpoint.reading() as state:
            lengths = {name: int(state["log_lengths"][name]) for name in lengths}
    tracker.cut_back(lengths)
    return checkpoint


def _checkpoint(folder: Path, inputs: Mapping[str, Path]) -> Checkpoint | None:
    """Where the run goes on from, if that fits the frozen weights that it would go on with."""
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        return None
    if name := not_finite(checkpoint.tensors):
        raise RunError(f"{folder}: its checkpoint is not finite ({name}); overwrite=true starts afresh")
    with checkpoint.reading() as state:
        same = state["inputs"] == input_fingerprints(inputs)
    if not same:
        raise RunError(
            f"{folder}: its SFT policy or reward model is another one than when it began; overwrite=true starts afresh"
        )
    return checkpoint


def _start_afresh(folder: Path) -> int:
    """Empty the folder but for its lock; how often that has been done tells W&B runs apart."""
    emptied = times_emptied(folder) + ((folder / "config.yaml").exists())
    write_whole(folder / OVERWRITES, json.dumps({"count": emptied}))
    with told_with_path(folder, "empty it"):
        for path in folder.iterdir():
            if path.name not in ("lock.json", ".lock.guard", OVERWRITES):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return emptied


def _set_up_torch(config: RunConfig) -> None:
    if config.hardware.device == "cuda" and not torch.cuda.is_available():
        raise RunError("hardware.device: cuda, but torch finds no CUDA device here; use hardware=cpu")
    if config.hardware.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of an input run in this process
    torch.set_num_threads(config.hardware.threads)
    compute_the_same_again(config.hardware.device == "cpu")
    without_cudnn_attention()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextlib.contextmanager
def _signals_into(stop: StopFlag) -> Iterator[None]:
    """Turn signals into a request to stop; a second SIGINT stops at once. Only the main thread may do this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: object) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = signal.Signals(number).name

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _provenance() -> dict[str, Any]:
    """What does the run, asked when it starts: the tree may be edited while it is at work."""
    return {
        "hostname": socket.gethostname(),
        "cpu": _cpu_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # which says +cpu or +cu130 too
            **{name: version(name) for name in REPORTED_PACKAGES},
        },
        "git_commit": _git_commit(),
    }


def _summary(context: RunContext, provenance: dict[str, Any], status: str) -> dict[str, Any]:
    return {
        "status": status,
        "run_id": run_id(context.config),
        "wall_seconds": context.seconds(),
        **peak_memory(context.device),
        "finished_at": time.time(),
        **provenance,
    }


def _write_summary(folder: Path, summary: dict[str, Any], lock: RunLock) -> None:
    if rank():
        return
    lock.check()
    write_whole(folder / SUMMARY, json.dumps(finite(summary), indent=1, allow_nan=False))


def peak_memory(device: torch.device) -> dict[str, float]:
    """The process's own, and that of its GPU's tensors where it has one."""
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 2**20}
    if device.type == "cuda":
        found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of this source tree, with + where files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
