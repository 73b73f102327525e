"""Sampling over a static key-value cache: known layers, one pass per token, no row computed long after its end."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.models import positions_of
from rlhf.models.decoder import Cache, Decoder
from rlhf.models.policy import Sampler
from rlhf.models.split import replaced_modules
from rlhf.sampling.draw import draw
from rlhf.sampling.graphs import Graphs

RETIRE = 0.75
"""Finished rows are dropped once no more than this share goes on; halves where graphs fix the number of rows."""
LOOK_EVERY = {"cpu": 1, "cuda": 16}
"""Tokens between two looks at how many rows go on, each of which waits for the device."""
COLUMNS = 64
"""Columns of the cache by which one graph serves longer texts than another."""


@dataclass
class Running:
    """Rows that are being sampled, all in the same step. Updated in place: graphs know these tensors by address."""

    index: Tensor
    """(b,) int64: which row of the batch each is."""
    cache: Cache
    seen: Tensor
    """(b, columns) bool: the columns that hold tokens."""
    token: Tensor
    """(b, 1) int64: the last one drawn, not yet in the cache."""
    position: Tensor
    """(b, 1) int64: of that token."""
    uniforms: Tensor
    """(b, T) float64."""
    tokens: Tensor
    """(b, T) int64."""
    logprobs: Tensor
    """(b, T) float32."""
    finished: Tensor
    """(b,) bool."""
    column: Tensor
    """(1,) int64: where the last token goes."""
    t: Tensor
    """(1,) int64: tokens drawn."""

    def first(self, rows: int) -> Running:
        """The first rows, sharing memory."""
        parts = {name: value[:rows] for name, value in vars(self).items() if name not in ("cache", "column", "t")}
        return Running(cache=self.cache.first(rows), column=self.column, t=self.t, **parts)

    def keep(self, rows: Tensor) -> Running:
        """These rows alone, moved to the front in place."""
        self.cache.keep(rows)
        for name, value in vars(self).items():
            if name not in ("cache", "column", "t"):
                value[: len(rows)] = value[rows]
        return self.first(len(rows))


class FastSampler:
    """A policy as it is now, for batches of at most `rows` prompts of at most `prompt_width` tokens.

    Made anew for every rollout: where autocast computes in fewer bits, weights are cast once, here.
    """

    def __init__(
        self,
        sampler: Sampler,
        decoder: Decoder,
        *,
        rows: int,
        prompt_width: int,
        response_width: int,
        eos_id: int,
        pad_id: int,
        device: torch.device,
    ) -> None:
        self.sampler = sampler
        self.decoder = decoder
        self.eos_id, self.pad_id = eos_id, pad_id
        self.graphs = Graphs() if device.type == "cuda" else None
        self.look_every = LOOK_EVERY.get(device.type, 16)
        columns = prompt_width + response_width
        columns = -(-columns // COLUMNS) * COLUMNS if self.graphs else columns
        short = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if short else torch.float32
        self.rotation = decoder.rotation_at(prompt_width + response_width, device)

        def zeros(*shape: int, kind: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        self.buffers = Running(
            index=zeros(rows),
            cache=decoder.new_cache(rows, columns, dtype, device),
            seen=zeros(rows, columns, kind=torch.bool),
            token=zeros(rows, 1),
            position=zeros(rows, 1),
            uniforms=zeros(rows, response_width, kind=torch.float64),
            tokens=zeros(rows, response_width),
            logprobs=zeros(rows, response_width, kind=torch.float32),
            finished=zeros(rows, kind=torch.bool),
            column=zeros(1),
            t=zeros(1),
        )

    @torch.no_grad()
    def sample(self, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """As `plain.sample_plain`."""
        tokens = torch.full(uniforms.shape, self.pad_id, dtype=torch.int64, device=prompt_ids.device)
        logprobs = torch.zeros(uniforms.shape, device=prompt_ids.device)
        width = prompt_ids.shape[1]
        running = self._start(prompt_ids, prompt_mask, uniforms)
        padded = not bool(prompt_mask.all())
        for t in range(1, uniforms.shape[1]):
            if t % self.look_every == 0:
                going = len(running.index) - int(running.finished.sum())
                if going == 0:
                    break
                running = self._retire(running, going, tokens, logprobs)
            if self.graphs is not None:
                self.graphs.run(self._step, running, -(-(width + t) // COLUMNS) * COLUMNS)
            else:
                self._step(running, width + t, masked=padded)
        tokens[running.index], logprobs[running.index] = running.tokens, running.logprobs
        return tokens, logprobs

    def _start(self, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor) -> Running:
        """Prompts into the cache, and the first token of every response."""
        rows, width = prompt_ids.shape
        running = self.buffers.first(rows)
        running.index.copy_(torch.arange(rows))
        running.seen.zero_()
        running.seen[:, :width] = prompt_mask
        running.position.copy_(prompt_mask.sum(1, keepdim=True) - 1)
        running.uniforms.copy_(uniforms)
        running.tokens.fill_(self.pad_id)
        running.logprobs.zero_()
        running.finished.zero_()
        running.column.fill_(width - 1)
        running.t.zero_()
        positions = positions_of(prompt_mask)
        hidden = self.decoder.prefill(prompt_ids, prompt_mask, positions, self.rotation, running.cache)
        self._record(running, hidden)
        return running

    def _step(self, running: Running, columns: int, *, masked: bool = True) -> None:
        """The last token through the layers, and the next one drawn."""
        seen = None
        if masked:
            running.seen.index_fill_(1, running.column, True)
            seen = running.seen[:, :columns]
        hidden = self.decoder.step(
            running.token, running.position, self.rotation, running.cache, running.column, seen, columns
        )
        self._record(running, hidden)

    def _record(self, running: Running, hidden: Tensor) -> None:
        uniforms = running.uniforms.index_select(1, running.t).squeeze(1)
        drawn, logprobs = draw(self.sampler.logits(hidden), uniforms)
        drawn = drawn.masked_fill(running.finished, self.pad_id).unsqueeze(1)
        running.tokens.index_copy_(1, running.t, drawn)
        running.logprobs.index_copy_(1, running.t, logprobs.masked_fill(running.finished, 0.0).unsqueeze(1))
        running.finished.logical_or_(drawn.squeeze(1) == self.eos_id)
        running.token.copy_(drawn)
        running.position.add_(1)
        running.column.add_(1)
        running.t.add_(1)

    def _retire(self, running: Running, going: int, tokens: Tensor, logprobs: Tensor) -> Running:
        """Without finished rows, whose responses go to `tokens` and `logprobs`, where that is worth the move."""
        rows = len(running.index)
        kept = going
        if self.graphs is not None:
            kept = rows
            while going <= kept // 2:
                kept //= 2
        elif going > RETIRE * rows:
            return running
        if kept == rows:
            return running
        order = running.finished.long().argsort(stable=True)
        left = order[kept:]
        tokens[running.index[left]], logprobs[running.index[left]] = running.tokens[left], running.logprobs[left]
        return running.keep(order[:kept])


def with_short_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A twin whose float32 matrices are cast once; norms, the head and whatever has fewer bits are shared.

    Autocast would cast a frozen matrix anew for every token.
    """

    def short(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.Linear) or layer.weight.dtype != torch.float32:
            return layer
        twin = copy.copy(layer)
        twin._parameters = {
            name: None if value is None else nn.Parameter(value.detach().to(dtype), requires_grad=False)
            for name, value in layer._parameters.items()
        }
        return twin

    return replaced_modules(module, short)
