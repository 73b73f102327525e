"""Known architectures as sampling and training run them: their own layers, and no other work per token.

Norms, projections and MLPs are the model's own modules, so that adapters and weights of fewer bits need no word here.
What is left of an architecture is which modules, in what order, and how positions enter (`families`). The last block is
computed where its output is wanted alone.

Rotary positions: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding". Each pair of a head's
coordinates turns by an angle that grows with the position. The two of a pair are `shift` places from each other: half
of the part that turns where it turns by halves, 1 where it turns by neighbours. So a turned head is the sum of three
products, of the head and of the head shifted both ways, with a factor of 0 where there is no such partner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Context = Callable[[], AbstractContextManager[object]]
"""Makes the context of a computation, which is entered again where activations are computed again."""


@dataclass(frozen=True)
class Angles:
    """(positions, h) float32 each for heads of h coordinates; or, picked for n positions, (B or 1, 1, n h)."""

    cos: Tensor
    up: Tensor
    """Minus the sine in the first of a pair, by which it takes from its partner `shift` further up; 0 elsewhere."""
    down: Tensor
    """The sine in the second of a pair, by which it takes from its partner further down; 0 elsewhere."""
    shift: int

    @staticmethod
    def of_pairs(cos: Tensor, sin: Tensor, size: int, *, halves: bool) -> Angles:
        """Cosine and sine (positions, r / 2), one for each pair of the first r of `size` coordinates.

        Args:
            halves: a pair's second is half of the r coordinates away; else it is the neighbour.
        """

        def placed(first: Tensor, second: Tensor, rest: float) -> Tensor:
            table = torch.cat((first, second), -1) if halves else torch.stack((first, second), -1).flatten(1)
            return F.pad(table.float(), (0, size - table.shape[-1]), value=rest)

        none = torch.zeros_like(sin)
        shift = sin.shape[-1] if halves else 1
        return Angles(placed(cos, cos, 1.0), placed(-sin, none, 0.0), placed(none, sin, 0.0), shift)

    def at(self, positions: Tensor) -> Angles:
        """Picked at positions (B, n) of each row's own."""
        return self._picked(lambda table: F.embedding(positions, table).flatten(1)[:, None])

    def first(self, count: int) -> Angles:
        """Picked at positions 0 .. count - 1, of all rows alike."""
        return self._picked(lambda table: table[:count].reshape(1, 1, -1))

    def _picked(self, pick: Callable[[Tensor], Tensor]) -> Angles:
        return Angles(pick(self.cos), pick(self.up), pick(self.down), self.shift)


def turn(heads: Tensor, angles: Angles) -> Tensor:
    """(B, H, n, h) of queries or keys, turned by picked angles; float32, as these are."""
    if torch.is_grad_enabled() and heads.requires_grad:
        return _Turn.apply(heads, angles)  # type: ignore[no-any-return]
    return _turned(heads, angles, 1.0)


class _Turn(torch.autograd.Function):
    """The gradient is turned back; autograd by itself would keep and add up the shifted pieces."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, angles: Angles) -> Tensor:
        ctx.angles, ctx.dtype = angles, heads.dtype
        return _turned(heads, angles, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _turned(gradients[0], ctx.angles, -1.0).to(ctx.dtype), None


def _turned(heads: Tensor, angles: Angles, direction: float) -> Tensor:
    # Neighbouring positions lie side by side; the factors of 0 keep finite ones from each other.
    flat, shift = heads.to(angles.cos.dtype).flatten(2), angles.shift
    turned = flat * angles.cos
    turned[..., :-shift].addcmul_(flat[..., shift:], angles.up[..., :-shift], value=direction)
    turned[..., shift:].addcmul_(flat[..., :-shift], angles.down[..., shift:], value=direction)
    return turned.view(heads.shape)


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

    def run(
        self,
        hidden: Tensor,
        angles: Angles | None,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        columns: slice,
    ) -> Tensor:
        """(B, n, d) -> (B, m, d) of these columns, which see what `attend` shows them."""
        read = self.norm(hidden)
        queries, keys, values = (heads.transpose(1, 2) for heads in self.project(read))
        if angles is not None:
            queries, keys = turn(queries, angles), turn(keys, angles)
        if columns != slice(None):
            queries, hidden, read = queries[:, :, columns], hidden[:, columns], read[:, columns]
        added = self.output(attend(queries, keys, values).transpose(1, 2).flatten(2))
        if self.parallel:
            mlp = self.mlp(read if self.mlp_norm is None else self.mlp_norm(hidden))
            return mlp + added + hidden
        assert self.mlp_norm is not None
        hidden = added + hidden
        return self.mlp(self.mlp_norm(hidden)) + hidden


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(number of the block, queries (B, H, m, h), keys and values (B, G, n, h)) -> (B, H, m, h)."""


