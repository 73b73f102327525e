"""One PPO iteration, ours against TRL 1.12.0's: `python -m tests.benchmarks.iteration`.

Sampling, scoring, measuring and all updates of one batch of responses, float32 on a CPU. Equal on both sides: weights
of policy, reference, value network and reward model, prompts, tokens of every response (special tokens are impossible,
see setups.py), epochs, minibatches and so optimizer steps, threads. Where the last blocks are trained, TRL's other
parameters have requires_grad=False. Not equal, as each library does it: we take old logprobs by a forward pass of their
own, clip gradients, decode responses to text and tokenise them again for the reward, and compute deterministically
(`--nondeterministic`), TRL draws with multinomial and collects garbage twice an iteration (its own column).

Iterations alternate in one process: ours, TRL's, ours ... The tables below each comparison say what our stages compute,
at what rate, and which share that is of the rates of this machine's matrix products.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch.profiler import ProfilerActivity, profile

from rlhf.config import RunConfig
from rlhf.stages.loop import Progress, one_iteration
from rlhf.stages.setup import Setup
from rlhf.training_batch import measure_rollouts, training_batch
from rlhf.update import update
from tests.benchmarks.measuring import (
    Machine,
    Table,
    Times,
    add_options,
    as_runs_do,
    begin,
    watching_collections,
)
from tests.benchmarks.peer import describe, need_trl, run_trl
from tests.benchmarks.setups import classifier_of, config_for, policy_for, responses_of, reward_of, setup_of
from tests.benchmarks.stages import show_shares, work_of

CPU = torch.device("cpu")
STAGES = ("sampling", "scoring", "measuring", "update")
DEFAULTS = {
    "tiny": {"responses": 64, "prompt": 16, "new": 32, "minibatch": [8, 16], "train": ["all", "last_k=2"]},
    "smollm2_135m": {"responses": 32, "prompt": 8, "new": 24, "minibatch": [8], "train": ["last_k=2"]},
}


class Ours:
    """Our iterations, one behind the other, with the seconds of each and of its stages."""

    def __init__(self, config: RunConfig, setup: Setup, progress: Progress, *, deterministic: bool = True) -> None:
        self.config, self.setup, self.progress = config, setup, progress
        self.deterministic = deterministic
        self.responses = responses_of(config, setup)
        self.seconds: list[float] = []
        self.stages: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def iterate(self) -> None:
        began = time.perf_counter()
        with as_runs_do(CPU, deterministic=self.deterministic):
            row = one_iteration(self.config, self.setup, self.responses, self.progress, self.progress.iteration + 1)
        self.seconds.append(time.perf_counter() - began)
        taken = [row[f"perf/{stage}_seconds"] for stage in ("rollout", *STAGES[1:])]
        for stage, seconds in zip(STAGES, taken, strict=True):
            self.stages[stage].append(seconds)
        wanted = self.config.dataset.max_new_tokens
        assert row["train/response_length"] == wanted, "a response ended early: the two sides are not equal"

    def times(self, warm_up: int) -> tuple[Times, dict[str, Times]]:
        return Times(self.seconds[warm_up:]), {name: Times(taken[warm_up:]) for name, taken in self.stages.items()}


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    for name, value in DEFAULTS[options.model].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.trl:
        need_trl()
    begin(options, CPU)
    for train in options.train:
        for minibatch in options.minibatch:
            compare(options, train, minibatch)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(DEFAULTS), default="tiny")
    parser.add_argument("--train", nargs="+", help="what is trained: all, last_k=2, lora")
    parser.add_argument("--minibatch", type=int, nargs="+", help="responses for each optimizer step")
    parser.add_argument("--responses", type=int)
    parser.add_argument("--prompt", type=int, help="tokens")
    parser.add_argument("--new", type=int, help="tokens of each response")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rollout", choices=("fast", "plain"), default="fast", help="our sampler")
    parser.add_argument("--no-trl", dest="trl", action="store_false", help="ours alone")
    parser.add_argument("--nondeterministic", action="store_true", help="ours without deterministic algorithms")
    parser.add_argument("--profile", action="store_true", help="torch.profiler's top operators of ours")
    add_options(parser, repeats=5)
    return parser


def config_of(options: argparse.Namespace, train: str, minibatch: int) -> RunConfig:
    mode, _, last_k = train.partition("=")
    return config_for(
        f"model={options.model}",
        *(["model.num_layers=4", "model.width=128", "model.num_heads=4"] if options.model == "tiny" else []),
        f"model.train.mode={mode}",
        *([f"model.train.last_k={last_k}"] if last_k else []),
        f"rollout={options.rollout}",
        f"optimization.epochs={options.epochs}",
        f"hardware.threads={options.threads}",
        algo="ppo",
        responses=options.responses,
        prompt=options.prompt,
        new=options.new,
        minibatch=minibatch,
    )


def compare(options: argparse.Namespace, train: str, minibatch: int) -> None:
    config = config_of(options, train, minibatch)
    model, tokenizer = policy_for(config, options.model, torch.float32, CPU)
    reward = classifier_of(model)
    work = work_of(config, model, options.prompt).by_stage()
    peers = copy.deepcopy((model, reward)) if options.trl else None
    print(describe(config, model))
    setup, progress = setup_of(config, model, tokenizer, reward_of(config, reward, tokenizer))
    machine = Machine(CPU)
    machine.read(one for stage in work.values() for one in stage)
    ours = Ours(config, setup, progress, deterministic=not options.nondeterministic)
    ours.iterate()
    table = Table(f"{train}, minibatches of {minibatch}", "min s", "median s", "to ours", "collecting s")
    if peers is None:
        for _ in range(options.repeats):
            ours.iterate()
        whole, stages = ours.times(1)
        table.row("ours", whole.least, whole.median, 1.0)
    else:
        prompts = setup.prompts.rows(torch.arange(options.responses)).input_ids.tolist()
        value = classifier_of(peers[0])
        rounds = options.repeats + 1  # the first warms up
        with watching_collections() as collections:
            theirs, collecting = run_trl(config, *peers, value, tokenizer, prompts, rounds, ours.iterate, collections)
        whole, stages = ours.times(2)
        table.row("ours", whole.least, whole.median, 1.0)
        table.row("TRL", theirs.least, theirs.median, theirs.median / whole.median, collecting.median)
    print()
    show_shares(
        "our stages",
        {"whole": [one for stage in work.values() for one in stage], **work},
        {"whole": whole, **stages},
        machine,
    )
    if options.profile:
        show_profile(config, setup)


def show_profile(config: RunConfig, setup: Setup) -> None:
    """Where our sampling and our update spend their time, by operator."""
    responses = responses_of(config, setup)
    with as_runs_do(CPU):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            rollouts = responses.rollouts(1)
        _show(seen, "sampling")
        measured = measure_rollouts(config, setup.models, rollouts, 1)
        batch = training_batch(setup.algorithm, rollouts, measured, torch.randn(len(rollouts.mask)), 0.0)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            update(
                config, setup.algorithm, setup.models, setup.optimizer, batch, measured.features, iteration=1, step=0
            )
        _show(seen, "update")


def _show(seen: profile, title: str) -> None:
    print(f"{title}, by operator")
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    main()
