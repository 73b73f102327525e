"""Known architectures as `Decoder`s, and every name inside transformers' models that this project reads.

Modules are called as the weights in the released files are, so that transformers can hardly rename them. Where it does,
`find` says which, and the model samples, is measured and trained by its own forward pass.

To add one: an entry of `FAMILIES`, and an example in tests/helpers.ARCHITECTURES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import __version__

from rlhf.models.decoder import Angles, Block, Decoder
from rlhf.models.hub import ModelError

BLOCKS = ("layers", "h", "blocks")
"""The list of blocks: GPT-NeoX, Llama, Qwen; GPT-2, GPT-J, GPT-Neo, Bloom, Falcon; MPT."""
FINAL_NORM = ("final_layer_norm", "norm", "ln_f", "final_layernorm", "norm_f")
"""The norm after the last block: GPT-NeoX; Llama, Qwen; GPT-2, GPT-J, GPT-Neo, Bloom, Falcon; Phi; MPT."""
LEARNED_POSITIONS = "wpe"
"""Learned position embeddings (GPT-2, GPT-Neo)."""
EMBEDDING_NORM = "word_embeddings_layernorm"
"""A norm of the embeddings (Bloom)."""
KEPT_IN_FLOAT32 = "_keep_in_fp32_modules_strict"
"""A model class's list of modules that from_pretrained leaves in float32; nothing public says the same."""
FIXED_ANGLES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not change with the length of the text."""


class Unknown(NotImplementedError):
    """An architecture, or a setting of one, that `Decoder` does not compute; the message says which."""


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _by_halves(config: Any, share: float = 1.0) -> Callable[[Tensor], Angles]:
    """
    Args:
        share: of each head's coordinates, how many turn.

    Raises:
        Unknown: the angles change with the text's length.
    """
    size, kind = _head_size(config), config.rope_parameters["rope_type"]
    turning, scale = int(size * share), 1.0
    if kind not in FIXED_ANGLES:
        raise Unknown(f"rotary positions of type {kind} change with the length of a text")
    if kind == "default":
        frequencies = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, turning, 2).float() / turning)
    else:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # late: where it moves, only these kinds go

        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)

    def angles(positions: Tensor) -> Angles:
        pairs = positions[:, None].float() * frequencies.to(positions.device)
        return Angles.of_pairs(pairs.cos() * scale, pairs.sin() * scale, size, halves=True)

    return angles


def _by_neighbours(config: Any) -> Callable[[Tensor], Angles]:
    """GPT-J's; a table made on the CPU, whatever the device, as the model makes it."""
    size, turning = _head_size(config), config.rotary_dim or config.hidden_size
    frequencies = 1.0 / 10000 ** (torch.arange(0, turning, 2) / turning)

    def angles(positions: Tensor) -> Angles:
        pairs = positions.cpu().float()[:, None] * frequencies
        cos, sin = pairs.cos().to(positions.device), pairs.sin().to(positions.device)
        return Angles.of_pairs(cos, sin, size, halves=False)

    return angles


@dataclass(frozen=True)
class Family:
    """Paths of an architecture's modules, `modules` from the base model, the others from a block; and what its config
    says, which the functions are given."""

    modules: tuple[str, ...]
    """Embedding, blocks, final norm, and learned position embeddings where there are any."""
    norms: tuple[str, ...]
    """Of the attention's input; of the MLP's, where that does not read what the attention reads."""
    projections: tuple[str, ...]
    """Queries, keys and values; or one matrix of all three."""
    output: str
    """Of the attention."""
    mlp: str = "mlp"
    head_norms: tuple[str, ...] = ()
    """Of each head's query and key."""
    rotation: Callable[[Any], Callable[[Tensor], Angles]] | None = _by_halves
    """None: no rotary positions."""
    windows: Callable[[Any, int], list[int | None]] = lambda _, blocks: [None] * blocks
    """By block; the number of blocks is given too."""
    parallel: Callable[[Any], bool] = lambda _: False
    scaled: bool = True
    """Scores are divided by the root of the head's size; GPT-Neo's weights make up for it."""


def _windows(kinds: str, window: str, of_kind: str) -> Callable[[Any, int], list[int | None]]:
    """By the config's list of the blocks' kinds, of which one has a window."""
    return lambda config, _: [getattr(config, window) if kind == of_kind else None for kind in getattr(config, kinds)]


