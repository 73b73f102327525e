"""Which of a known architecture's modules are which part of a `Decoder`; see the table there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.models.decoder import Block, Decoder
from rlhf.models.rotation import Rotation

FIXED_ANGLES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not change with the length of the text."""


class Unknown(NotImplementedError):
    """An architecture, or a setting of one, that `Decoder` does not compute; the message says which."""


def decoder_of(base: nn.Module) -> Decoder:
    """A base model's layers, without a head; shares every module.

    Raises:
        Unknown: not one of the table's.
    """
    name = type(base).__name__.removeprefix("FSDP")
    if name not in FAMILIES:
        raise Unknown(f"{name} is not among {', '.join(FAMILIES)}")
    return FAMILIES[name](base)


def _gpt_neox(base: Any) -> Decoder:
    config = base.config
    size = config.hidden_size // config.num_attention_heads

    def block(layer: Any) -> Block:
        def project(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            fused = layer.attention.query_key_value(hidden).view(*hidden.shape[:2], -1, 3, size)
            queries, keys, values = fused.unbind(3)
            return queries, keys, values

        return Block(
            norm=layer.input_layernorm,
            project=project,
            output=layer.attention.dense,
            mlp=layer.mlp,
            mlp_norm=layer.post_attention_layernorm,
            parallel=layer.use_parallel_residual,
            window=None,
        )

    return Decoder(
        embed=lambda tokens, _: base.embed_in(tokens),
        rotation=_by_halves(base, size),
        blocks=[block(layer) for layer in base.layers],
        norm=base.final_layer_norm,
        scale=size**-0.5,
        key_shape=(config.num_attention_heads, size),
    )


def _gptj(base: Any) -> Decoder:
    config = base.config
    size = config.hidden_size // config.num_attention_heads

    def rotation(positions: Tensor) -> Rotation:
        sin, cos = base.h[0].attn.embed_positions.to(positions.device)[positions].chunk(2, dim=-1)
        return Rotation.by_neighbours(cos, sin, size)

    return Decoder(
        embed=lambda tokens, _: base.wte(tokens),
        rotation=rotation if len(base.h) else None,
        blocks=[
            Block(
                norm=layer.ln_1,
                project=_three(layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj, size),
                output=layer.attn.out_proj,
                mlp=layer.mlp,
                mlp_norm=None,
                parallel=True,
                window=None,
            )
            for layer in base.h
        ],
        norm=base.ln_f,
        scale=size**-0.5,
        key_shape=(config.num_attention_heads, size),
    )


def _gpt_neo(base: Any) -> Decoder:
    config = base.config
    size = config.hidden_size // config.num_heads

    def block(layer: Any) -> Block:
        attention = layer.attn.attention
        return Block(
            norm=layer.ln_1,
            project=_three(attention.q_proj, attention.k_proj, attention.v_proj, size),
            output=attention.out_proj,
            mlp=layer.mlp,
            mlp_norm=layer.ln_2,
            parallel=False,
            window=config.window_size if attention.attention_type == "local" else None,
        )

    return Decoder(
        embed=lambda tokens, positions: base.wte(tokens) + base.wpe(positions),
        rotation=None,
        blocks=[block(layer) for layer in base.h],
        norm=base.ln_f,
        scale=1.0,  # GPT-Neo's weights make up for it
        key_shape=(config.num_heads, size),
    )


def _llama(base: Any) -> Decoder:
    """Llama, Mistral, Qwen2 and Qwen3: they differ in biases, norms of each head and windows."""
    config = base.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def block(layer: Any) -> Block:
        attention = layer.self_attn
        norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        window = getattr(attention, "sliding_window", None)
        if config.model_type == "mistral":
            window = config.sliding_window
        return Block(
            norm=layer.input_layernorm,
            project=_three(attention.q_proj, attention.k_proj, attention.v_proj, size, norms),
            output=attention.o_proj,
            mlp=layer.mlp,
            mlp_norm=layer.post_attention_layernorm,
            parallel=False,
            window=window,
        )

    return Decoder(
        embed=lambda tokens, _: base.embed_tokens(tokens),
        rotation=_by_halves(base, size),
        blocks=[block(layer) for layer in base.layers],
        norm=base.norm,
        scale=size**-0.5,
        key_shape=(config.num_key_value_heads, size),
    )


FAMILIES: dict[str, Callable[[Any], Decoder]] = {
    "GPTNeoXModel": _gpt_neox,
    "GPTJModel": _gptj,
    "GPTNeoModel": _gpt_neo,
    "LlamaModel": _llama,
    "MistralModel": _llama,
    "Qwen2Model": _llama,
    "Qwen3Model": _llama,
}


def _three(
    queries: nn.Module,
    keys: nn.Module,
    values: nn.Module,
    size: int,
    norms: tuple[nn.Module | None, nn.Module | None] = (None, None),
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Three matrices; `norms` of each head's query and key."""

    def project(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (module(hidden).unflatten(-1, (-1, size)) for module in (queries, keys, values))
        q_norm, k_norm = norms
        return q if q_norm is None else q_norm(q), k if k_norm is None else k_norm(k), v

    return project


def _by_halves(base: Any, size: int) -> Callable[[Tensor], Rotation]:
    """By the model's own rotary module.

    Raises:
        Unknown: its angles change with the text's length.
    """
    kind = base.rotary_emb.rope_type
    if kind not in FIXED_ANGLES:
        raise Unknown(f"rotary positions of type {kind} change with the length of a text")

    def rotation(positions: Tensor) -> Rotation:
        like = torch.zeros(1, device=positions.device)
        cos, sin = (table[0] for table in base.rotary_emb(like, positions[None]))
        return Rotation.by_halves(cos, sin, size)

    return rotation
