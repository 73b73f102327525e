"""`python -m tests.benchmarks.report_scale [--rows 1000] [--every 10] RUNS ...`: a report's time and memory by runs.

Made-up runs of as many rows and metrics as real ones log, with an evaluation at every `--every`-th row. Prints for each
number of runs the seconds and the peak memory of `python -m analysis report`, files in the page cache; the exponent is
that of the time between the first and the last.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import yaml

from tests.analysis.made_up import config

ALGORITHMS = ("apa", "ppo", "awr")
TRAIN = (
    *("reward", "kl", "kl_k3", "entropy", "response_length", "eos_rate", "explained_variance", "kl_coef"),
    *("policy_loss", "value_loss", "infeasible_target_fraction", "grad_norm", "value_grad_norm"),
)
PERF = (
    "rollout_seconds",
    "scoring_seconds",
    "measuring_seconds",
    "update_seconds",
    "tokens_per_second",
    "sampler_logprob_gap",
)
EVAL = ("reward", "reward_std", "reward_even", "reward_odd", "kl", "entropy", "response_length", "eos_rate")


def write_sweep(folder: Path, runs: int, rows: int, every: int) -> None:
    for index in range(runs):
        algo, seed = ALGORITHMS[index % 3], index // 3 % 10
        learning_rate = 1e-4 * (1 + index // 30)  # ten seeds of each setting
        run = folder / f"{algo}-s{seed}-{index:08x}"
        run.mkdir(parents=True)
        text = yaml.safe_dump(config(algo, seed, optimization__learning_rate=learning_rate, sweep_name="scale"))
        (run / "config.yaml").write_text(text)
        made = _rows(np.random.default_rng(index), rows, every)
        (run / "metrics.jsonl").write_bytes(b"\n".join(map(orjson.dumps, made)) + b"\n")
        finals = {key: value for key, value in made[-1].items() if key.startswith("eval/")}
        (run / "summary.json").write_bytes(orjson.dumps({"status": "finished", "wall_seconds": 60.0, **finals}))


def _rows(rng: np.random.Generator, rows: int, every: int) -> list[dict[str, float]]:
    """Reward rises with sqrt(KL), which wanders upwards; the last row is an evaluation."""
    kl = np.abs(np.cumsum(rng.normal(5.0 / rows, 0.3 / math.sqrt(rows), rows)))
    kl[0] = 0.0
    reward = 0.5 * np.sqrt(kl)
    noise = rng.normal(0.0, 0.05, (rows, len(TRAIN) + len(PERF) + len(EVAL)))
    made = []
    for row in range(rows):
        values: dict[str, float] = {"step": 8 * row, "iteration": row, "samples": 64 * row, "seconds": 1.5 * row}
        drawn = iter(noise[row].tolist())
        values |= {f"train/{name}": next(drawn) for name in TRAIN} | {f"perf/{name}": next(drawn) for name in PERF}
        if row % every == 0 or row == rows - 1:
            values |= {f"eval/{name}": float(reward[row]) + next(drawn) for name in EVAL} | {"eval/kl": float(kl[row])}
        made.append(values)
    return made


def report(folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of the command in a process of its own."""
    before = time.perf_counter()
    subprocess.run([sys.executable, "-m", "analysis", "report", str(folder)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - before
    # Of the largest child so far; sizes go up.
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="*", default=[125, 250, 500, 1000])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    seconds = []
    for runs in sorted(options.runs):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "scale"
            write_sweep(folder, runs, options.rows, options.every)
            taken, memory = report(folder)
        seconds.append(taken)
        print(f"{runs} runs of {options.rows} rows: {taken:.1f} s, {memory:.0f} MB", flush=True)
    if len(seconds) > 1:
        runs = sorted(options.runs)
        exponent = math.log(seconds[-1] / seconds[0]) / math.log(runs[-1] / runs[0])
        print(f"time grows as runs to the power {exponent:.2f}")


if __name__ == "__main__":
    main()
