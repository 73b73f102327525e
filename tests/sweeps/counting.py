"""A run that needs no torch and resumes: it counts, a row and a checkpoint for each iteration, all made of its seed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import yaml

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import run_folder, run_id
from rlhf.runs.lock import RunLock
from rlhf.waiting import request_stop


def execute(run: RunConfig) -> dict[str, Any]:
    """rollout.iterations steps of COUNTING_SECONDS; the folder above cache_dir has started.jsonl and fates.json.

    fates.json: {"<start of a run id>": "raise", "kill", "exit", "slow" (30 s, or until it is asked to stop), "stubborn"
    (the same, and not asked), at the third iteration, or "nan"}.
    """
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: (stopped.append(number), request_stop(signal.Signals(number).name)))
    folder = run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        (folder / "summary.json").unlink(missing_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config_to_mapping(run)))
        status = _count(run, folder, stopped)
        summary = {"status": status, "finished_at": time.time(), "signals": stopped, **_latest(folder)}
        temporary = folder / ".summary"
        temporary.write_text(json.dumps(summary))
        temporary.replace(folder / "summary.json")
    return summary


def _count(run: RunConfig, folder: Path, stopped: list[int]) -> str:
    rows = folder / "metrics.jsonl"
    done = len(rows.read_text().splitlines()) if rows.is_file() else 0
    _note(run, done)
    for iteration in range(done, run.rollout.iterations + 1):
        if stopped:
            return "interrupted"
        if iteration == 2:
            _meet_fate(_fate(run), stopped)
        draw = random.Random(f"{run.seed} {iteration}").random()
        reward = float("nan") if _fate(run) == "nan" else iteration + draw
        row = {"step": iteration, "iteration": iteration, "samples": 64 * iteration, "seconds": float(iteration)}
        row |= {"eval/reward": reward, "eval/kl": iteration * draw, "train/reward": reward, "train/kl": draw}
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        time.sleep(float(os.environ.get("COUNTING_SECONDS", "0")))
    return "finished"


def _latest(folder: Path) -> dict[str, Any]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {key: value for key, value in json.loads(lines[-1]).items() if key.startswith("eval/")}


def _meet_fate(fate: str, stopped: list[int]) -> None:
    if fate == "raise":
        raise RuntimeError("the loss is not finite")
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "exit":
        os._exit(3)
    deadline = time.monotonic() + (30 if fate in ("slow", "stubborn") else 0)
    while time.monotonic() < deadline and (fate == "stubborn" or not stopped):
        time.sleep(0.02)


def _fate(run: RunConfig) -> str:
    file = Path(run.cache_dir).parent / "fates.json"
    fates = json.loads(file.read_text()) if file.is_file() else {}
    return next((fate for start, fate in fates.items() if run_id(run).startswith(start)), "")


def _note(run: RunConfig, done: int) -> None:
    note = {
        "run": run_id(run),
        "from": done,
        "pid": os.getpid(),
        "time": time.time(),
        "lam": getattr(run.algo, "lam", None),
    }
    note |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "CUDA_", "RANK", "WORLD_", "OMP_"))
    }
    with (Path(run.cache_dir).parent / "started.jsonl").open("a") as file:
        file.write(json.dumps(note) + "\n")
