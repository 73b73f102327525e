"""A run that needs no torch: it does what fates.json says, else it writes what a real run writes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import yaml

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import run_folder, run_id


def execute(run: RunConfig) -> dict[str, Any]:
    """The folder above cache_dir has fates.json, {"<start of a run id>": "raise" | "kill" | "exit" | "slow" |
    "stubborn"}, and gets started.txt with a run id per line.
    """
    folder = run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    (folder / "config.yaml").write_text(yaml.safe_dump(config_to_mapping(run)))
    fate = _fate(run)
    if fate == "raise":
        raise RuntimeError("the loss is not finite\nsecond line")
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "exit":
        os._exit(3)
    with (folder / "metrics.jsonl").open("w") as rows:
        for iteration in range(3):
            row = {"step": iteration, "iteration": iteration, "samples": 64 * iteration, "seconds": 2.0 * iteration}
            row |= {"eval/reward": iteration / 2, "eval/kl": float(iteration), "train/reward": iteration / 4}
            rows.write(json.dumps(row) + "\n")
    deadline = time.monotonic() + (30 if fate in ("slow", "stubborn") else 0)
    while time.monotonic() < deadline and (fate == "stubborn" or not stopped):
        time.sleep(0.02)
    summary: dict[str, Any] = {"status": "interrupted" if stopped else "finished", "eval/reward": 1.0}
    summary |= {"signals": stopped, "threads": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()}
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def _fate(run: RunConfig) -> str:
    here = Path(run.cache_dir).parent
    with (here / "started.txt").open("a") as started:
        started.write(f"{run_id(run)}\n")
    fates = json.loads((here / "fates.json").read_text()) if (here / "fates.json").is_file() else {}
    return next((fate for start, fate in fates.items() if run_id(run).startswith(start)), "")
