"""What one response costs as things grow: `python -m tests.benchmarks.scaling`.

Seconds of a whole PPO iteration divided by its responses, over the number of responses, their length, the model's width
and number of blocks (one process, sizes in turn) and the ranks (`hardware.ranks` of real runs, whose own clocks are
read). A line each with the exponent b of cost = a x size^b, by least squares on logarithms: 0 is a cost per response
that does not change, 1 one that grows in proportion, -1 ranks that share all of it. Everything else stays as it is; the
model is a GPT-NeoX of 4 blocks of width 128, all of it trained. Ranks have one thread each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from rlhf.config import RunConfig
from tests.benchmarks.measuring import CPU, ROOT, Table, begin, exponent, interleaved, number, parser_of
from tests.benchmarks.setups import (
    TINY,
    classifier_of,
    config_for,
    iterations_of,
    neox,
    never_ends,
    random_model,
    reward_of,
    words_for,
)

VOCABULARY = 1024
SIZES = {
    "responses": [16, 32, 64, 128],
    "length": [16, 32, 64, 128],
    "width": [64, 128, 256, 512],
    "blocks": [2, 4, 8, 16],
    "ranks": [1, 2],
}
USUAL = {"responses": 32, "length": 32, "width": 128, "blocks": 4}


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=3)
    parser.add_argument("--of", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--points", type=int, help="the smallest sizes alone, so many of each; 2 or more")
    parser.add_argument("--iterations", type=int, default=6, help="of each run of several ranks; the first warms up")
    options = parser.parse_args(arguments)
    begin(options)
    table = Table("of", "exponent", "milliseconds a response at each size", width=12)
    for what in options.of:
        sizes = SIZES[what][: options.points]
        costs = by_ranks(sizes, options) if what == "ranks" else in_turn(what, sizes, options)
        points = ", ".join(f"{size}: {number(1000 * cost)}" for size, cost in zip(sizes, costs, strict=True))
        table.row(what, f"{exponent(sizes, costs):.2f}", f"   {points}")


def in_turn(what: str, sizes: list[int], options: argparse.Namespace) -> list[float]:
    """Median seconds a response."""
    calls = {str(size): iteration({**USUAL, what: size}, options) for size in sizes}
    seconds = interleaved(calls, options.repeats, CPU)
    responses = [size if what == "responses" else USUAL["responses"] for size in sizes]
    return [statistics.median(seconds[str(size)]) / count for size, count in zip(sizes, responses, strict=True)]


def iteration(sizes: dict[str, int], options: argparse.Namespace) -> Callable[[], object]:
    """One more iteration of a run at these sizes."""
    config = config_of(sizes, options)
    tokenizer = words_for(VOCABULARY)
    model = random_model(neox(sizes["blocks"], sizes["width"], 4, VOCABULARY), torch.float32, CPU)
    never_ends(model, tokenizer)
    return iterations_of(config, model, tokenizer, reward_of(config, classifier_of(model), tokenizer)).next


def config_of(sizes: dict[str, int], options: argparse.Namespace) -> RunConfig:
    model = f"model.num_layers={sizes['blocks']}", f"model.width={sizes['width']}"
    changes = {"algo": "ppo", "responses": sizes["responses"], "prompt": 16, "new": sizes["length"], "minibatch": 16}
    return config_for(options, *model, f"hardware.threads={options.threads}", train="all", **changes)


def by_ranks(sizes: list[int], options: argparse.Namespace) -> list[float]:
    """Median seconds a response of real runs on the embedded task, whose rewards are a random network's."""
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as name:
        folder, tokenizer = Path(name), words_for(VOCABULARY)
        network = random_model(neox(2, 64, 4, VOCABULARY), torch.float32, CPU, classifier=True)
        reward_of(config_of(USUAL, options), network, tokenizer).save(folder / "reward")
        for repeat in range(options.repeats):
            for size in sizes:
                seconds[size].append(run_ranks(folder, size, repeat, options.iterations))
    return [statistics.median(seconds[size]) for size in sizes]


def run_ranks(folder: Path, ranks: int, repeat: int, iterations: int) -> float:
    """Seconds a response, iterations alone: start-up, evaluations and the first iteration are not in it."""
    responses, output = 64, folder / f"{ranks}-{repeat}"
    words = [
        "algo=ppo",
        "model.sft=false",
        *TINY,
        "model.train.mode=all",
        f"reward.path={folder / 'reward'}",
        f"rollout.iterations={iterations}",
        f"rollout.num_responses={responses}",
        f"evaluation.eval_every={iterations}",
        "hardware.threads=1",
        f"hardware.ranks={ranks}",
        "tracking=none",
        f"output_dir={output}",
    ]
    done = subprocess.run([sys.executable, "main.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run of {ranks} ranks failed: {done.stderr[-500:]}")
    (metrics,) = output.glob("*/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    parts = [f"perf/{part}_seconds" for part in ("rollout", "scoring", "measuring", "update")]
    return statistics.median(sum(row[part] for part in parts) for row in rows if row["iteration"] > 1) / responses


if __name__ == "__main__":
    main()
