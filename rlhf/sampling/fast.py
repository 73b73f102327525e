"""Sampling over a static key-value cache: known layers, one pass per token, no row computed long after its end.

On a GPU the step is captured as CUDA graphs: one launch per token in place of hundreds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.config import RunConfig
from rlhf.errors import reason
from rlhf.models import positions_of
from rlhf.models.decoder import Cache
from rlhf.models.families import decoder_of
from rlhf.models.layers import CastWeights, for_few_rows
from rlhf.models.network import misfit
from rlhf.models.policy import Sampler
from rlhf.sampling.plain import draw
from rlhf.terminal import complain

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


def unfit(model: PreTrainedModel) -> str:
    """Why `rollout=fast` cannot sample from the model; empty where it can."""
    return misfit(model.base_model)


def say_where_plain(config: RunConfig, model: PreTrainedModel, say: Callable[[str], None]) -> None:
    """One line where `rollout=fast` does not fit the model."""
    if config.rollout.sampling != "plain" and (reason := unfit(model)):
        say(f"rollout=plain: {reason}")


def fast_sampler(
    sampler: Sampler, *, rows: int, prompt_width: int, response_width: int, eos_id: int, pad_id: int
) -> FastSampler:
    """The fast sampler of a policy that it fits; see `FastSampler` for the arguments.

    Where steps are captured it stays in the policy's cache, graphs, cache and all, and serves later rollouts too.
    """
    kept = sampler.cache.content
    if isinstance(kept, FastSampler) and kept.serves(rows, prompt_width, response_width, eos_id, pad_id):
        kept.weights.refresh()
        return kept
    kept = sampler.cache.content = None  # what it holds makes room first
    sizes = {"rows": rows, "prompt_width": prompt_width, "response_width": response_width}
    made = FastSampler(sampler, **sizes, eos_id=eos_id, pad_id=pad_id)
    if made.graphs is not None:
        sampler.cache.content = made
    return made


class FastSampler:
    """A policy for batches of at most `rows` prompts of at most `prompt_width` tokens."""

    def __init__(
        self, sampler: Sampler, *, rows: int, prompt_width: int, response_width: int, eos_id: int, pad_id: int
    ) -> None:
        self.logits = sampler.logits  # the sampler itself holds the cache that this may lie on
        device = next(sampler.model.parameters()).device
        cast = _cast_of(device)
        self.weights = CastWeights(sampler.model.base_model, cast)
        self.decoder = decoder_of(self.weights.module if cast else for_few_rows(self.weights.module))
        self.width = prompt_width + response_width
        self.eos_id, self.pad_id = eos_id, pad_id
        self.graphs = Graphs() if captures(device) else None
        self.look_every = LOOK_EVERY.get(device.type, 16)
        columns = -(-self.width // COLUMNS) * COLUMNS if self.graphs else self.width
        self.angles = self.decoder.angles(self.width, device)

        def zeros(*shape: int, kind: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        self.buffers = Running(
            index=zeros(rows),
            cache=self.decoder.new_cache(rows, columns, cast or torch.float32, device),
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

    def serves(self, rows: int, prompt_width: int, response_width: int, eos_id: int, pad_id: int) -> bool:
        """Whether batches of these sizes fit, in the precision that is asked for now."""
        most, new = self.buffers.tokens.shape
        same = (new, self.eos_id, self.pad_id) == (response_width, eos_id, pad_id)
        same = same and self.weights.dtype == _cast_of(self.buffers.tokens.device)
        return same and rows <= most and prompt_width + response_width <= self.width

    def sample(
        self, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor, *, group_size: int = 1
    ) -> tuple[Tensor, Tensor]:
        """As `plain.sample_plain`.

        Args:
            group_size: so many neighbours have the same prompt, which is read once for all of them.
        """
        width = prompt_ids.shape[1]
        tokens = torch.full(uniforms.shape, self.pad_id, dtype=torch.int64, device=prompt_ids.device)
        logprobs = torch.zeros(uniforms.shape, device=prompt_ids.device)
        # Small kernels' calls cost a tenth less in this mode; nothing made in it is given back.
        with torch.inference_mode():
            running = self._start(prompt_ids, prompt_mask, uniforms, group_size)
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

    def _start(self, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor, group_size: int) -> Running:
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
        prompt_ids, prompt_mask = prompt_ids[::group_size], prompt_mask[::group_size]
        positions = positions_of(prompt_mask)
        start, padded = self.decoder.embed(prompt_ids, positions), not bool(prompt_mask.all())
        hidden = self.decoder.read(
            start,
            prompt_mask,
            positions if padded else None,
            self.angles,
            wanted=slice(width - 1, width),
            cache=running.cache.first(len(prompt_ids)),
        )
        if group_size > 1:
            running.cache.repeat(group_size, width)
            hidden = hidden.repeat_interleave(group_size, 0)
        self._record(running, hidden.squeeze(1))
        return running

    def _step(self, running: Running, columns: int, *, masked: bool = True) -> None:
        """The last token through the layers, and the next one drawn."""
        seen = None
        if masked:
            running.seen.index_fill_(1, running.column, True)
            seen = running.seen[:, :columns]
        hidden = self.decoder.step(
            running.token, running.position, self.angles, running.cache, running.column, seen, columns
        )
        self._record(running, hidden)

    def _record(self, running: Running, hidden: Tensor) -> None:
        uniforms = running.uniforms.index_select(1, running.t).squeeze(1)
        drawn, logprobs = draw(self.logits(hidden), uniforms)
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


def _cast_of(device: torch.device) -> torch.dtype | None:
    """What autocast computes in there now; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def captures(device: torch.device) -> bool:
    """Whether steps are captured as graphs there."""
    return device.type == "cuda"


class Graphs:
    """Graphs of a step by number of rows and of columns, captured as they are needed.

    A pair's first step runs as it is, which warms up what a capture must not do (libraries' workspaces); the second is
    captured, and from then on replayed. Where one cannot be captured, no other is tried.
    """

    def __init__(self) -> None:
        self.captured: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        """None: warmed up."""
        self.pool: Any = None
        self.refused = False

    def run(self, step: Callable[[Any, int], None], running: Any, columns: int) -> None:
        """One step of `running`, whose tensors stay where they are from one call to the next.

        The step is not kept: it holds the sampler that holds this, and a circle of large tensors would stay until
        Python looks for circles.
        """
        key = len(running.index), columns
        graph = self.captured.get(key)
        if graph is None and key in self.captured and not self.refused:
            graph = torch.cuda.CUDAGraph()
            try:
                with capturing(graph, self.pool):
                    step(running, columns)
                self.pool = self.pool or graph.pool()
            except RuntimeError as error:
                complain(f"sampling without a CUDA graph where none could be captured: {reason(error)}")
                # Memory may be there next time; nothing else changes.
                graph, self.refused = None, not isinstance(error, torch.OutOfMemoryError)
        self.captured[key] = graph
        if graph is None:
            step(running, columns)
        else:
            graph.replay()


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """As `torch.cuda.graph`, but without its garbage collection, which takes longer than many a rollout.

    Another thread may be at work on the device meanwhile: a reward model's.
    """
    stream, outer = _capture_stream(torch.cuda.current_device()), torch.cuda.current_stream()
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(*(() if pool is None else (pool,)), capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                with contextlib.suppress(RuntimeError):  # that the capture has failed, which is known by now
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        outer.wait_stream(stream)


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """One for all captures: a library's workspace is kept for each stream that it was ever used on."""
    return torch.cuda.Stream(device)
