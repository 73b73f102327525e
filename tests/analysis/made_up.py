"""Made-up run folders in the form of the architecture's contract."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis.compared import Comparison
from analysis.load import load_sweep
from analysis.summary import compare


def config(algo: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A config with the keys that analysis reads; `changes` are dotted keys with `__` for the dot."""
    values: dict[str, Any] = {
        "seed": seed,
        "sweep_name": "made_up",
        "output_dir": f"runs/{algo}{seed}",  # differs between runs and must not reach a label
        "stage": {"name": "online"},
        "algo": {"name": algo, "lam": 1.0},
        "dataset": {"name": "letters", "path": None, "kl_budgets": [4.0, 1.0]},
        "model": {"name": "tiny"},
        "optimization": {"learning_rate": 0.001},
        "sft": {"learning_rate": 0.01},
        "reward_model": {},
        "hardware": {"device": "cpu", "precision": "fp32", "threads": 1},
        "tracking": {"wandb": "off"},
    }
    for key, value in changes.items():
        *groups, leaf = key.split("__")
        target = values
        for group in groups:
            target = target[group]
        target[leaf] = value
    return values


def rows(
    kl: Sequence[float],
    reward: Sequence[float],
    odd: Sequence[float] | None = None,
    gold: Sequence[float] | None = None,
    samples_per_row: int = 64,
) -> list[dict[str, Any]]:
    """Evaluation rows; with `odd`, `reward` is that of the even prompts and eval/reward the mean of both."""
    made = []
    for index, (k, even) in enumerate(zip(kl, reward, strict=True)):
        row: dict[str, Any] = {"step": 2 * index, "iteration": index, "samples": samples_per_row * index}
        row |= {"seconds": 1.0, "eval/kl": k, "eval/reward": even, "train/reward": even}
        if odd is not None:
            row |= {"eval/reward": (even + odd[index]) / 2, "eval/reward_even": even, "eval/reward_odd": odd[index]}
        if gold is not None:
            row["eval/gold_reward"] = gold[index]
        made.append(row)
    return made


def write_run(
    sweep: Path,
    name: str,
    run_config: dict[str, Any] | None,
    run_rows: Sequence[dict[str, Any]] | None,
    *,
    status: str | None = "finished",
    error: str | None = None,
    samples: Sequence[dict[str, Any]] = (),
    tail: str = "",
) -> Path:
    """One run folder; None leaves that file out, `tail` is put at the end of metrics.jsonl as it is."""
    folder = sweep / name
    folder.mkdir(parents=True)
    if run_config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(run_config))
    if run_rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run_rows) + tail)
    if status is not None:
        finals = {k: v for k, v in run_rows[-1].items() if k.startswith("eval/")} if run_rows else {}
        summary = finals | {
            "status": status,
            "wall_seconds": 12.5,
            "peak_memory_mb": 321.0,
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "git_commit": "0cde85c",
            "hostname": "bench",
            "cpu": "Some CPU",
        }
        if error is not None:
            summary["error"] = error
        (folder / "summary.json").write_text(json.dumps(summary))
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def write(folder: Path, algo: str, seed: int, made: Sequence[dict[str, Any]], **changes: Any) -> None:
    """A finished run with a name of its own."""
    name = f"{algo}-s{seed}-{zlib.crc32(str(changes).encode()):08x}"
    write_run(folder, name, config(algo, seed, **changes), made)


def sweep(folder: Path) -> Comparison:
    return compare(load_sweep(folder))
