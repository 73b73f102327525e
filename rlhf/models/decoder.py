"""Known architectures as the sampler runs them: their own layers, a static key-value cache, no other work per token.

Norms, projections and MLPs are the model's own modules, so that adapters, quantised and held weights need no word
here. What is left of an architecture is a few lines: which modules, in what order, how positions enter.

| base model | residual | positions | keys and values |
| --- | --- | --- | --- |
| GPTNeoXModel | parallel or not | rotary by halves, of a part of each head | one matrix, interleaved by head |
| GPTJModel | parallel, one norm | rotary by pairs, of a part of each head | |
| GPTNeoModel | sequential | learned | every other block sees a window |
| LlamaModel, MistralModel, Qwen2Model, Qwen3Model | sequential | rotary by halves | heads in groups; windows |

To add one: a function that makes its `Decoder`, a line in `FAMILIES`, its name in tests/helpers.ARCHITECTURES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """A transformer block in pieces."""

    norm: nn.Module
    """Of the attention's input."""
    project: Callable[[Tensor], tuple[Tensor, Tensor]]
    """(B, n, d) -> queries and keys together, (B, n, ..., h), which turn alike; values (B, n, G, h)."""
    split: Callable[[Tensor], tuple[Tensor, Tensor]]
    """The former -> queries (B, n, H, h) and keys (B, n, G, h); H a multiple of G."""
    output: nn.Module
    """(B, n, H h) -> (B, n, d)."""
    mlp: nn.Module
    mlp_norm: nn.Module | None
    """None: the MLP reads what the attention reads."""
    parallel: bool
    """The MLP reads the block's input, not what the attention has added to it."""
    window: int | None
    """A token sees itself and the window - 1 columns before it."""


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(number of the block, queries (B, H, n, h), keys and values (B, G, n, h)) -> (B, H, n, h)."""


@dataclass
class Cache:
    """Keys and values of every block, (rows, G, columns, h) each."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    def first(self, rows: int) -> Cache:
        """The first rows, sharing memory."""
        return Cache([one[:rows] for one in self.keys], [one[:rows] for one in self.values])

    def keep(self, rows: Tensor) -> None:
        """Move these rows to the front, in place."""
        for one in (*self.keys, *self.values):
            one[: len(rows)] = one[rows]


@dataclass(frozen=True)
class Decoder:
    """A causal language model without its head."""

    embed: Callable[[Tensor, Tensor], Tensor]
    """Tokens and positions, (B, n) each -> (B, n, d)."""
    angles: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    """(n,) positions -> cosine and signed sine, (n, h) each; None: no rotary positions."""
    swap: Callable[[Tensor], Tensor]
    """The other coordinate of each rotated pair: (..., h) -> (..., h)."""
    blocks: list[Block]
    norm: nn.Module
    scale: float
    """Of queries times keys."""
    key_shape: tuple[int, int]
    """G, h."""

    def new_cache(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Cache:
        shape = rows, self.key_shape[0], columns, self.key_shape[1]
        made = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * len(self.blocks))]
        return Cache(made[::2], made[1::2])

    def prefill(self, tokens: Tensor, mask: Tensor, positions: Tensor, rotation: Rotation, cache: Cache) -> Tensor:
        """Prompts (B, P), left-padded, into columns 0 .. P - 1; the hidden states (B, d) after their last token."""
        width = tokens.shape[1]
        column = torch.arange(width, device=tokens.device)
        back = column[:, None] - column
        # A padding token sees itself, for softmax to have something; nothing sees it.
        seen = (back >= 0) & (mask[:, None, :] | (back == 0))
        dtype = cache.dtype

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.keys[number][:, :, :width] = keys
            cache.values[number][:, :, :width] = values
            window = self.blocks[number].window
            return F.scaled_dot_product_attention(
                queries.to(dtype),
                keys.to(dtype),
                values.to(dtype),
                attn_mask=(seen if window is None else seen & (back < window))[:, None],
                scale=self.scale,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )

        return self._through(tokens, positions, rotation, attend)

    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        rotation: Rotation,
        cache: Cache,
        column: Tensor,
        seen: Tensor | None,
        columns: int,
    ) -> Tensor:
        """One token (B, 1) each into `column`, a tensor of one number; its hidden states (B, d).

        Args:
            seen: (B, columns) bool, the columns that hold tokens; None: all of them do.
            columns: how many of the cache's columns are looked at.
        """
        masks = self._masks(seen, column, columns)
        dtype, (groups, size) = cache.dtype, self.key_shape

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.keys[number].index_copy_(2, column, keys.to(dtype))
            cache.values[number].index_copy_(2, column, values.to(dtype))
            # Heads of a group look at the same keys: they are the rows of one matrix.
            attended = _attend_to(
                queries.reshape(len(queries), groups, -1, size).to(dtype),
                cache.keys[number][:, :, :columns],
                cache.values[number][:, :, :columns],
                masks[self.blocks[number].window],
                self.scale,
            )
            return attended.reshape(queries.shape)

        return self._through(tokens, positions, rotation, attend)

    def _masks(self, seen: Tensor | None, column: Tensor, columns: int) -> dict[int | None, Tensor | None]:
        """What to attend to by window, broadcast over heads."""
        masks: dict[int | None, Tensor | None] = {None: None if seen is None else seen[:, None, None]}
        for window in {block.window for block in self.blocks} - {None}:
            assert window is not None
            near = (torch.arange(columns, device=column.device) > column - window)[None]
            masks[window] = (near if seen is None else near & seen)[:, None, None] if columns > window else masks[None]
        return masks

    def _through(self, tokens: Tensor, positions: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """All blocks over (B, n) tokens; the final hidden states (B, d) of the last."""
        cos, sin = rotation.of(positions)
        hidden = self.embed(tokens, positions)
        for number, block in enumerate(self.blocks):
            read = block.norm(hidden)
            heads, values = block.project(read)
            if self.angles is not None:
                shape = *cos.shape[:2], *(1,) * (heads.dim() - 3), -1
                heads = heads.to(cos.dtype)
                heads = torch.addcmul(heads * cos.view(shape), self.swap(heads), sin.view(shape))
            queries, keys = block.split(heads)
            attended = attend(number, queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
            added = block.output(attended.transpose(1, 2).flatten(2))
            if block.parallel:
                mlp = block.mlp(read if block.mlp_norm is None else block.mlp_norm(hidden))
                hidden = mlp + added + hidden
            else:
                assert block.mlp_norm is not None
                hidden = added + hidden
                hidden = block.mlp(block.mlp_norm(hidden)) + hidden
        return self.norm(hidden[:, -1:]).squeeze(1)


def _attend_to(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Few queries (B, G, m, h) to many keys (B, G, n, h)."""
    if queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    # On a CPU the fused kernel works in blocks of queries, of which there is one.
    scores = torch.matmul(queries, keys.transpose(2, 3)).mul_(scale)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return torch.matmul(scores.softmax(-1), values)


class Rotation:
    """Cosines and signed sines of all positions of a rollout, looked up by row."""

    def __init__(self, decoder: Decoder, positions: int, device: torch.device) -> None:
        if decoder.angles is None:
            self.cos = self.sin = torch.zeros(positions, 0, device=device)
        else:
            self.cos, self.sin = decoder.angles(torch.arange(positions, device=device))

    def of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n) -> two of (B, n, h)."""
        return F.embedding(positions, self.cos), F.embedding(positions, self.sin)
