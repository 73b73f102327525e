"""A run that needs no torch and whose evaluations are made of its settings, for studies."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import yaml

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import run_folder, run_id
from rlhf.runs.lock import LockError


def execute(run: RunConfig) -> dict[str, Any]:
    """`rollout.iterations` iterations, an evaluation after each; the folder above cache_dir has what it obeys.

    behaviour.json: {"seconds": of an iteration, "input_seconds": of an SFT or reward-model run, "long":
    {"<optimization.epochs>": seconds of an iteration}, "fates": {"<start of a run id>": "raise" or "nan" or "locked",
    at the end}}. It goes on where metrics.jsonl ends, and writes a line to spans.jsonl when it begins and when it ends.
    """
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    return do(run, stopped)


def do(run: RunConfig, stopped: list[int]) -> dict[str, Any]:
    """The run itself, until `stopped` is not empty."""
    folder = run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(run.cache_dir).parent
    (folder / "lock.json").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    _note(here, run, "begin")
    (folder / "config.yaml").write_text(yaml.safe_dump(config_to_mapping(run)))
    if run.stage.name == "online":
        _iterate(run, folder, _behaviour(here), stopped)
    else:
        time.sleep(_behaviour(here).get("input_seconds", 0.0))
        if _fate(_behaviour(here), run) == "raise":
            raise RuntimeError("the loss is not finite")
    summary: dict[str, Any] = {"status": "interrupted" if stopped else "finished", "kept": "yes"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "lock.json").unlink()
    _note(here, run, summary["status"])
    return summary


def gain(run: RunConfig) -> float:
    """Of a whole run: best where the learning rate is 1e-3, lower for other seeds than 0."""
    return 1.0 - abs(math.log10(run.optimization.learning_rate / 1e-3)) / 4 - run.seed / 1000


def _iterate(run: RunConfig, folder: Path, behaviour: dict[str, Any], stopped: list[int]) -> None:
    file, total = folder / "metrics.jsonl", run.rollout.iterations
    done = len(file.read_text().splitlines()) if file.is_file() else 0
    seconds = behaviour.get("long", {}).get(str(run.optimization.epochs), behaviour.get("seconds", 0.0))
    fate = _fate(behaviour, run)
    for iteration in range(done, total + 1):
        time.sleep(seconds if iteration else 0.0)
        if stopped:
            return
        if iteration == total:
            if fate == "raise":
                raise RuntimeError("the loss is not finite")
            if fate == "locked":
                raise LockError("pid 1 on another host is at work on this run")
        reward = math.nan if fate == "nan" and iteration else gain(run) * iteration / total
        row = {"step": iteration, "iteration": iteration, "seconds": float(iteration)}
        row |= {"samples": run.rollout.num_responses * iteration, "eval/reward": reward}
        row["eval/kl"] = 4.0 * iteration / total * run.optimization.learning_rate / 1e-3
        with file.open("a") as rows:
            rows.write(json.dumps(row) + "\n")


def _behaviour(here: Path) -> dict[str, Any]:
    file = here / "behaviour.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _fate(behaviour: dict[str, Any], run: RunConfig) -> str:
    return next((fate for start, fate in behaviour.get("fates", {}).items() if run_id(run).startswith(start)), "")


def _note(here: Path, run: RunConfig, what: str) -> None:
    with (here / "spans.jsonl").open("a") as file:
        file.write(json.dumps({"run": run_id(run), "what": what, "time": time.time()}) + "\n")
