"""Known architectures as sampling and training run them: their own layers, and no other work per token.

Norms, projections and MLPs are the model's own modules, so that adapters, quantised and held weights need no word
here. What is left of an architecture is a few lines: which modules, in what order, how positions enter. The last block
is computed where its output is wanted alone.

| base model | residual | positions | keys and values |
| --- | --- | --- | --- |
| GPTNeoXModel | parallel or not | rotary by halves, of a part of each head | one matrix, interleaved by head |
| GPTJModel | parallel, one norm | rotary by pairs, of a part of each head | |
| GPTNeoModel | sequential | learned | every other block sees a window |
| LlamaModel, MistralModel, Qwen2Model, Qwen3Model | sequential | rotary by halves | heads in groups; windows |

To add one: what its modules are called in `names.NAMES`, what its config says in `families.FAMILIES`, and its name in
tests/helpers.ARCHITECTURES.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.models.recompute import computed_again
from rlhf.models.rotation import Angles, Rotation, turn


@dataclass(frozen=True)
class Block:
    """A transformer block in pieces."""

    norm: nn.Module
    """Of the attention's input."""
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    """(B, n, d) -> queries (B, n, H, h), keys and values (B, n, G, h); H a multiple of G."""
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
"""(number of the block, queries (B, H, m, h), keys and values (B, G, n, h)) -> (B, H, m, h)."""


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
    rotation: Callable[[Tensor], Rotation] | None
    """(n,) positions -> how far heads turn there; None: no rotary positions."""
    blocks: list[Block]
    norm: nn.Module
    scale: float
    """Of queries times keys."""
    key_shape: tuple[int, int]
    """G, h."""

    def rotation_at(self, positions: int, device: torch.device) -> Rotation | None:
        """How far heads turn at the first so many positions; None: no rotary positions."""
        return None if self.rotation is None else self.rotation(torch.arange(positions, device=device))

    def new_cache(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Cache:
        shape = rows, self.key_shape[0], columns, self.key_shape[1]
        made = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * len(self.blocks))]
        return Cache(made[::2], made[1::2])

    def prefill(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, rotation: Rotation | None, cache: Cache
    ) -> Tensor:
        """Prompts (B, P), left-padded, into columns 0 .. P - 1; the hidden states (B, d) after their last token."""
        width = tokens.shape[1]
        last = slice(width - 1, width)
        padded = not bool(mask.all())
        seen = self.masks(mask if padded else None, mask.device, width, last)
        dtype = cache.dtype

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.keys[number][:, :, :width] = keys
            cache.values[number][:, :, :width] = values
            return attention(queries.to(dtype), keys.to(dtype), values.to(dtype), seen(number), self.scale)

        angles = None
        if rotation is not None:
            angles = rotation.of(positions) if padded else rotation.first(width)
        return self.through(self.embed(tokens, positions), angles, attend, last).squeeze(1)

    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        rotation: Rotation | None,
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
        masks = self._step_masks(seen, column, columns)
        dtype, (groups, size) = cache.dtype, self.key_shape
        # A number where reading it waits for nothing: an index costs more than the copy. Graphs know an address alone.
        place = int(column) if column.device.type == "cpu" else None

        def put(cached: Tensor, new: Tensor) -> None:
            if place is None:
                cached.index_copy_(2, column, new.to(dtype))
            else:
                cached[:, :, place : place + 1] = new

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            put(cache.keys[number], keys)
            put(cache.values[number], values)
            # Heads of a group look at the same keys: they are the rows of one matrix.
            attended = _attend_to(
                queries.reshape(len(queries), groups, -1, size).to(dtype),
                cache.keys[number][:, :, :columns],
                cache.values[number][:, :, :columns],
                masks[self.blocks[number].window],
                self.scale,
            )
            return attended.reshape(queries.shape)

        angles = None if rotation is None else rotation.of(positions)
        return self.through(self.embed(tokens, positions), angles, attend, slice(0, 1)).squeeze(1)

    def masks(
        self, valid: Tensor | None, device: torch.device, width: int, wanted: slice
    ) -> Callable[[int], Tensor | None]:
        """What the tokens of whole texts see of each other, by block: (B or 1, 1, n, width) bool; None: what comes
        before them.

        Args:
            valid: (B, width) bool, tokens that are not padding; None: only padding on the right, which nothing sees.
            wanted: the columns of the last block's queries.
        """
        column = torch.arange(width, device=device)
        made: dict[tuple[int | None, bool], Tensor] = {}

        def make(window: int | None, last: bool) -> Tensor:
            back = column[wanted if last else slice(None), None] - column
            seen = (back >= 0) if window is None else (back >= 0) & (back < window)
            if valid is None:
                return seen[None, None]
            # A padding token sees itself, for softmax to have something; nothing sees it.
            return (seen & (valid[:, None] | (back == 0)))[:, None]

        def of(number: int) -> Tensor | None:
            window = self.blocks[number].window
            last = number == len(self.blocks) - 1 and wanted != slice(None)
            window = None if window is None or window >= width else window
            if valid is None and window is None and not last:
                return None
            if (window, last) not in made:
                made[window, last] = make(window, last)
            return made[window, last]

        return of

    def _step_masks(self, seen: Tensor | None, column: Tensor, columns: int) -> dict[int | None, Tensor | None]:
        """What to attend to by window, broadcast over heads."""
        masks: dict[int | None, Tensor | None] = {None: None if seen is None else seen[:, None, None]}
        for window in {block.window for block in self.blocks} - {None}:
            assert window is not None
            near = (torch.arange(columns, device=column.device) > column - window)[None]
            masks[window] = (near if seen is None else near & seen)[:, None, None] if columns > window else masks[None]
        return masks

    def through(
        self,
        hidden: Tensor,
        angles: Angles | None,
        attend: Attend,
        wanted: slice,
        again: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> Tensor:
        """All blocks over (B, n, d); the final hidden states (B, m, d) of the m wanted columns.

        Args:
            again: activations are not kept but computed again in the backward pass, within this context.
        """
        for number, block in enumerate(self.blocks):

            def run(hidden: Tensor, number: int = number, block: Block = block) -> Tensor:
                columns = wanted if number == len(self.blocks) - 1 else slice(None)
                return _block(block, hidden, angles, lambda *heads: attend(number, *heads), columns)

            hidden = run(hidden) if again is None else computed_again(run, again, hidden)
        return self.norm(hidden)


def _block(
    block: Block,
    hidden: Tensor,
    angles: Angles | None,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    columns: slice,
) -> Tensor:
    """(B, n, d) -> (B, m, d) of these columns, which see what `attend` shows them."""
    read = block.norm(hidden)
    queries, keys, values = (one.transpose(1, 2) for one in block.project(read))
    if angles is not None:
        queries, keys = turn(queries, angles), turn(keys, angles)
    if columns != slice(None):
        queries, hidden, read = queries[:, :, columns], hidden[:, columns], read[:, columns]
    added = block.output(attend(queries, keys, values).transpose(1, 2).flatten(2))
    if block.parallel:
        mlp = block.mlp(read if block.mlp_norm is None else block.mlp_norm(hidden))
        return mlp + added + hidden
    assert block.mlp_norm is not None
    hidden = added + hidden
    return block.mlp(block.mlp_norm(hidden)) + hidden


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B, H, m, h) of queries to keys and values (B, G, n, h); mask None: each sees what comes before it."""
    grouped = queries.shape[1] != keys.shape[1]
    if grouped and mask is not None:
        # With a mask, grouped heads have no kernel that keeps from making all scores (torch 2.13 on CUDA).
        share = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
        grouped = False
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _attend_to(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Few queries (B, G, m, h) to many keys (B, G, n, h)."""
    if queries.device.type != "cpu" or queries.dtype != torch.float32:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    # On a CPU the fused kernel works in blocks of queries, of which there is one; here fewer bits would round scores.
    scores = torch.matmul(queries, keys.transpose(2, 3)).mul_(scale)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return torch.matmul(scores.softmax(-1), values)