_LLAMA = Family(
    modules=("embed_tokens", "layers", "norm"),
    norms=("input_layernorm", "post_attention_layernorm"),
    projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
)
_GPTJ = Family(
    modules=("wte", "h", "ln_f"),
    norms=("ln_1",),
    projections=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    output="attn.out_proj",
    rotation=_by_neighbours,
    parallel=lambda _: True,
)
_QWEN = replace(_LLAMA, windows=_windows("layer_types", "sliding_window", "sliding_attention"))
FAMILIES: dict[str, Family] = {
    "GPTNeoXModel": Family(
        modules=("embed_in", "layers", "final_layer_norm"),
        norms=("input_layernorm", "post_attention_layernorm"),
        projections=("attention.query_key_value",),
        output="attention.dense",
        rotation=lambda config: _by_halves(config, config.rope_parameters.get("partial_rotary_factor", 1.0)),
        parallel=lambda config: config.use_parallel_residual,
    ),
    "GPTJModel": _GPTJ,
    "GPTNeoModel": Family(
        modules=(*_GPTJ.modules, LEARNED_POSITIONS),
        norms=("ln_1", "ln_2"),
        projections=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        output="attn.attention.out_proj",
        rotation=None,
        windows=_windows("attention_layers", "window_size", "local"),
        scaled=False,
    ),
    "LlamaModel": _LLAMA,
    "MistralModel": replace(_LLAMA, windows=lambda config, blocks: [config.sliding_window] * blocks),
    "Qwen2Model": _QWEN,
    "Qwen3Model": replace(_QWEN, head_norms=("self_attn.q_norm", "self_attn.k_norm")),
}
"""By the class of the base model."""


def attribute(base: nn.Module, names: tuple[str, ...], needed_by: str = "", remedy: str = "") -> str:
    """The one of `names` that this architecture uses.

    Args:
        needed_by: the option that needs it, with its value; by default what has asked already.
        remedy: what to do without it.

    Raises:
        ModelError: none of them; the architecture is not known here.
    """
    for name in names:
        if hasattr(base, name):
            return name
    raise ModelError(
        f"{needed_by}: {type(base).__name__} keeps its blocks or last norm elsewhere than in {', '.join(names)}; "
        f"{remedy}"
    )


def find(owner: nn.Module, path: str) -> nn.Module:
    """The module at `path`, such as attn.q_proj.

    Raises:
        Unknown: there is none; the message names the path and the version of transformers.
    """
    try:
        return owner.get_submodule(path)
    except AttributeError as error:
        raise Unknown(f"{type(owner).__name__} of transformers {__version__} has no module {path}") from error


def decoder_of(base: nn.Module) -> Decoder:
    """A base model's layers, without a head; shares every module.

    Raises:
        Unknown: not one of the table's.
    """
    name = type(base).__name__
    if name not in FAMILIES:
        raise Unknown(f"{name} is not among {', '.join(FAMILIES)}")
    family, config = FAMILIES[name], getattr(base, "config")  # noqa: B009  # pyright: a Module has any
    size = _head_size(config)
    modules: list[Any] = [find(base, path) for path in family.modules]
    (tokens, blocks, final_norm), positions_embedding = modules[:3], modules[3:]

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        return tokens(ids) + positions_embedding[0](positions) if positions_embedding else tokens(ids)

    def block_of(block: nn.Module, window: int | None) -> Block:
        norms = [find(block, path) for path in family.norms]
        return Block(
            norm=norms[0],
            project=_projection(block, family, size),
            output=find(block, family.output),
            mlp=find(block, family.mlp),
            mlp_norm=norms[1] if len(norms) > 1 else None,
            parallel=family.parallel(config),
            window=window,
        )

    return Decoder(
        embed=embed,
        rotation=None if family.rotation is None else family.rotation(config),
        blocks=[block_of(*pair) for pair in zip(blocks, family.windows(config, len(blocks)), strict=True)],
        norm=final_norm,
        scale=size**-0.5 if family.scaled else 1.0,
        key_shape=(getattr(config, "num_key_value_heads", None) or config.num_attention_heads, size),
    )


def _projection(block: nn.Module, family: Family, size: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    matrices = [find(block, path) for path in family.projections]
    norms = [find(block, path) for path in family.head_norms]

    def project(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if len(matrices) == 1:  # whose rows are each head's query, key and value
            queries, keys, values = matrices[0](hidden).view(*hidden.shape[:2], -1, 3, size).unbind(3)
        else:
            queries, keys, values = (matrix(hidden).unflatten(-1, (-1, size)) for matrix in matrices)
        return (norms[0](queries), norms[1](keys), values) if norms else (queries, keys, values)

    return project
