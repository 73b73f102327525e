"""Seconds of each method's iteration beside PPO's, in one run: `python -m tests.benchmarks.family_cost`.

Sampling, scoring, measuring and both epochs of one batch of responses by the settings of conf/algo, for every algorithm
that learns online. All have the same policy, reward model, prompts and number of responses, none of which ends early.
The initial policy's responses, which `a_star_po` and `qrpo` draw once before they train, are made up and take no time
here.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from functools import partial

import torch

from rlhf.config import ALGO_CONFIGS
from rlhf.config.algo import CUSTOM
from rlhf.random import generator
from rlhf.stages.initial_scores import InitialScores
from rlhf.stages.online import prompt_rows
from tests.benchmarks.measuring import CPU, Table, begin, interleaved, parser_of
from tests.benchmarks.setups import (
    POLICIES,
    Iterations,
    classifier_of,
    config_for,
    iterations_of,
    policy_for,
    reward_of,
)

BASE = "ppo"
ONLINE = [name for name, kind in ALGO_CONFIGS.items() if "online" in kind.stages and name not in (CUSTOM, BASE)]


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=5, layers=0, responses=64, prompt=16, new=32, minibatch=16, epochs=2)
    parser.add_argument("--model", choices=POLICIES, default="tiny")
    parser.add_argument("--algos", nargs="+", choices=ONLINE, default=ONLINE)
    options = parser.parse_args(arguments)
    begin(options)
    calls = {name: made(options, name).next for name in (BASE, *options.algos)}
    seconds = interleaved(calls, options.repeats, CPU)
    table = Table("method", "min s", "median s", "to PPO's")
    for name, taken in seconds.items():
        table.row(
            name, min(taken), statistics.median(taken), statistics.median(taken) / statistics.median(seconds[BASE])
        )


def made(options: argparse.Namespace, algo: str) -> Iterations:
    """Iterations of one algorithm, with networks of its own."""
    config = config_for(options, algo=algo)
    model, tokenizer = policy_for(config, options.model, torch.float32, CPU, options.layers)
    reward = reward_of(config, classifier_of(model), tokenizer)
    iterations = iterations_of(config, model, tokenizer, reward)
    if each := config.algo.reference_samples:
        prompts = config.rollout.num_responses
        scores = torch.randn(prompts, each, generator=generator(0, "scores of the initial policy"))
        initial = InitialScores(partial(prompt_rows, config, prompts), {row: row for row in range(prompts)}, scores)
        iterations.responses = dataclasses.replace(iterations.responses, initial=initial)
    return iterations


if __name__ == "__main__":
    main()
