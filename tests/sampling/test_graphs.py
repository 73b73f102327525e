"""Captured steps: by a stand-in for CUDA's graphs anywhere, and by themselves where there is a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import rlhf.sampling.fast as fast
from rlhf.batches import pad
from rlhf.masked import mask_through_first
from rlhf.models.features import Features, micro_batches
from rlhf.models.layers import compute_in_float32
from rlhf.models.loading import moved
from rlhf.models.policy import Sampler, SamplerCache, policy_pair
from rlhf.precision import without_cudnn_attention
from rlhf.random import generator, sampling_uniforms
from rlhf.sampling.fast import FastSampler, Graphs, fast_sampler, unfit
from rlhf.sampling.plain import sample_plain
from tests.helpers import (
    ARCHITECTURES,
    EOS,
    MODES,
    PAD,
    VOCAB,
    measure_all,
    nudge,
    policy_models,
    random_rollouts,
    sampler_of,
    tiny_model,
)

WIDTH, NEW, COLUMNS = 6, 18, 8
LENGTHS = [3, 6, 1, 5, 6, 2, 6, 4]


class Recorder:
    """CUDA's graphs in Python: a capture computes nothing, and a replay does on the tensors of the capture."""

    def __init__(self, refuses: bool = False) -> None:
        self.step, self.refuses = FastSampler._step, refuses
        self.error = RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")
        self.capturing: FakeGraph | None = None
        self.events: Counter[str] = Counter()

    def run(self, made: FastSampler, running: Any, columns: int) -> None:
        if self.capturing is None:
            self.events["eager"] += 1
            self.step(made, running, columns)
        elif self.refuses:
            raise self.error
        else:
            self.events["captured"] += 1
            self.capturing.work = lambda: self.step(made, running, columns)

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
    more = torch.zeros(VOCAB, device=next(sampler.model.parameters()).device)
    more[EOS] = 1.2
    return Sampler(sampler.model, lambda hidden: sampler.logits(hidden) + more)


def recording(monkeypatch: pytest.MonkeyPatch, refuses: bool = False) -> Recorder:
    """Samplers on the CPU believe in graphs from here on; caches are a whole number of steps of columns wide."""
    recorder = Recorder(refuses)
    monkeypatch.setattr(fast, "captures", lambda _: True)
    monkeypatch.setitem(fast.LOOK_EVERY, "cpu", 2)
    monkeypatch.setattr(fast, "COLUMNS", COLUMNS)
    monkeypatch.setattr(FastSampler, "_step", lambda made, running, columns: recorder.run(made, running, columns))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(fast, "capturing", recorder.capture)
    return recorder


def made_for(sampler: Sampler, rows: int = 8, prompt_width: int = WIDTH) -> FastSampler:
    assert unfit(sampler.model) == ""
    return fast_sampler(sampler, rows=rows, prompt_width=prompt_width, response_width=NEW, eos_id=EOS, pad_id=PAD)


def recorded(monkeypatch: pytest.MonkeyPatch, sampler: Sampler, refuses: bool = False) -> tuple[FastSampler, Recorder]:
    recorder = recording(monkeypatch, refuses)
    return made_for(sampler), recorder


