"""The step of a sampler as captured CUDA graphs: one launch per token in place of hundreds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from rlhf.errors import reason
from rlhf.terminal import complain


class Step(Protocol):
    def __call__(self, running: Any, columns: int) -> None: ...


class Graphs:
    """Graphs of a step by number of rows and of columns, captured as they are needed.

    A pair's first step runs as it is, which warms up what a capture must not do (libraries' workspaces); the second is
    captured, and from then on replayed. Where one cannot be captured, no other is tried; but lack of memory may pass,
    and the pair's next step tries again.
    """

    def __init__(self) -> None:
        self.captured: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        """None: warmed up."""
        self.pool: Any = None
        self.refused = False
        self._said = False

    def run(self, step: Step, running: Any, columns: int) -> None:
        """One step of `running`, whose tensors stay where they are from one call to the next.

        The step is not kept: it holds the sampler that holds this, and a circle of large tensors would stay until
        Python looks for circles.
        """
        key = len(running.index), columns
        graph = self.captured.get(key)
        if graph is None and key in self.captured and not self.refused:
            graph = self._capture(step, running, columns)
        self.captured[key] = graph
        if graph is None:
            step(running, columns)
        else:
            graph.replay()

    def _capture(self, step: Step, running: Any, columns: int) -> torch.cuda.CUDAGraph | None:
        """None where it cannot be."""
        graph = torch.cuda.CUDAGraph()
        try:
            with capturing(graph, self.pool):
                step(running, columns)
        except RuntimeError as error:
            self.refused = "out of memory" not in str(error)
            if self.refused or not self._said:
                why = reason(error)
                complain(f"sampling without a CUDA graph where none could be captured: {why}")
            self._said = True
            return None
        self.pool = self.pool or graph.pool()
        return graph


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
