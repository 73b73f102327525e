"""Captured steps: by a stand-in for CUDA's graphs anywhere, and by themselves where there is a GPU."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import rlhf.sampling.fast as fast
import rlhf.sampling.graphs as graphs
from rlhf.batches import pad
from rlhf.models.loading import moved
from rlhf.models.policy import Sampler
from rlhf.random import generator, sampling_uniforms
from rlhf.sampling.choose import fast_sampler, unfit
from rlhf.sampling.fast import FastSampler
from rlhf.sampling.graphs import Graphs
from rlhf.sampling.plain import sample_plain
from tests.helpers import ARCHITECTURES, EOS, PAD, VOCAB, sampler_of, tiny_model

WIDTH, NEW, COLUMNS = 6, 18, 8
LENGTHS = [3, 6, 1, 5, 6, 2, 6, 4]


class Recorder:
    """CUDA's graphs in Python: a capture computes nothing, and a replay does on the tensors of the capture."""

    def __init__(self, step: Callable[..., None], refuses: bool = False) -> None:
        self.step, self.refuses = step, refuses
        self.capturing: FakeGraph | None = None
        self.events: Counter[str] = Counter()

    def run(self, running: Any, columns: int) -> None:
        if self.capturing is None:
            self.events["eager"] += 1
            self.step(running, columns)
        elif self.refuses:
            raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")
        else:
            self.events["captured"] += 1
            self.capturing.work = lambda: self.step(running, columns)

    @contextlib.contextmanager
    def capture(self, graph: FakeGraph, pool: object) -> Iterator[None]:
        graph.recorder, graph.given_pool, self.capturing = self, pool, graph
        try:
            yield
        finally:
            self.capturing = None


class FakeGraph:
    recorder: Recorder
    given_pool: object
    work: Callable[[], None]

    def replay(self) -> None:
        self.recorder.events["replayed"] += 1
        self.work()

    def pool(self) -> str:
        return "the pool"


def prompts() -> tuple[Tensor, Tensor]:
    draws = generator(0, "prompts")
    rows = [torch.randint(2, VOCAB, (length,), generator=draws).tolist() for length in LENGTHS]
    return pad(rows, PAD, left=True)


def ending(sampler: Sampler) -> Sampler:
    more = torch.zeros(VOCAB)
    more[EOS] = 1.2
    return Sampler(sampler.model, lambda hidden: sampler.logits(hidden) + more.to(hidden.device))


def recorded(monkeypatch: pytest.MonkeyPatch, sampler: Sampler, refuses: bool = False) -> tuple[FastSampler, Recorder]:
    """A sampler on the CPU that believes in graphs; its cache is a whole number of steps of columns wide."""
    assert unfit(sampler.model) == "" and (WIDTH + NEW) % COLUMNS == 0
    made = fast_sampler(sampler, rows=8, prompt_width=WIDTH, response_width=NEW, eos_id=EOS, pad_id=PAD)
    recorder = Recorder(made._step, refuses)
    made.graphs, made.look_every = Graphs(), 2
    monkeypatch.setattr(made, "_step", recorder.run)
    monkeypatch.setattr(fast, "COLUMNS", COLUMNS)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(graphs, "capturing", recorder.capture)
    return made, recorder


def assert_plain(made: FastSampler, sampler: Sampler, seed: int, rows: int = 8) -> None:
    ids, mask = prompts()
    uniforms = sampling_uniforms(seed, "graphs", 0, 8, NEW)
    given = ids[:rows], mask[:rows], uniforms[:rows]
    tokens, logprobs = made.sample(*given)
    expected, about = sample_plain(sampler, *given, eos_id=EOS, pad_id=PAD)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, about, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replays_sample_what_the_plain_sampler_does(monkeypatch, architecture):
    sampler = ending(sampler_of(tiny_model(architecture)))
    made, recorder = recorded(monkeypatch, sampler)
    sizes: list[int] = []
    run = Graphs.run
    monkeypatch.setattr(
        Graphs,
        "run",
        lambda self, step, running, c: (sizes.append(len(running.index)), run(self, step, running, c)),
    )
    for seed in range(3):
        assert_plain(made, sampler, seed)
    assert_plain(made, sampler, 3, rows=5)  # the last batch of a rollout is smaller
    assert set(sizes) <= {8, 4, 2, 1, 5} and {8, 4} < set(sizes)  # rows go by halves, so that graphs are few
    made_graphs = made.graphs
    assert made_graphs is not None and recorder.events["captured"] == sum(
        one is not None for one in made_graphs.captured.values()
    )
    assert recorder.events["eager"] == len(made_graphs.captured)  # each pair's first step, which warms up
    assert recorder.events["replayed"] == len(sizes) - recorder.events["eager"] > 20
    assert {columns for _, columns in made_graphs.captured} <= {8, 16, 24}


def test_all_graphs_share_the_pool_of_the_first(monkeypatch):
    sampler = sampler_of(tiny_model())
    made, _ = recorded(monkeypatch, sampler)
    assert_plain(made, sampler, 0)
    assert made.graphs is not None
    pools = [graph.given_pool for graph in made.graphs.captured.values() if graph is not None]  # type: ignore[attr-defined]
    assert len(pools) >= 2 and pools == [None] + ["the pool"] * (len(pools) - 1)


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(monkeypatch, capfd):
    sampler = ending(sampler_of(tiny_model()))
    made, recorder = recorded(monkeypatch, sampler, refuses=True)
    for seed in range(2):
        assert_plain(made, sampler, seed)
    reason = "sampling without CUDA graphs, which this model does not allow: CUDA error: operation not permitted"
    assert capfd.readouterr().err.splitlines() == [reason]
    assert recorder.events["eager"] > 10 and not recorder.events["replayed"] and not recorder.events["captured"]


def test_a_sampler_with_graphs_goes_as_soon_as_nobody_holds_it():
    """Not when Python next looks for circles: its cache may be most of a GPU's memory."""
    sampler = sampler_of(tiny_model())
    gc.collect()
    gc.disable()
    try:
        made = fast_sampler(sampler, rows=8, prompt_width=WIDTH, response_width=2, eos_id=EOS, pad_id=PAD)
        made.graphs = Graphs()
        ids, mask = prompts()
        made.sample(ids, mask, sampling_uniforms(0, "graphs", 0, 8, 2))
        gone = weakref.ref(made)
        del made
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_a_gpu_graphs_sample_what_the_plain_sampler_does(architecture):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sampler = ending(sampler_of(moved(tiny_model(architecture), torch.device("cuda"))))
    assert unfit(sampler.model) == ""
    made = fast_sampler(sampler, rows=8, prompt_width=WIDTH, response_width=NEW, eos_id=EOS, pad_id=PAD)
    assert made.graphs is not None
    ids, mask = (part.cuda() for part in prompts())
    for seed in range(3):
        uniforms = sampling_uniforms(seed, "graphs", 0, 8, NEW).cuda()
        tokens, logprobs = made.sample(ids, mask, uniforms)
        expected, about = sample_plain(sampler, ids, mask, uniforms, eos_id=EOS, pad_id=PAD)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(logprobs, about, atol=1e-4, rtol=1e-4)
    assert not made.graphs.refused and any(graph is not None for graph in made.graphs.captured.values())
