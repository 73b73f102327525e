"""The step of a sampler as captured CUDA graphs: one launch per token in place of hundreds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import torch


class _Step(Protocol):
    def __call__(self, running: Any, columns: int) -> None: ...


class Graphs:
    """Graphs of `step` by number of rows and of columns, captured as they are needed.

    A pair's first step runs as it is, which warms up what a capture must not do (libraries' workspaces); the second is
    captured, and from then on replayed. Where something in a step cannot be captured, all steps run as they are.
    """

    def __init__(self, step: _Step) -> None:
        self.step = step
        self.captured: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        """None: warmed up."""
        self.pool: Any = None
        self.refused = False

    def run(self, running: Any, columns: int) -> None:
        """One step of `running`, whose tensors stay where they are from one call to the next."""
        key = len(running.index), columns
        if self.refused or key not in self.captured:
            self.captured[key] = None
            self.step(running, columns)
            return
        if self.captured[key] is None:
            self.captured[key] = self._capture(running, columns)
        graph = self.captured[key]
        if graph is None:
            self.step(running, columns)
        else:
            graph.replay()

    def _capture(self, running: Any, columns: int) -> torch.cuda.CUDAGraph | None:
        """None where it cannot be."""
        graph = torch.cuda.CUDAGraph()
        try:
            with capturing(graph, self.pool):
                self.step(running, columns)
        except RuntimeError as error:
            self.refused = True
            reason = str(error).strip().splitlines()[0][:200]
            print(f"sampling without CUDA graphs, which this model does not allow: {reason}", file=sys.stderr)
            return None
        self.pool = self.pool or graph.pool()
        return graph


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """As `torch.cuda.graph`, but without its garbage collection, which takes longer than many a rollout.

    Another thread may be at work on the device meanwhile: a reward model's.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(*(() if pool is None else (pool,)), capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
