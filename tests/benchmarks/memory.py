"""Peak memory of one iteration of APA and PPO: `python -m tests.benchmarks.memory --model pythia_1b`.

Shapes of pythia_1b (last two blocks trained) and llama_7b (LoRA 16) with random weights, frozen ones held in bfloat16;
a child process for each row. On a GPU the peak is torch's count of its tensors, and `reserved` what its allocator took
of the device at most, captured graphs' pools and gaps included; on a CPU the peak is what the process grew by after its
imports. It is set against the sum of what must be there: frozen weights as they are held, those of a reward model
among them, trained parameters with gradient and two moments (16 bytes each), the key-value cache, the trunk's features,
and a chunk of logits. `activations` is beside the sum: what autograd keeps of a micro-batch until its backward pass, of
both networks where they are trained at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config import RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.models.policy import PolicyModels
from rlhf.stages.loop import one_iteration
from rlhf.stages.setup import Setup
from rlhf.token_logprobs import CHUNK
from rlhf.training_batch import features_at
from tests.benchmarks.measuring import Table, add_options, as_runs_do, begin, peak_bytes
from tests.benchmarks.setups import (
    MODELS,
    NoReward,
    config_for,
    policy_for,
    random_model,
    responses_of,
    reward_of,
    setup_of,
)
from tests.benchmarks.updating import made_up

ROOT = Path(__file__).resolve().parents[2]
TRAINED_BYTES = 16
"""Of a float32 parameter with its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Needed:
    """Bytes."""

    frozen: int
    trained: int
    cache: int
    trunk: int
    logits: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def needed(
    *,
    frozen_bytes: int,
    trained_parameters: int,
    blocks: int,
    key_width: int,
    cached_rows: int,
    cached_bytes: int,
    rows: int,
    positions: int,
    new: int,
    trunk_width: int,
    vocabulary: int,
) -> Needed:
    """What an iteration cannot do without.

    Args:
        key_width: of all the heads' keys of one token and block.
        cached_rows: responses sampled at once; cached_bytes: of a number in the cache.
        rows: responses of the iteration; positions: tokens of each, `new` of them sampled.
        trunk_width: of float32 features kept for every position; 0 where there is no trunk.
    """
    return Needed(
        frozen=frozen_bytes,
        trained=TRAINED_BYTES * trained_parameters,
        cache=2 * blocks * key_width * cached_rows * positions * cached_bytes,
        trunk=4 * rows * positions * trunk_width,
        logits=4 * min(CHUNK, rows * new * vocabulary),
    )


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.child:
        print(json.dumps(child(options)))
        return
    begin(options, torch.device(options.device))
    print(f"{options.responses} responses of {options.prompt} + {options.new} tokens, reward model {options.reward}")
    columns = ("peak", "needed", "ratio", "reserved", "activations", "frozen", "trained", "cache", "trunk", "logits")
    table = Table("GiB", *columns)
    program = [sys.executable, "-W", "ignore::FutureWarning", "-m", "tests.benchmarks.memory"]
    words = sys.argv[1:] if arguments is None else arguments
    for model in options.model:
        for algo in options.algo:
            done = subprocess.run(
                [*program, *words, "--child", "--model", model, "--algo", algo],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                table.row(f"{model}, {algo}", "failed")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            parts = Needed(**found["needed"])
            giga = [part / 2**30 for part in asdict(parts).values()]
            peak = found["peak"] / 2**30
            held = found["reserved"] / 2**30 or None
            kept = found["activations"] / 2**30
            table.row(f"{model}, {algo}", peak, parts.total / 2**30, found["peak"] / parts.total, held, kept, *giga)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ("tiny", "pythia_1b", "llama_7b")
    parser.add_argument("--model", nargs="+", choices=shapes, default=["pythia_1b", "llama_7b"])
    parser.add_argument("--algo", nargs="+", choices=("apa", "ppo", "awr"), default=["apa", "ppo"])
    parser.add_argument("--layers", type=int, default=0, help="blocks of each model, where the machine is small")
    parser.add_argument("--reward", choices=("none", "gptj_6b"), default="none", help="a reward model beside them")
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens of each response")
    parser.add_argument("--minibatch", type=int, default=8, help="responses of a forward pass and of an optimizer step")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    add_options(parser, repeats=3)
    return parser


def config_of(options: argparse.Namespace) -> RunConfig:
    model = options.model[0]
    small = ["model.num_layers=4", "model.width=128", "model.num_heads=4", "model.train.last_k=2"]
    return config_for(
        f"model={model}",
        *(small if model == "tiny" else []),
        *([f"model.num_layers={options.layers}"] if options.layers else []),
        f"hardware={'cpu' if options.device == 'cpu' else 'gpu'}",
        "optimization.epochs=1",
        algo=options.algo[0],
        responses=options.responses,
        prompt=options.prompt,
        new=options.new,
        minibatch=options.minibatch,
    )


def child(options: argparse.Namespace) -> dict[str, object]:
    """One iteration in this process."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    before = 0 if device.type == "cuda" else peak_bytes(device)
    config = config_of(options)
    dtype = torch.bfloat16 if config.model.frozen_weights == "bfloat16" else torch.float32
    model, tokenizer = policy_for(config, options.model[0], dtype, device, options.layers)
    scorer, judge = NoReward(), None
    if options.reward != "none":
        judge = random_model(MODELS[options.reward](options.layers), torch.bfloat16, device, classifier=True)
        score: Any = judge.score  # in float32, as runs load it; the rest computes in bfloat16
        score.float()
        scorer = reward_of(config, judge, tokenizer)
    setup, progress = setup_of(config, model, tokenizer, scorer)
    responses = responses_of(config, setup)
    for iteration in range(1, options.repeats + 1):
        with as_runs_do(device):
            one_iteration(config, setup, responses, progress, iteration)
    peak = peak_bytes(device) - before
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    with as_runs_do(device):
        kept = activations(config, setup.models)
    return {
        "peak": peak,
        "reserved": reserved,
        "needed": asdict(needed_by(config, setup, judge)),
        "activations": kept,
    }


def activations(config: RunConfig, models: PolicyModels) -> int:
    """Bytes that autograd keeps of one micro-batch, each memory counted once and parameters not at all."""
    rows = forward_rows(config)
    rollouts = made_up(config, config.dataset.max_prompt_tokens, models.model.config.vocab_size, models.device)
    features = features_at(models, rollouts, torch.arange(rows), rows, by_length=True).rows(torch.arange(rows))
    weights = {one.untyped_storage().data_ptr() for one in _all_parameters(models, None)}

    def kept_by(call: Callable[[], object]) -> int:
        found: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            memory = tensor.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = call()
        del output
        return sum(size for place, size in found.items() if place not in weights)

    at = features.response_positions()
    networks = [
        kept_by(lambda: models.policy_logprobs(models.policy_hidden(features), features.tokens, at)),
        kept_by(lambda: models.values(features)),
    ]
    return sum(networks) if models.runs_concurrently and torch.get_num_threads() > 1 else max(networks)


def needed_by(config: RunConfig, setup: Setup, judge: nn.Module | None) -> Needed:
    shape, sizes = setup.models.model.config, config.dataset
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    short = config.hardware.precision != "fp32"
    trained = {id(one): one for one in setup.models.named_parameters().values()}
    return needed(
        frozen_bytes=sum(
            one.numel() * one.dtype.itemsize for one in _all_parameters(setup.models, judge) if id(one) not in trained
        ),
        trained_parameters=sum(one.numel() for one in trained.values()),
        blocks=shape.num_hidden_layers,
        key_width=heads * (shape.hidden_size // shape.num_attention_heads),
        cached_rows=min(config.rollout.batch_size, config.rollout.num_responses),
        cached_bytes=2 if short else 4,
        rows=config.rollout.num_responses,
        positions=sizes.max_total_length,
        new=sizes.max_new_tokens,
        trunk_width=shape.hidden_size if config.model.train.mode == "last_k" else 0,
        vocabulary=shape.vocab_size,
    )


def _all_parameters(models: PolicyModels, judge: nn.Module | None) -> list[nn.Parameter]:
    """Each once, of whatever networks there are."""
    modules = [one for one in (*vars(models).values(), judge) if isinstance(one, nn.Module)]
    return list({id(one): one for module in modules for one in module.parameters()}.values())


if __name__ == "__main__":
    main()