def assert_plain(made: FastSampler, sampler: Sampler, seed: int, rows: int = 8) -> None:
    ids, mask = prompts()
    uniforms = sampling_uniforms(seed, "graphs", 0, 8, NEW)
    given = ids[:rows], mask[:rows], uniforms[:rows]
    tokens, logprobs = made.sample(*given)
    expected, about = sample_plain(sampler, *given, eos_id=EOS, pad_id=PAD)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, about, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt_neo", "qwen3"])
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


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(monkeypatch, capfd):
    sampler = ending(sampler_of(tiny_model()))
    made, recorder = recorded(monkeypatch, sampler, refuses=True)
    for seed in range(2):
        assert_plain(made, sampler, seed)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("sampling without a CUDA graph where none could be captured: CUDA error: operation not")
    assert recorder.events["eager"] > 10 and not recorder.events["replayed"] and not recorder.events["captured"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_graphs_of_one_rollout_serve_the_next_with_the_weights_of_then(monkeypatch, mode, precision):
    recorder = recording(monkeypatch)
    models = policy_models(tiny_model(), mode, precision=precision)
    given = *prompts(), sampling_uniforms(0, "graphs", 0, 8, NEW)
    first, found, captured = None, [], {}
    for _ in range(3):
        with models.sampling() as sampler:
            made = made_for(sampler)
            tokens, logprobs = made.sample(*given)
            once = made_for(dataclasses.replace(sampler, cache=SamplerCache())).sample(*given)
        assert torch.equal(tokens, once[0]) and torch.equal(logprobs, once[1])
        first = first or made
        assert made is first and made.graphs is not None
        found.append(logprobs)
        captured = captured or {size: graph for size, graph in made.graphs.captured.items() if graph is not None}
        nudge(models.named_parameters(), 0.3)  # in place, as an optimizer does
        assert len(captured) >= 2 and all(made.graphs.captured[size] is graph for size, graph in captured.items())
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    assert recorder.events["replayed"] > 20


def test_a_kept_sampler_serves_smaller_batches_and_makes_room_for_larger_ones(monkeypatch):
    recording(monkeypatch)
    sampler = sampler_of(tiny_model())
    made = made_for(sampler)
    assert made_for(sampler, rows=3, prompt_width=2) is made
    gone = weakref.ref(made)
    del made
    assert made_for(sampler, rows=9).buffers.tokens.shape == (9, NEW) and gone() is None
    larger = made_for(sampler, prompt_width=WIDTH + 1)
    assert larger.width == WIDTH + 1 + NEW and made_for(sampler, rows=9) is not larger


def test_a_kept_sampler_goes_with_its_policy(monkeypatch):
    """Not when Python next looks for circles: its cache may be most of a GPU's memory."""
    recording(monkeypatch)
    model = tiny_model()
    pair = policy_pair(model, model, temperature=1.0, autocast=contextlib.nullcontext)
    gc.collect()
    gc.disable()
    try:
        with pair.sampling() as sampler:
            made = made_for(sampler)
        gone = weakref.ref(made)
        del made, sampler
        assert gone() is not None
        del pair
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_a_gpu_graphs_sample_what_the_plain_sampler_does(architecture):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sampler = ending(sampler_of(moved(tiny_model(architecture), torch.device("cuda"))))
    made = made_for(sampler)
    assert made.graphs is not None
    ids, mask = (part.cuda() for part in prompts())
    for seed in range(3):
        uniforms = sampling_uniforms(seed, "graphs", 0, 8, NEW).cuda()
        tokens, logprobs = made.sample(ids, mask, uniforms)
        expected, about = sample_plain(sampler, ids, mask, uniforms, eos_id=EOS, pad_id=PAD)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(logprobs, about, atol=1e-4, rtol=1e-4)
    assert not made.graphs.refused and any(graph is not None for graph in made.graphs.captured.values())


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("mode", "held"),
    # Weights are held in few bits where they are frozen, the head among them.
    [*((mode, None) for mode in MODES), ("last_k", torch.bfloat16), ("lora", torch.bfloat16)],
)
def test_on_a_gpu_graphs_follow_training_in_bf16(mode, held):
    """Logprobs of the sampled tokens against a plain forward pass, before and after the weights have moved."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = moved(tiny_model("llama", scale=0.1), torch.device("cuda"))
    if held is not None:
        compute_in_float32(model.to(held))
    models = policy_models(model, mode, precision="bf16")
    ids, mask = (part.cuda() for part in prompts())
    for seed in range(3):
        with models.sampling() as sampler:
            made = made_for(sampler)
            tokens, logprobs = made.sample(ids, mask, sampling_uniforms(seed, "graphs", 0, 8, NEW).cuda())
        assert made.graphs is not None and not made.graphs.refused
        valid = mask_through_first(tokens, EOS)[0]
        whole = torch.cat([ids, tokens], 1), torch.cat([mask, valid], 1)
        features = Features(
            input_ids=whole[0],
            mask=whole[1],
            hidden=None,
            prompt_width=ids.shape[1],
            prompt_lengths=mask.sum(1).cpu(),
            response_lengths=valid.sum(1).cpu(),
        )
        with torch.no_grad(), models.autocast():
            features = dataclasses.replace(features, hidden=models.networks.trunk and models.networks.trunk(features))
            expected = models.policy_logprobs(models.policy_hidden(features), tokens)
        gaps = (expected - logprobs)[valid].abs()
        assert float(gaps.mean()) < 0.02 and float(gaps.max()) < 0.2
        nudge(models.named_parameters(), 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("torchs_switches")
def test_on_a_gpu_the_first_ratio_is_1(mode, precision):
    """With heads of 8, which the kernels take that large models' attention goes through."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    without_cudnn_attention()
    model = tiny_model("gpt_neox")
    assert model.config.hidden_size // model.config.num_attention_heads == 8
    models = policy_models(moved(model, torch.device("cuda")), mode, precision=precision)
    nudge(models.named_parameters(), 0.1)
    rollouts = random_rollouts([5, 1, 3, 2, 5, 5, 5, 5], [4, 6, 1, 2, 7, 7, 7, 7]).to(torch.device("cuda"))
    measured = measure_all(models, rollouts, 4, by_length=True)
    for rows in micro_batches(torch.arange(8), measured.features, 4, by_length=True):
        features = measured.features.rows(rows).trimmed()
        valid = features.mask[:, features.prompt_width :]
        logprobs = models.policy_logprobs(
            models.policy_hidden(features), features.tokens, features.response_positions()
        )
        assert logprobs.requires_grad
        assert torch.equal(logprobs, measured.old_logprobs[rows, : valid.shape[1]])
