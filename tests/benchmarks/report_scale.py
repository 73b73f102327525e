"""`python -m tests.benchmarks.report_scale [--rows 1000] [--every 10] RUNS ...`: a report's time and memory by runs.

Made-up runs of as many rows and metrics as real ones log, with an evaluation at every `--every`-th row. Prints for each
number of runs the seconds and the peak memory of `python -m analysis report`, files in the page cache, and the time's
exponent.
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
from tests.benchmarks.measuring import CPU, ROOT, exponent, peak_bytes

ALGORITHMS = ("apa", "ppo", "awr")
TRAIN = "reward kl kl_k3 entropy response_length eos_rate explained_variance kl_coef policy_loss value_loss"
TRAIN += " infeasible_target_fraction grad_norm value_grad_norm"
PERF = "rollout_seconds scoring_seconds measuring_seconds update_seconds tokens_per_second sampler_logprob_gap"
EVAL = "reward reward_std reward_even reward_odd kl entropy response_length eos_rate"
LOGGED = [f"{group}/{name}" for group, names in (("train", TRAIN), ("perf", PERF)) for name in names.split()]
EVALUATED = [f"eval/{name}" for name in EVAL.split()]


def write_sweep(folder: Path, runs: int, rows: int, every: int) -> None:
    for index in range(runs):
        algo, seed = ALGORITHMS[index % 3], index // 3 % 10
        learning_rate = 1e-4 * (1 + index // 30)  # ten seeds of each setting
        run = folder / f"{algo}-s{seed}-{index:08x}"
        run.mkdir(parents=True)
        text = yaml.safe_dump(config(algo, seed, optimization__learning_rate=learning_rate, sweep_name="scale"))
        (run / "config.yaml").write_text(text)
        made = made_rows(np.random.default_rng(index), rows, every)
        (run / "metrics.jsonl").write_bytes(b"\n".join(map(orjson.dumps, made)) + b"\n")
        finals = {key: value for key, value in made[-1].items() if key.startswith("eval/")}
        (run / "summary.json").write_bytes(orjson.dumps({"status": "finished", "wall_seconds": 60.0, **finals}))


def made_rows(rng: np.random.Generator, rows: int, every: int) -> list[dict[str, float]]:
    """Reward rises with sqrt(KL), which wanders upwards; the last row is an evaluation."""
    kl = np.abs(np.cumsum(rng.normal(5.0 / rows, 0.3 / math.sqrt(rows), rows)))
    kl[0] = 0.0
    noise = rng.normal(0.0, 0.05, (rows, len(LOGGED) + len(EVALUATED))).tolist()
    made = []
    for row, values in enumerate(noise):
        logged: dict[str, float] = {"step": 8 * row, "iteration": row, "samples": 64 * row, "seconds": 1.5 * row}
        logged |= zip(LOGGED, values[: len(LOGGED)], strict=True)
        if row % every == 0 or row == rows - 1:
            reward = 0.5 * math.sqrt(kl[row])
            logged |= {name: reward + value for name, value in zip(EVALUATED, values[len(LOGGED) :], strict=True)}
            logged["eval/kl"] = float(kl[row])
        made.append(logged)
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="*", default=[125, 250, 500, 1000])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args(arguments)
    runs, seconds = sorted(options.runs), []
    for count in runs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "scale"
            write_sweep(folder, count, options.rows, options.every)
            began = time.perf_counter()
            command = [sys.executable, "-m", "analysis", "report", str(folder)]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        megabytes = peak_bytes(CPU, resource.RUSAGE_CHILDREN) / 2**20  # of the largest child so far; sizes go up
        print(f"{count} runs of {options.rows} rows: {seconds[-1]:.1f} s, {megabytes:.0f} MB", flush=True)
    if len(runs) > 1:
        print(f"time grows as runs to the power {exponent(runs, seconds):.2f}")


if __name__ == "__main__":
    main()
