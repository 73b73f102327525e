"""Peak memory and seconds of one iteration of APA and PPO: `python -m tests.benchmarks.memory --model pythia_1b`.

Shapes of pythia_1b (last two blocks trained) and llama_7b (LoRA 16) with random weights, frozen ones held in bfloat16;
a child process for each row. On a GPU the peak is torch's count of its tensors, and `reserved` what its allocator took
of the device at most, captured graphs' pools and gaps included; on a CPU the peak is what the process grew by after its
imports. It is set against the sum of what must be there: frozen weights as they are held, those of a reward model
among them, trained parameters with gradient and two moments (16 bytes each), the key-value cache, the trunk's features,
and a chunk of logits. `activations` is not in the sum: what autograd keeps of a micro-batch until its backward pass, of
both networks where they are trained at once. `seconds` are the least of an iteration's after the first; `first KL` must
be 0, since nothing has been trained by then, and `sampler gap` is what the sampler's logprobs are off by on average.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config import RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.models.policy import PolicyModels
from rlhf.token_logprobs import CHUNK
from rlhf.training_batch import features_at
from tests.benchmarks.measuring import ROOT, Table, begin, finish, parser_of, peak_bytes
from tests.benchmarks.setups import (
    MODELS,
    NoReward,
    config_for,
    iterations_of,
    made_up,
    policy_for,
    random_model,
    reward_of,
)

TRAINED_BYTES = 16
"""Of a float32 parameter with its gradient and AdamW's two moments."""
PARTS = ("frozen", "trained", "cache", "trunk", "logits")
SPEED = ("seconds", "first KL", "sampler gap")
GIB = 2**30


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=3, layers=0, responses=64, prompt=128, new=128, minibatch=8)
    shapes = ("tiny", "pythia_1b", "llama_7b")
    parser.add_argument("--model", nargs="+", choices=shapes, default=["pythia_1b", "llama_7b"])
    parser.add_argument("--algo", nargs="+", choices=("apa", "ppo", "awr", "rloo"), default=["apa", "ppo"])
    parser.add_argument("--reward", choices=("none", "gptj_6b"), default="none", help="a reward model next to them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    if options.child:
        print(json.dumps(child(options, options.model[0], options.algo[0])))
        return
    begin(options, torch.device(options.device))
    print(f"{options.responses} responses of {options.prompt} + {options.new} tokens, reward model {options.reward}")
    table = Table("GiB", "peak", "needed", "ratio", "reserved", "activations", *PARTS, *SPEED)
    program = [sys.executable, "-W", "ignore::FutureWarning", "-m", "tests.benchmarks.memory", *words, "--child"]
    for model in options.model:
        for algo in options.algo:
            command = [*program, "--model", model, "--algo", algo]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                table.row(f"{model}, {algo}", "failed")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            parts = [row[part] / GIB for part in PARTS]
            peak, total = row["peak"] / GIB, sum(parts)
            beyond = row["reserved"] / GIB or None, row["activations"] / GIB
            speed = [row[name] for name in SPEED]
            table.row(f"{model}, {algo}", peak, total, peak / total, *beyond, *parts, *speed)


def child(options: argparse.Namespace, model: str, algo: str) -> dict[str, float]:
    """Bytes and seconds of one iteration in this process."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    before = 0 if device.type == "cuda" else peak_bytes(device)
    train = "last_k=2" if model == "tiny" else None
    config = config_for(options, train=train, model=model, algo=algo, epochs=1)
    dtype = torch.bfloat16 if config.model.frozen_weights == "bfloat16" else torch.float32
    network, tokenizer = policy_for(config, model, dtype, device, options.layers)
    scorer, judge = NoReward(), None
    if options.reward != "none":
        judge = random_model(MODELS[options.reward](options.layers), torch.bfloat16, device, classifier=True)
        score: Any = judge.score  # in float32, as runs load it; the rest computes in bfloat16
        score.float()
        scorer = reward_of(config, judge, tokenizer)
    iterations = iterations_of(config, network, tokenizer, scorer)
    seconds, metrics = [], []
    for _ in range(options.repeats):
        began = time.perf_counter()
        metrics.append(iterations.next())
        finish(device)
        seconds.append(time.perf_counter() - began)
    peak = peak_bytes(device) - before
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    models = iterations.setup.models
    numbers = min(seconds[1:] or seconds), metrics[0]["train/kl"], metrics[-1]["perf/sampler_logprob_gap"]
    return {
        "peak": peak,
        "reserved": reserved,
        "activations": activations(config, models),
        **needed(config, models, judge),
        **dict(zip(SPEED, numbers, strict=True)),
    }


def needed(config: RunConfig, models: PolicyModels, judge: nn.Module | None) -> dict[str, int]:
    """Bytes that an iteration cannot do without."""
    shape, sizes, rows = models.model.config, config.dataset, config.rollout.num_responses
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    key_width = heads * (shape.hidden_size // shape.num_attention_heads)
    cached = min(config.rollout.batch_size, rows) * sizes.max_total_length
    cached_bytes = 4 if config.hardware.precision == "fp32" else 2
    trunk_width = shape.hidden_size if config.model.train.mode == "last_k" else 0
    trained = {id(one): one for one in models.named_parameters().values()}
    frozen = [one for one in _all_parameters(models, judge) if id(one) not in trained]
    return {
        "frozen": sum(one.numel() * one.dtype.itemsize for one in frozen),
        "trained": TRAINED_BYTES * sum(one.numel() for one in trained.values()),
        "cache": 2 * shape.num_hidden_layers * key_width * cached * cached_bytes,
        "trunk": 4 * rows * sizes.max_total_length * trunk_width,
        "logits": 4 * min(CHUNK, rows * sizes.max_new_tokens * shape.vocab_size),
    }


def activations(config: RunConfig, models: PolicyModels) -> int:
    """Bytes that autograd keeps of one micro-batch, each memory counted once and parameters not at all."""
    rows = forward_rows(config)
    rollouts = made_up(config, models.model.config.vocab_size, models.device)
    features = features_at(models, rollouts, torch.arange(rows), rows, by_length=True).rows(torch.arange(rows))
    weights = {one.untyped_storage().data_ptr() for one in _all_parameters(models, None)}

    def kept_by(call: Callable[[], object]) -> int:
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            memory = tensor.untyped_storage()
            sizes[memory.data_ptr()] = memory.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = call()
        del output
        return sum(size for place, size in sizes.items() if place not in weights)

    at = features.response_positions()
    networks = [kept_by(lambda: models.policy_logprobs(models.policy_hidden(features), features.tokens, at))]
    if models.value_head is not None:
        networks.append(kept_by(lambda: models.values(features)))
    return sum(networks) if models.runs_concurrently and torch.get_num_threads() > 1 else max(networks)


def _all_parameters(models: PolicyModels, judge: nn.Module | None) -> list[nn.Parameter]:
    """Each once, of whatever networks there are."""
    modules = [one for one in (*vars(models).values(), judge) if isinstance(one, nn.Module)]
    return list({id(one): one for module in modules for one in module.parameters()}.values())


if __name__ == "__main__":
    main()
