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
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.measuring import CPU, Machine, Products, Table, begin, parser_of
from tests.benchmarks.peer import describe, need_trl, run_trl
from tests.benchmarks.setups import Iterations, classifier_of, config_for, iterations_of, policy_for, reward_of
from tests.benchmarks.stages import show_shares, work_of

STAGES = {"sampling": "rollout", "scoring": "scoring", "measuring": "measuring", "update": "update"}
"""With the names of their seconds in metrics."""
DEFAULTS = {
    "tiny": {"responses": 64, "prompt": 16, "new": 32, "minibatches": [8, 16], "train": ["all", "last_k=2"]},
    "smollm2_135m": {"responses": 32, "prompt": 8, "new": 24, "minibatches": [8], "train": ["last_k=2"]},
}


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=5, responses=None, prompt=None, new=None, epochs=2)
    parser.add_argument("--model", choices=list(DEFAULTS), default="tiny")
    parser.add_argument("--train", nargs="+", help="what is trained: all, last_k=2, lora")
    parser.add_argument("--minibatches", type=int, nargs="+", help="responses for each optimizer step")
    parser.add_argument("--rollout", choices=("fast", "plain"), default="fast", help="our sampler")
    parser.add_argument("--no-trl", dest="trl", action="store_false", help="ours alone")
    parser.add_argument("--nondeterministic", action="store_true", help="ours without deterministic algorithms")
    parser.add_argument("--profile", action="store_true", help="torch.profiler's top operators of ours")
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.model].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.trl:
        need_trl()
    begin(options)
    for train in options.train:
        for minibatch in options.minibatches:
            compare(options, train, minibatch)


def compare(options: argparse.Namespace, train: str, minibatch: int) -> None:
    words = f"rollout={options.rollout}", f"hardware.threads={options.threads}"
    config = config_for(options, *words, train=train, algo="ppo", minibatch=minibatch)
    model, tokenizer = policy_for(config, options.model, torch.float32, CPU)
    reward = classifier_of(model)
    work = work_of(config, model, options.prompt)
    peers = copy.deepcopy((model, reward)) if options.trl else None
    print(describe(config, model))
    iterations = iterations_of(config, model, tokenizer, reward_of(config, reward, tokenizer))
    iterations.deterministic = not options.nondeterministic
    machine = Machine(CPU)
    machine.read(one for products in work.values() for one in products)
    taken: dict[str, list[float]] = {name: [] for name in ("whole", *STAGES)}

    def ours() -> None:
        began = time.perf_counter()
        row = iterations.next()
        taken["whole"].append(time.perf_counter() - began)
        for stage, name in STAGES.items():
            taken[stage].append(row[f"perf/{name}_seconds"])
        assert row["train/response_length"] == options.new, "a response ended early: the two sides are not equal"

    ours()
    table = Table(f"{train}, minibatches of {minibatch}", "min s", "median s", "to ours", "collecting s")
    warm_up, theirs, collecting = 1, None, []
    if peers is None:
        for _ in range(options.repeats):
            ours()
    else:
        prompts = iterations.setup.prompts.rows(torch.arange(options.responses)).input_ids.tolist()
        networks = *peers, classifier_of(peers[0])
        theirs, collecting = run_trl(config, *networks, tokenizer, prompts, options.repeats + 1, ours)
        warm_up = 2
    taken = {name: seconds[warm_up:] for name, seconds in taken.items()}
    median = statistics.median(taken["whole"])
    table.row("ours", min(taken["whole"]), median, 1.0)
    if theirs is not None:
        middle = statistics.median(theirs)
        table.row("TRL", min(theirs), middle, middle / median, statistics.median(collecting))
    print()
    whole = sum(work.values(), Products())
    show_shares("our stages", {"whole": whole, **work}, taken, machine)
    if options.profile:
        show_profile(iterations)


def show_profile(iterations: Iterations) -> None:
    """Where our sampling and our update spend their time, by operator."""
    show_operators("sampling", lambda: iterations.responses.rollouts(1))
    show_operators("update", iterations.updates(iterations.responses.rollouts(1)))


def show_operators(title: str, call: Callable[[], object]) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    print(f"{title}, by operator")
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    main()
