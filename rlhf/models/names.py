"""Every name inside transformers' models that this project reads; all else about an architecture is in its config.

Modules are called as the weights in the released files are, so that transformers can hardly rename them. Where it does,
`find` says which, and the model samples, is measured and trained by its own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import __version__

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


class Unknown(NotImplementedError):
    """An architecture, or a setting of one, that `Decoder` does not compute; the message says which."""


@dataclass(frozen=True)
class Names:
    """Paths of an architecture's modules: the first three from the base model, the others from a block."""

    embedding: str
    blocks: str
    final_norm: str
    norm: str
    """Of the attention's input."""
    projections: tuple[str, ...]
    """Queries, keys and values; or one matrix of all three."""
    output: str
    """Of the attention."""
    mlp_norm: str | None
    """None: the MLP reads what the attention reads."""
    mlp: str = "mlp"
    head_norms: tuple[str, ...] = ()
    """Of each head's query and key."""
    positions: str | None = None
    """Learned position embeddings, from the base model."""


def _of_llama(head_norms: tuple[str, ...] = ()) -> Names:
    return Names(
        embedding="embed_tokens",
        blocks="layers",
        final_norm="norm",
        norm="input_layernorm",
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        head_norms=head_norms,
    )


NAMES: dict[str, Names] = {
    "GPTNeoXModel": Names(
        embedding="embed_in",
        blocks="layers",
        final_norm="final_layer_norm",
        norm="input_layernorm",
        projections=("attention.query_key_value",),
        output="attention.dense",
        mlp_norm="post_attention_layernorm",
    ),
    "GPTJModel": Names(
        embedding="wte",
        blocks="h",
        final_norm="ln_f",
        norm="ln_1",
        projections=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        output="attn.out_proj",
        mlp_norm=None,
    ),
    "GPTNeoModel": Names(
        embedding="wte",
        blocks="h",
        final_norm="ln_f",
        norm="ln_1",
        projections=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        output="attn.attention.out_proj",
        mlp_norm="ln_2",
        positions=LEARNED_POSITIONS,
    ),
    "LlamaModel": _of_llama(),
    "MistralModel": _of_llama(),
    "Qwen2Model": _of_llama(),
    "Qwen3Model": _of_llama(("self_attn.q_norm", "self_attn.k_norm")),
}
"""By the class of the base model."""


def find(owner: nn.Module, path: str) -> nn.Module:
    """The module at `path`, such as attn.q_proj.

    Raises:
        Unknown: there is none; the message names the path and the version of transformers.
    """
    try:
        return owner.get_submodule(path)
    except AttributeError as error:
        raise Unknown(f"{type(owner).__name__} of transformers {__version__} has no module {path}") from error
