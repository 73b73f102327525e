"""Sampling alone, ours against transformers' `generate`: `python -m tests.benchmarks.sampling --model tiny`.

Tokens a second of `rollout=fast` and `rollout=plain`, and of `generate` with its dynamic and its static cache
(do_sample, temperature 1, no top-k, no EOS). With `--group 4` four neighbours have the same prompt, which one more way
reads once. Equal: weights, prompts (random tokens, no padding), rows, new tokens,
threads; nothing ends early. In bfloat16 ours holds weights in bfloat16 and computes under autocast with float32 logits,
as runs do, and `generate` computes in bfloat16 throughout. On a GPU `generate` compiles its static cache by itself.

On a GPU the last column is the share of the measured copy bandwidth that (weights + mean cache) bytes for every token
come to: what a token cannot do without reading. Models with random weights at the shapes of conf/model.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.models.layers import compute_in_float32
from rlhf.models.policy import policy_pair
from rlhf.precision import autocast
from rlhf.random import generator, sampling_uniforms
from rlhf.sampling.fast import fast_sampler, unfit
from rlhf.sampling.plain import sample_plain
from tests.benchmarks.measuring import Table, as_runs_do, begin, copy_bandwidth, interleaved, parser_of, share
from tests.benchmarks.setups import MODELS, POLICIES, random_model

NO_TOKEN = -1
"""The EOS of ours: never drawn."""
WAYS = ("ours, fast", "ours, plain", "generate", "generate, static cache")
ONCE = "ours, fast, a prompt read once"


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=5, layers=0, batch=64, prompt=16, new=32, group=1)
    parser.add_argument("--model", choices=POLICIES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda for pythia_1b and llama_7b, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    options = parser.parse_args(arguments)
    large = options.model in ("pythia_1b", "llama_7b")
    device = torch.device(options.device or ("cuda" if large else "cpu"))
    begin(options, device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    model = random_model(MODELS[options.model](options.layers), dtype, device)
    show(options, model, interleaved(ways(model, options), options.repeats, device))


def ways(model: PreTrainedModel, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What samples a batch, by name; each gives (batch, new) tokens."""
    batch, prompt, new, device = options.batch, options.prompt, options.new, model.device
    draws = generator(0, "benchmark's prompts")
    ids = torch.randint(2, model.config.vocab_size, (batch // options.group, prompt), generator=draws).to(device)
    ids = ids.repeat_interleave(options.group, 0)
    uniforms = sampling_uniforms(0, "benchmark", 0, batch, new).to(device)
    # A copy that shares all matrices, whose norms and biases may be held otherwise.
    policy = copy.deepcopy(model, {id(one): one for one in model.parameters() if one.dim() > 1})
    short = model.dtype != torch.float32
    if short:
        compute_in_float32(policy)
    pair = policy_pair(policy, policy, temperature=1.0, autocast=partial(autocast, device, "bf16" if short else "fp32"))
    if reason := unfit(policy):
        raise SystemExit(f"rollout=fast does not fit: {reason}")
    mask = torch.ones_like(ids).bool()

    def fast(group_size: int = 1) -> Tensor:
        with as_runs_do(device), pair.sampling() as sampler:
            at = fast_sampler(sampler, rows=batch, prompt_width=prompt, response_width=new, eos_id=NO_TOKEN, pad_id=0)
            return at.sample(ids, mask, uniforms, group_size=group_size)[0]

    def plain() -> Tensor:
        with as_runs_do(device), pair.sampling() as sampler:
            return sample_plain(sampler, ids, mask, uniforms, eos_id=NO_TOKEN, pad_id=0)[0]

    any_model: Any = model
    any_model.generation_config.eos_token_id = None
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
    theirs = partial(any_model.generate, ids, attention_mask=mask.long(), max_new_tokens=new, **settings)
    calls = dict(zip(WAYS, (fast, plain, theirs, partial(theirs, cache_implementation="static")), strict=True))
    return calls if options.group == 1 else {**calls, ONCE: partial(fast, options.group)}


def bytes_per_step(model: PreTrainedModel, batch: int, prompt: int, new: int) -> float:
    """Weights but for the looked-up embeddings, and the mean cache, as `generate` holds them."""
    config = model.config
    weights = {id(one): one.numel() * one.dtype.itemsize for one in model.parameters()}
    if not config.tie_word_embeddings:
        del weights[id(model.get_input_embeddings().weight)]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (config.hidden_size // config.num_attention_heads)
    cache = 2 * config.num_hidden_layers * width * batch * (prompt + new / 2) * model.dtype.itemsize
    return sum(weights.values()) + cache


def show(options: argparse.Namespace, model: PreTrainedModel, seconds: dict[str, list[float]]) -> None:
    batch, prompt, new, device = options.batch, options.prompt, options.new, model.device
    parameters = sum(one.numel() for one in model.parameters())
    print(
        f"{options.model}, {model.config.num_hidden_layers} blocks, {parameters / 1e6:,.1f}M parameters, "
        f"{model.dtype}, {device.type}, {batch} x ({prompt} + {new}) tokens"
    )
    bandwidth = copy_bandwidth(device) if device.type == "cuda" else None
    table = Table("", "min s", "median s", "tokens/s", "ms a token", "speed", *(["of bandwidth"] if bandwidth else []))
    for name, taken in seconds.items():
        best, base = min(taken), min(seconds["generate"])
        reached = [share(bytes_per_step(model, batch, prompt, new) * new / best, bandwidth)] if bandwidth else []
        rates = batch * new / best, 1000 * best / new, base / best
        table.row(name, best, statistics.median(taken), *rates, *reached)
    if bandwidth:
        print(f"copies: {bandwidth / 1e9:,.0f} GB/s read and written")


if __name__ == "__main__":
    main()
