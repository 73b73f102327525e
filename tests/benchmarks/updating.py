"""Our update alone: `python -m tests.benchmarks.updating`; on a GPU `--model pythia_1b --device cuda`.

All epochs over one batch of made-up responses whose trunk features, logprobs and values are there: forward and backward
of policy and value network, clipping, AdamW. Every training mode computes the same minibatches. A share is that of the
arithmetic which must be done (tests/benchmarks/stages.py), by time, in large square products of the precision's type,
and in the stage's own products, one behind the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from rlhf.batches import Rollouts
from rlhf.config import RunConfig
from rlhf.precision import AUTOCAST
from rlhf.random import generator
from rlhf.stages.setup import Setup
from rlhf.training_batch import measure_rollouts, training_batch
from rlhf.update import update
from tests.benchmarks.measuring import Machine, add_options, as_runs_do, begin, interleaved
from tests.benchmarks.setups import MODELS, NoReward, config_for, policy_for, setup_of
from tests.benchmarks.stages import show_shares, work_of


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    begin(options, device)
    calls, products, precision = {}, {}, options.precision or ("fp32" if device.type == "cpu" else "bf16")
    for train in options.train:
        config = config_of(options, train, precision)
        frozen = torch.bfloat16 if config.model.frozen_weights == "bfloat16" else torch.float32
        dtype = torch.float32 if config.model.train.mode == "all" else frozen
        model, tokenizer = policy_for(config, options.model, dtype, device, options.layers)
        products[train] = work_of(config, model, options.prompt).update()
        setup, _ = setup_of(config, model, tokenizer, NoReward())
        calls[train] = updates(config, setup, options.prompt)
    machine = Machine(device, AUTOCAST[precision] or torch.float32)
    machine.read(one for work in products.values() for one in work)
    found = interleaved(calls, options.repeats, device)
    title = f"{options.model}, {options.responses} x ({options.prompt} + {options.new}), {precision}"
    show_shares(title, products, found, machine)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[name for name in MODELS if name != "gptj_6b"], default="tiny")
    parser.add_argument("--layers", type=int, default=0, help="fewer blocks than the model has; random weights")
    parser.add_argument("--train", nargs="+", default=["all", "last_k=2", "lora"], help="all, last_k=2, lora")
    parser.add_argument("--algo", choices=("apa", "ppo", "awr"), default="ppo")
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=16, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens of each response")
    parser.add_argument("--minibatch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(AUTOCAST), help="bf16 on a GPU, else fp32")
    add_options(parser, repeats=5)
    return parser


def config_of(options: argparse.Namespace, train: str, precision: str) -> RunConfig:
    mode, _, last_k = train.partition("=")
    blocks = ["model.num_layers=4", "model.width=128", "model.num_heads=4"] if options.model == "tiny" else []
    return config_for(
        f"model={options.model}",
        *blocks,
        *([f"model.num_layers={options.layers}"] if options.layers else []),
        f"model.train.mode={mode}",
        *(["model.frozen_weights=float32"] if mode == "all" else []),
        *([f"model.train.last_k={last_k}"] if last_k else []),
        f"optimization.epochs={options.epochs}",
        f"hardware={'cpu' if options.device == 'cpu' else 'gpu'}",
        f"hardware.precision={precision}",
        algo=options.algo,
        responses=options.responses,
        prompt=options.prompt,
        new=options.new,
        minibatch=options.minibatch,
    )


def updates(config: RunConfig, setup: Setup, prompt: int) -> Callable[[], object]:
    """The same update again and again; the weights move, the batch stays."""
    rollouts = made_up(config, prompt, setup.models.model.config.vocab_size, setup.models.device)
    with as_runs_do(setup.models.device):
        measured = measure_rollouts(config, setup.models, rollouts, 1)
    scores = torch.randn(len(rollouts.mask), generator=generator(0, "benchmark's scores"))
    batch = training_batch(setup.algorithm, rollouts, measured, scores, 0.0)

    def call() -> None:
        with as_runs_do(setup.models.device):
            update(
                config, setup.algorithm, setup.models, setup.optimizer, batch, measured.features, iteration=1, step=0
            )

    return call


def made_up(config: RunConfig, prompt: int, vocabulary: int, device: torch.device) -> Rollouts:
    """Random tokens, none of them special, all texts of one length."""
    count, new = config.rollout.num_responses, config.dataset.max_new_tokens
    ids = torch.randint(3, vocabulary, (count, prompt + new), generator=generator(0, "benchmark's responses"))
    texts = [""] * count
    return Rollouts(
        prompt_ids=ids[:, :prompt],
        prompt_mask=torch.ones(count, prompt, dtype=torch.bool),
        response_ids=ids[:, prompt:],
        mask=torch.ones(count, new, dtype=torch.bool),
        ended=torch.zeros(count, dtype=torch.bool),
        prompts=texts,
        references=texts,
        responses=texts,
        sampler_logprobs=torch.zeros(count, new),
    ).to(device)


if __name__ == "__main__":
    main()