@dataclass
class Cache:
    """Keys and values of every block, (rows, G, columns, h) each."""

    keys: list[Tensor]
    values: list[Tensor]

    def first(self, rows: int) -> Cache:
        """The first rows, sharing memory."""
        return Cache([tensor[:rows] for tensor in self.keys], [tensor[:rows] for tensor in self.values])

    def repeat(self, times: int, columns: int) -> None:
        """The first columns of the first rows, each so many times in turn, in place; together they fill all rows."""
        for tensor in (*self.keys, *self.values):
            first = tensor[: len(tensor) // times, :, :columns]
            tensor[:, :, :columns] = first.repeat_interleave(times, 0)

    def keep(self, rows: Tensor) -> None:
        """Move these rows to the front, in place."""
        for tensor in (*self.keys, *self.values):
            tensor[: len(rows)] = tensor[rows]


@dataclass(frozen=True)
class Decoder:
    """A causal language model without its head."""

    embed: Callable[[Tensor, Tensor], Tensor]
    """Tokens and positions, (B, n) each -> (B, n, d)."""
    rotation: Callable[[Tensor], Angles] | None
    """(n,) positions -> how far heads turn there; None: no rotary positions."""
    blocks: list[Block]
    norm: nn.Module
    scale: float
    """Of queries times keys."""
    key_shape: tuple[int, int]
    """G, h."""

    def angles(self, positions: int, device: torch.device) -> Angles | None:
        """How far heads turn at the first so many positions; None: no rotary positions."""
        return None if self.rotation is None else self.rotation(torch.arange(positions, device=device))

    def new_cache(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Cache:
        shape = rows, self.key_shape[0], columns, self.key_shape[1]
        made = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * len(self.blocks))]
        return Cache(made[::2], made[1::2])

    def read(
        self,
        start: Tensor,
        mask: Tensor,
        positions: Tensor | None,
        angles: Angles | None,
        wanted: slice,
        cache: Cache | None = None,
        again: Context | None = None,
    ) -> Tensor:
        """Whole texts: the final hidden states (B, m, d) of the m wanted columns.

        Args:
            start: (B, n, d), embeddings or what lower blocks have made of them.
            mask: (B, n) bool, the columns that hold tokens.
            positions: (B, n) of each token in its text; None: nothing is padded on the left.
            angles: of the first n positions or more.
            cache: gets keys and values in its first n columns, and says in what they are computed with.
            again: activations are not kept but computed again in the backward pass, in this context.
        """
        width = mask.shape[1]
        seen = self.masks(None if positions is None else mask, mask.device, width, wanted)
        if angles is not None:
            angles = angles.first(width) if positions is None else angles.at(positions)

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if cache is not None:
                cache.keys[number][:, :, :width] = keys
                cache.values[number][:, :, :width] = values
                values = values.to(cache.values[number].dtype)
            return attention(queries.to(values.dtype), keys.to(values.dtype), values, seen[number], self.scale)

        return self._through(start, angles, attend, wanted, again)

    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        angles: Angles | None,
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
        groups, size = self.key_shape
        # A number where reading it waits for nothing: an index costs more than the copy. Graphs know an address alone.
        place = int(column) if column.device.type == "cpu" else None

        def put(cached: Tensor, new: Tensor) -> None:
            if place is None:
                cached.index_copy_(2, column, new.to(cached.dtype))
            else:
                cached[:, :, place : place + 1] = new

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cached, cached_values = cache.keys[number], cache.values[number]
            put(cached, keys)
            put(cached_values, values)
            # Heads of a group look at the same keys: they are the rows of one matrix.
            grouped = queries.reshape(len(queries), groups, -1, size).to(cached.dtype)
            mask = masks[self.blocks[number].window]
            attended = _attend_to(grouped, cached[:, :, :columns], cached_values[:, :, :columns], mask, self.scale)
            return attended.reshape(queries.shape)

        angles = None if angles is None else angles.at(positions)
        return self._through(self.embed(tokens, positions), angles, attend, slice(0, 1)).squeeze(1)

    def masks(self, valid: Tensor | None, device: torch.device, width: int, wanted: slice) -> list[Tensor | None]:
        """What the tokens of whole texts see of each other, by block: (B or 1, 1, n, width) bool; None: what comes
        before them.

        Args:
            valid: (B, width) bool, tokens that are not padding; None: only padding on the right, which nothing sees.
            wanted: the columns of the last block's queries.
        """
        column = torch.arange(width, device=device)
        made: dict[tuple[int | None, bool], Tensor | None] = {}
        if valid is None:
            made[None, False] = None
        keys = []
        for number, block in enumerate(self.blocks):
            window = None if block.window is None or block.window >= width else block.window
            cut = number == len(self.blocks) - 1 and wanted != slice(None)
            keys.append((window, cut))
            if keys[-1] not in made:
                back = column[wanted if cut else slice(None), None] - column
                seen = (back >= 0) if window is None else (back >= 0) & (back < window)
                # A padding token sees itself, for softmax to have something; nothing sees it.
                seen = seen[None] if valid is None else seen & (valid[:, None] | (back == 0))
                made[window, cut] = seen[:, None]
        return [made[key] for key in keys]

    def _step_masks(self, seen: Tensor | None, column: Tensor, columns: int) -> dict[int | None, Tensor | None]:
        """What to attend to by window, broadcast over heads."""
        masks: dict[int | None, Tensor | None] = {None: None if seen is None else seen[:, None, None]}
        for window in {block.window for block in self.blocks} - {None}:
            assert window is not None
            near = (torch.arange(columns, device=column.device) > column - window)[None]
            masks[window] = (near if seen is None else near & seen)[:, None, None] if columns > window else masks[None]
        return masks

    def _through(
        self, hidden: Tensor, angles: Angles | None, attend: Attend, wanted: slice, again: Context | None = None
    ) -> Tensor:
        """All blocks and the norm over (B, n, d) -> (B, m, d)."""
        for number, block in enumerate(self.blocks):
            columns = wanted if number == len(self.blocks) - 1 else slice(None)

            def run(hidden: Tensor, number: int = number, block: Block = block, columns: slice = columns) -> Tensor:
                return block.run(hidden, angles, lambda *heads: attend(number, *heads), columns)

            hidden = run(hidden) if again is None else recomputed(run, again, hidden)
        return self.norm(hidden)


def recomputed(work: Callable[..., Any], again: Context, *inputs: Any, **named: Any) -> Any:
    """work(*inputs, **named), of which the backward pass keeps the inputs alone; `again` is entered around the second
    computation."""
    if not torch.is_grad_enabled():
        return work(*inputs, **named)
    contexts = lambda: (contextlib.nullcontext(), again())  # noqa: E731
    # There is no dropout, so that no random state needs to be kept.
    return checkpoint(work, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **named)


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
