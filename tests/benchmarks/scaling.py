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
from rlhf.stages.loop import one_iteration
from tests.benchmarks.measuring import Table, add_options, as_runs_do, begin, exponent, interleaved, number
from tests.benchmarks.setups import (
    classifier_of,
    config_for,
    neox,
    never_ends,
    random_model,
    responses_of,
    reward_of,
    setup_of,
    words_for,
)

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
VOCABULARY = 1024
SIZES = {
    "responses": [16, 32, 64, 128],
    "length": [16, 32, 64, 128],
    "width": [64, 128, 256, 512],
    "blocks": [2, 4, 8, 16],
    "ranks": [1, 2],
}
USUAL = {"responses": 32, "length": 32, "width": 128, "blocks": 4}
PARTS = ("rollout", "scoring", "update")


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    begin(options, CPU)
    table = Table("of", "exponent", "milliseconds a response at each size", width=12)
    for what in options.of:
        sizes = SIZES[what][: options.points]
        costs = by_ranks(sizes, options) if what == "ranks" else in_turn(what, sizes, options)
        told = ", ".join(f"{size}: {number(1000 * cost)}" for size, cost in zip(sizes, costs, strict=True))
        table.row(what, f"{exponent(sizes, costs):.2f}" if len(sizes) > 1 else "", f"   {told}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--points", type=int, help="the smallest sizes alone, so many of each; 2 or more")
    parser.add_argument("--iterations", type=int, default=6, help="of each run of several ranks; the first warms up")
    add_options(parser, repeats=3)
    return parser


def in_turn(what: str, sizes: list[int], options: argparse.Namespace) -> list[float]:
    """Median seconds a response."""
    calls = {str(size): iteration({**USUAL, what: size}, options.threads) for size in sizes}
    found = interleaved(calls, options.repeats, CPU)
    responses = [size if what == "responses" else USUAL["responses"] for size in sizes]
    return [found[str(size)].median / count for size, count in zip(sizes, responses, strict=True)]


def iteration(sizes: dict[str, int], threads: int) -> Callable[[], object]:
    """One more iteration of a run at these sizes."""
    config = config_of(sizes, threads)
    tokenizer = words_for(VOCABULARY)
    model = random_model(neox(sizes["blocks"], sizes["width"], 4, VOCABULARY), torch.float32, CPU)
    never_ends(model, tokenizer)
    reward = reward_of(config, classifier_of(model), tokenizer)
    setup, progress = setup_of(config, model, tokenizer, reward)
    responses = responses_of(config, setup)

    def call() -> None:
        with as_runs_do(CPU):
            one_iteration(config, setup, responses, progress, progress.iteration + 1)

    return call


def config_of(sizes: dict[str, int], threads: int) -> RunConfig:
    return config_for(
        f"model.num_layers={sizes['blocks']}",
        f"model.width={sizes['width']}",
        "model.num_heads=4",
        "model.train.mode=all",
        f"hardware.threads={threads}",
        algo="ppo",
        responses=sizes["responses"],
        prompt=16,
        new=sizes["length"],
        minibatch=16,
    )


def by_ranks(sizes: list[int], options: argparse.Namespace) -> list[float]:
    """Median seconds a response of real runs on the embedded task, whose rewards are a random network's."""
    found: dict[int, list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_reward(folder / "reward")
        for repeat in range(options.repeats):
            for size in sizes:
                found[size].append(run_ranks(folder, size, repeat, options.iterations))
    return [statistics.median(found[size]) for size in sizes]


def write_reward(folder: Path) -> None:
    """A reward model that a run takes for its own."""
    config = config_of(USUAL, 1)
    tokenizer = words_for(VOCABULARY)
    network = random_model(neox(2, 64, 4, VOCABULARY), torch.float32, CPU, classifier=True)
    reward_of(config, network, tokenizer).save(folder)


def run_ranks(folder: Path, ranks: int, repeat: int, iterations: int) -> float:
    """Seconds a response, iterations alone: start-up, evaluations and the first iteration are not in it."""
    responses, output = 64, folder / f"{ranks}-{repeat}"
    words = [
        "algo=ppo",
        "model.sft=false",
        "model.num_layers=4",
        "model.width=128",
        "model.num_heads=4",
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
        sys.exit(f"the run of {ranks} ranks failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    (metrics,) = output.glob("*/*/metrics.jsonl")
    return seconds_of_iterations(metrics.read_text()) / responses


def seconds_of_iterations(metrics: str) -> float:
    """Median over the rows of a metrics.jsonl but the evaluation before training and the first iteration."""
    rows = [json.loads(line) for line in metrics.splitlines()]
    taken = [sum(row[f"perf/{part}_seconds"] for part in PARTS) for row in rows if row["iteration"] > 1]
    return statistics.median(taken)


if __name__ == "__main__":
    main()
