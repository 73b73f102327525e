"""How large a model is by its config.json, and settings that suit a model of that size; reads no weights.

What model=hub takes where neither the command line nor a file of the user says otherwise.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rates:
    """Learning rates."""

    rl: float
    sft: float
    reward_model: float


@dataclass(frozen=True)
class Size:
    """Settings of models with fewer parameters than `below`."""

    below: float
    mode: str
    """model.train.mode, and that of SFT and reward model."""
    whole: Rates
    """Where weights of the model itself are trained."""
    lora: Rates
    """Adapters take about ten times the rate."""
    micro_batch: int
    sampled: int
    """rollout.batch_size."""
    bfloat16: bool
    """Whether what is not trained is held in bfloat16."""
    recompute: bool
    """hardware.gradient_checkpointing."""


SIZES = (
    Size(3e8, "all", Rates(8e-6, 2e-5, 1e-5), Rates(5e-5, 2e-4, 1e-4), 8, 32, False, False),
    Size(1e9, "lora", Rates(5e-6, 2e-5, 1e-5), Rates(2e-5, 2e-4, 1e-4), 4, 16, False, False),
    Size(3e9, "lora", Rates(3e-6, 2e-5, 1e-5), Rates(2e-5, 1e-4, 5e-5), 4, 16, True, False),
    Size(1.5e10, "lora", Rates(1e-6, 1e-5, 5e-6), Rates(1e-5, 1e-4, 5e-5), 2, 16, True, True),
    Size(math.inf, "lora", Rates(1e-6, 1e-5, 5e-6), Rates(1e-5, 5e-5, 2e-5), 1, 8, True, True),
)


def settings_by_size(count: int, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted path: value} for a model of `count` parameters.

    Args:
        chosen: the values of a run by dotted path, without those that follow the size unless they were set: what the
            mode decides follows the mode in force, and micro-batches divide batches.
    """
    size = next(size for size in SIZES if count < size.below)
    modes = {path: chosen.get(path, size.mode) for path in ("model.train.mode", "sft.train.mode", _REWARD_MODE)}
    rates = {path: size.lora if mode == "lora" else size.whole for path, mode in modes.items()}
    group = int(chosen.get("algo.group_size", 1))
    return {
        **modes,
        "optimization.learning_rate": rates["model.train.mode"].rl,
        "sft.learning_rate": rates["sft.train.mode"].sft,
        "reward_model.learning_rate": rates[_REWARD_MODE].reward_model,
        "value.learning_rate": rates["model.train.mode"].rl,
        "optimization.micro_batch_size": math.gcd(
            max(size.micro_batch, group), int(chosen["optimization.minibatch_size"])
        ),
        "sft.micro_batch_size": math.gcd(size.micro_batch, int(chosen["sft.batch_size"])),
        "reward_model.micro_batch_size": math.gcd(size.micro_batch, int(chosen["reward_model.batch_size"])),
        "rollout.batch_size": size.sampled,
        "model.frozen_weights": "bfloat16" if size.bfloat16 else "float32",
        "hardware.gradient_checkpointing": size.recompute,
    }


_REWARD_MODE = "reward_model.train.mode"


def in_words(count: int) -> str:
    """As "135 million parameters"."""
    for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            return f"{count / unit:.3g} {name} parameters"
    return f"{count} parameters"


@functools.cache
def parameters_at(path: str) -> int | None:
    """About how many parameters the model in a folder or hub repository has, of an adapter its base; None where its
    config.json cannot be had or does not say."""
    adapter = read_json(path, "adapter_config.json") if Path(path).is_dir() else None
    if adapter is not None:
        base = adapter.get("base_model_name_or_path")
        return parameters_at(base) if isinstance(base, str) and base != path else None
    config = read_json(path, "config.json")
    try:
        return None if config is None else parameters(config)
    except (TypeError, ValueError):
        return None


def read_json(path: str, name: str) -> dict[str, Any] | None:
    """A JSON file in a folder or hub repository; None where it cannot be had."""
    file = Path(path) / name
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(path, name)
            file = Path(cached if isinstance(cached, str) else hf_hub_download(path, name))
        except Exception:  # whatever the hub client raises: no such name, no network, no leave; loading says which
            return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def parameters(config: Mapping[str, Any]) -> int | None:
    """Of a decoder by its config.json: embeddings, and attention and feed-forward matrices of each block.

    Biases and norms are left out, which is a percent at most. None where width, blocks or vocabulary are not said.
    """
    config = {**config, **(config.get("text_config") or {})}

    def first(*names: str) -> int:
        return next((int(config[name]) for name in names if config.get(name)), 0)

    width = first("hidden_size", "n_embd", "d_model", "dim")
    blocks = first("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    words = first("vocab_size")
    if not (width and blocks and words):
        return None
    heads = first("num_attention_heads", "n_head", "num_heads", "n_heads") or 1
    shared = first("num_key_value_heads", "num_kv_heads") or (1 if config.get("multi_query") else heads)
    head = first("head_dim") or width // heads
    attention = 2 * width * head * (heads + shared)
    experts = first("num_local_experts", "num_experts", "n_routed_experts")
    inner = first("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * width
    if experts:
        inner = experts * (first("moe_intermediate_size") or inner)
    activation = str(config.get("hidden_act") or config.get("hidden_activation") or "")
    gated = activation in ("silu", "swish") or str(config.get("model_type")).startswith("gemma")
    tables = 1 if config.get("tie_word_embeddings", True) else 2
    return tables * words * width + blocks * (attention + (3 if gated else 2) * width * inner)
