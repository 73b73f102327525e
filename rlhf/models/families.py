"""Known architectures as `Decoder`s: which of their modules are which part, and what their configs say of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.models.decoder import Block, Decoder
from rlhf.models.names import NAMES, Names, Unknown, find
from rlhf.models.rotation import Rotation

FIXED_ANGLES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not change with the length of the text."""


@dataclass(frozen=True)
class Family:
    """What an architecture computes; the functions are given its config."""

    rotation: Callable[[Any], Callable[[Tensor], Rotation]] | None
    """None: no rotary positions."""
    windows: Callable[[Any, int], list[int | None]] = lambda _, blocks: [None] * blocks
    """By block; the number of blocks is given too."""
    parallel: Callable[[Any], bool] = lambda _: False
    scaled: bool = True
    """Scores are divided by the root of the head's size; GPT-Neo's weights make up for it."""


def decoder_of(base: nn.Module) -> Decoder:
    """A base model's layers, without a head; shares every module.

    Raises:
        Unknown: not one of the table's.
    """
    name = type(base).__name__.removeprefix("FSDP")
    if name not in FAMILIES:
        raise Unknown(f"{name} is not among {', '.join(FAMILIES)}")
    names, family = NAMES[name], FAMILIES[name]
    config: Any = base.config
    size = _head_size(config)
    blocks: Any = find(base, names.blocks)
    windows = family.windows(config, len(blocks))
    return Decoder(
        embed=_embedding(base, names),
        rotation=None if family.rotation is None else family.rotation(config),
        blocks=[
            _block(block, names, size, family.parallel(config), window)
            for block, window in zip(blocks, windows, strict=True)
        ],
        norm=find(base, names.final_norm),
        scale=size**-0.5 if family.scaled else 1.0,
        key_shape=(getattr(config, "num_key_value_heads", None) or config.num_attention_heads, size),
    )


def _embedding(base: nn.Module, names: Names) -> Callable[[Tensor, Tensor], Tensor]:
    tokens = find(base, names.embedding)
    if names.positions is None:
        return lambda ids, _: tokens(ids)
    places = find(base, names.positions)
    return lambda ids, positions: tokens(ids) + places(positions)


def _block(block: nn.Module, names: Names, size: int, parallel: bool, window: int | None) -> Block:
    projections = [find(block, path) for path in names.projections]
    norms = [find(block, path) for path in names.head_norms]
    return Block(
        norm=find(block, names.norm),
        project=_fused(projections[0], size) if len(projections) == 1 else _three(projections, size, norms),
        output=find(block, names.output),
        mlp=find(block, names.mlp),
        mlp_norm=None if names.mlp_norm is None else find(block, names.mlp_norm),
        parallel=parallel,
        window=window,
    )


def _fused(matrix: nn.Module, size: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """One matrix whose rows are each head's query, key and value."""

    def project(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = matrix(hidden).view(*hidden.shape[:2], -1, 3, size).unbind(3)
        return queries, keys, values

    return project


def _three(
    projections: list[nn.Module], size: int, norms: list[nn.Module]
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Three matrices; `norms` of each head's query and key, or none."""

    def project(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (module(hidden).unflatten(-1, (-1, size)) for module in projections)
        return (norms[0](q), norms[1](k), v) if norms else (q, k, v)

    return project


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _by_halves(config: Any, share: float = 1.0) -> Callable[[Tensor], Rotation]:
    """
    Args:
        share: of each head's coordinates, how many turn.

    Raises:
        Unknown: the angles change with the text's length.
    """
    size = _head_size(config)
    frequencies, scale = _frequencies(config, int(size * share))

    def rotation(positions: Tensor) -> Rotation:
        angles = positions[:, None].float() * frequencies.to(positions.device)
        angles = torch.cat((angles, angles), -1)
        return Rotation.by_halves(angles.cos() * scale, angles.sin() * scale, size)

    return rotation


def _frequencies(config: Any, turning: int) -> tuple[Tensor, float]:
    """Radians per position of each pair, (turning / 2,) float32, and what cosines and sines are multiplied with."""
    kind = config.rope_parameters["rope_type"]
    if kind not in FIXED_ANGLES:
        raise Unknown(f"rotary positions of type {kind} change with the length of a text")
    if kind == "default":
        return _powers(config.rope_parameters["rope_theta"], torch.arange(0, turning, 2).float() / turning), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # late: where it moves, only these kinds go

    return ROPE_INIT_FUNCTIONS[kind](config)


def _powers(base: float, exponents: Tensor) -> Tensor:
    return 1.0 / base**exponents


def _by_neighbours(config: Any) -> Callable[[Tensor], Rotation]:
    """GPT-J's; a table made on the CPU, whatever the device, as the model makes it."""
    size, turning = _head_size(config), config.rotary_dim or config.hidden_size
    frequencies = _powers(10000, torch.arange(0, turning, 2) / turning)

    def rotation(positions: Tensor) -> Rotation:
        angles = positions.cpu().float()[:, None] * frequencies
        return Rotation.by_neighbours(angles.cos().to(positions.device), angles.sin().to(positions.device), size)

    return rotation


def _by_kind(config: Any, _: int) -> list[int | None]:
    return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]


FAMILIES: dict[str, Family] = {
    "GPTNeoXModel": Family(
        rotation=lambda config: _by_halves(config, config.rope_parameters.get("partial_rotary_factor", 1.0)),
        parallel=lambda config: config.use_parallel_residual,
    ),
    "GPTJModel": Family(rotation=_by_neighbours, parallel=lambda _: True),
    "GPTNeoModel": Family(
        rotation=None,
        windows=lambda config, _: [config.window_size if kind == "local" else None for kind in config.attention_layers],
        scaled=False,
    ),
    "LlamaModel": Family(rotation=_by_halves),
    "MistralModel": Family(rotation=_by_halves, windows=lambda config, blocks: [config.sliding_window] * blocks),
    "Qwen2Model": Family(rotation=_by_halves, windows=_by_kind),
    "Qwen3Model": Family(rotation=_by_halves, windows=_by_kind),
}
"""By the class of the base model, as `NAMES`."""
