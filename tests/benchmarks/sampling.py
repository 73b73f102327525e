"""Sampling alone, ours against transformers' `generate`: `python -m tests.benchmarks.sampling --model tiny`.

Tokens a second of `rollout=fast` and `rollout=plain`, and of `generate` with its dynamic and its static cache
(do_sample, temperature 1, no top-k, no EOS). Equal: weights, prompts (random tokens, no padding), rows, new tokens,
threads; nothing ends early. In bfloat16 ours holds weights in bfloat16 and computes under autocast with float32 logits,
as runs do, and `generate` computes in bfloat16 throughout. On a GPU `generate` compiles its static cache by itself.

On a GPU the last column is the share of the measured copy bandwidth that (weights + mean cache) bytes for every token
come to: what a token cannot do without reading. Models with random weights at the shapes of conf/model.
"""

from __future__ import annotations

import argparse
import copy
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
from tests.benchmarks.measuring import Table, add_options, as_runs_do, begin, copy_bandwidth, interleaved, share
from tests.benchmarks.setups import MODELS, random_model

NO_TOKEN = -1
"""The EOS of ours: never drawn."""
WAYS = ("fast", "plain", "dynamic", "static")


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    large = options.model in ("pythia_1b", "llama_7b")
    device = torch.device(options.device or ("cuda" if large else "cpu"))
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"{options.model} is measured on a GPU, and there is none: --device cpu --layers 2 cuts it")
    begin(options, device)
    model = random_model(MODELS[options.model](options.layers), dtype, device)
    calls = ways(model, dtype, device, options)
    found = interleaved({name: calls[name] for name in options.ways}, options.repeats, device)
    show(options, model, device, {name: times.seconds for name, times in found.items()})


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[name for name in MODELS if name != "gptj_6b"], default="tiny")
    parser.add_argument("--layers", type=int, default=0, help="fewer blocks than the model has")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=16, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda for pythia_1b and llama_7b, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    add_options(parser, repeats=5)
    return parser


def ways(
    model: PreTrainedModel, dtype: torch.dtype, device: torch.device, options: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """What samples a batch, by name; each gives (batch, new) tokens."""
    batch, prompt, new = options.batch, options.prompt, options.new
    draws = generator(0, "benchmark's prompts")
    ids = torch.randint(2, model.config.vocab_size, (batch, prompt), generator=draws).to(device)
    uniforms = sampling_uniforms(0, "benchmark", 0, batch, new).to(device)
    short = dtype != torch.float32
    held = sharing_matrices(model)
    if short:
        compute_in_float32(held)
    context = partial(autocast, device, "bf16" if short else "fp32")
    pair = policy_pair(held, held, temperature=1.0, autocast=context)

    def ours(sampling: str) -> Tensor:
        with as_runs_do(device), pair.sampling() as sampler:
            if sampling == "plain":
                return sample_plain(sampler, ids, torch.ones_like(ids).bool(), uniforms, eos_id=NO_TOKEN, pad_id=0)[0]
            fast = fast_sampler(sampler, rows=batch, prompt_width=prompt, response_width=new, eos_id=NO_TOKEN, pad_id=0)
            return fast.sample(ids, torch.ones_like(ids).bool(), uniforms)[0]

    with torch.no_grad():
        if reason := unfit(held):
            raise SystemExit(f"rollout=fast does not fit: {reason}")
    any_model: Any = model
    any_model.generation_config.eos_token_id = None
    settings = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": new,
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "pad_token_id": 0,
    }

    def theirs(**cache: str) -> Tensor:
        return any_model.generate(ids, **settings, **cache)[:, prompt:]

    return {
        "fast": lambda: ours("fast"),
        "plain": lambda: ours("plain"),
        "dynamic": theirs,
        "static": lambda: theirs(cache_implementation="static"),
    }


def sharing_matrices(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares all large weights, so that `hold` can change the rest."""
    shared = {id(one): one for one in model.parameters() if one.dim() > 1}
    return copy.deepcopy(model, shared)


def bytes_per_step(model: PreTrainedModel, batch: int, prompt: int, new: int) -> float:
    """Weights but for the looked-up embeddings, and the mean cache, as `generate` holds them."""
    weights = {id(one): one.numel() * one.dtype.itemsize for one in model.parameters()}
    if not model.config.tie_word_embeddings:
        del weights[id(model.get_input_embeddings().weight)]
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (config.hidden_size // config.num_attention_heads)
    cache = 2 * config.num_hidden_layers * width * batch * (prompt + new / 2) * model.dtype.itemsize
    return sum(weights.values()) + cache


def show(
    options: argparse.Namespace, model: PreTrainedModel, device: torch.device, seconds: dict[str, list[float]]
) -> None:
    batch, prompt, new = options.batch, options.prompt, options.new
    parameters = sum(one.numel() for one in model.parameters())
    print(
        f"{options.model}, {model.config.num_hidden_layers} blocks, {parameters / 1e6:,.1f}M parameters, "
        f"{model.dtype}, {device.type}, {batch} x ({prompt} + {new}) tokens"
    )
    bandwidth = copy_bandwidth(device) if device.type == "cuda" else None
    names = {
        "fast": "ours, fast",
        "plain": "ours, plain",
        "dynamic": "generate",
        "static": "generate, static cache",
    }
    base = min(seconds.get("dynamic") or next(iter(seconds.values())))
    last = ["of bandwidth"] if bandwidth else []
    table = Table("", "min s", "median s", "tokens/s", "ms a token", "speed", *last)
    for name, taken in seconds.items():
        best, median = min(taken), sorted(taken)[len(taken) // 2]
        reached = [share(bytes_per_step(model, batch, prompt, new) * new / best, bandwidth)] if bandwidth else []
        table.row(names[name], best, median, batch * new / best, 1000 * best / new, base / best, *reached)
    if bandwidth:
        print(f"copies: {bandwidth / 1e9:,.0f} GB/s read and written")


if __name__ == "__main__":
    main()
