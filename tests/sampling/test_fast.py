"""The fast sampler against the plain one and against plain forwards of single texts; finished rows make room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTJConfig, GPTNeoXConfig, MistralConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

import rlhf.sampling.fast as fast
from rlhf.algorithms.ilql_heads import ILQLHeads, ILQLSampler
from rlhf.batches import PromptBatch, pad
from rlhf.models.loading import word_tokenizer
from rlhf.models.policy import Sampler
from rlhf.random import generator, sampling_uniforms
from rlhf.rollout import generate
from rlhf.sampling.fast import fast_sampler
from tests.helpers import (
    _LLAMA,
    _SHARED,
    ARCHITECTURES,
    EOS,
    LAYERS,
    PAD,
    VOCAB,
    WIDTH,
    model_of,
    nudge,
    plain_logprobs,
    policy_models,
    sample,
    sampler_of,
    tiny_model,
)

NEW = 12
LENGTHS = [3, 7, 1, 5, 7, 2, 6, 4]
"""Of prompts; a window of 4 slides over all but a few of the texts."""


def neox(**settings: Any) -> Callable[[], PretrainedConfig]:
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return lambda: GPTNeoXConfig(max_position_embeddings=64, **sizes, **settings, **_SHARED)


def gptj(rotary_dim: int) -> Callable[[], PretrainedConfig]:
    sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
    return lambda: GPTJConfig(rotary_dim=rotary_dim, **sizes, **_SHARED)


def local_gpt_neo() -> PretrainedConfig:
    config = ARCHITECTURES["gpt_neo"]()
    config.attention_types = [[["global", "local", "local"], 1]]
    config.attention_layers = ["global", "local", "local"]
    return config


def rotary(share: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}}


def scaled_llama(**rope: object) -> Callable[[], PretrainedConfig]:
    def made() -> PretrainedConfig:
        config = ARCHITECTURES["llama"]()
        config.rope_parameters = {"rope_theta": 10000.0, **rope}
        return config

    return made


VARIANTS: dict[str, Callable[[], PretrainedConfig]] = {
    **ARCHITECTURES,
    "mistral, a window": lambda: MistralConfig(head_dim=4, sliding_window=4, **_LLAMA, **_SHARED),
    "qwen2, a window above the first block": lambda: Qwen2Config(
        use_sliding_window=True, sliding_window=3, max_window_layers=1, **_LLAMA, **_SHARED
    ),
    "gpt_neox, one after the other": neox(use_parallel_residual=False),
    "gpt_neox, half of each head turns": neox(**rotary(0.5)),
    "gpt_neox, all of each head turns": neox(**rotary(1.0)),
    "gptj, all of each head turns": gptj(WIDTH // 2),
    "gpt_neo, a window in the last block": local_gpt_neo,
    "llama, linear positions": scaled_llama(rope_type="linear", factor=2.0),
    "llama, positions of llama 3": scaled_llama(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    "llama, positions of yarn": scaled_llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
}


def prompts(lengths: list[int], seed: int = 0) -> tuple[list[list[int]], Tensor, Tensor]:
    draws = generator(seed, "prompts")
    rows = [torch.randint(2, VOCAB, (length,), generator=draws).tolist() for length in lengths]
    return rows, *pad(rows, PAD, left=True)


def ends_often(sampler: Sampler) -> Sampler:
    """The same policy with more probability on EOS."""
    more = torch.zeros(VOCAB)
    more[EOS] = 1.2
    return Sampler(sampler.model, lambda hidden: sampler.logits(hidden) + more)


def both(sampler: Sampler, lengths: list[int] = LENGTHS, new: int = NEW) -> tuple[Tensor, Tensor]:
    """The fast sampler's tokens and logprobs, having compared them with the plain one's."""
    _, ids, mask = prompts(lengths)
    uniforms = sampling_uniforms(3, "fast", 0, len(lengths), new)
    expected, about = sample("plain", sampler, ids, mask, uniforms)
    tokens, logprobs = sample("fast", sampler, ids, mask, uniforms)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, about, atol=1e-5, rtol=1e-5)
    assert len({tuple(row) for row in tokens.tolist()}) > len(lengths) // 3
    return tokens, logprobs


def assert_plain_forwards(model: PreTrainedModel, tokens: Tensor, logprobs: Tensor, close: float = 1e-5) -> None:
    """Logprobs of single texts without padding, by transformers alone; 0 and padding after the EOS."""
    for row, prompt in enumerate(prompts(LENGTHS)[0]):
        response = tokens[row].tolist()
        length = response.index(EOS) + 1 if EOS in response else NEW
        expected = plain_logprobs(model, prompt, response[:length]).float()
        torch.testing.assert_close(logprobs[row, :length], expected, atol=close, rtol=close)
        assert response[length:] == [PAD] * (NEW - length) and not bool(logprobs[row, length:].any())


# --- the same tokens, the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_the_plain_samplers_and_logprobs_a_plain_forwards(variant):
    model = model_of(VARIANTS[variant]())
    assert_plain_forwards(model, *both(sampler_of(model)))


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_the_prompt_of_a_group_is_read_once_for_all_its_responses(architecture, monkeypatch):
    sampler, size, new = sampler_of(model_of(ARCHITECTURES[architecture]())), 3, NEW
    ids, mask = (column.repeat_interleave(size, 0) for column in prompts(LENGTHS)[1:])
    uniforms = sampling_uniforms(3, "groups", 0, len(ids), new)
    expected, about = sample("fast", sampler, ids, mask, uniforms)
    sizes = {"rows": len(ids), "prompt_width": ids.shape[1], "response_width": new}
    made, read = fast_sampler(sampler, **sizes, eos_id=EOS, pad_id=PAD), []
    whole = type(made.decoder).read
    monkeypatch.setattr(
        type(made.decoder),
        "read",
        lambda self, start, *rest, **more: read.append(len(start)) or whole(self, start, *rest, **more),
    )
    tokens, logprobs = made.sample(ids, mask, uniforms, group_size=size)
    assert read == [len(LENGTHS)] and torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, about, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "mode"), [("gpt_neox", "all"), ("llama", "last_k"), ("gpt_neo", "last_k"), ("gptj", "lora")]
)
def test_in_every_mode_it_samples_from_the_policy_as_it_is(architecture, mode):
    models = policy_models(tiny_model(architecture), mode)
    for round_ in range(2):  # before it has left the initial policy, and after
        with models.sampling() as sampler:
            tokens, logprobs = both(sampler)
            assert_plain_forwards(sampler.model, tokens, logprobs)
        nudge(models.named_parameters(), seed=round_)


def test_ilqls_sampler_runs_on_it():
    torch.manual_seed(0)
    models = policy_models(tiny_model(), "last_k", temperature=0.8)
    heads = ILQLHeads(WIDTH, VOCAB, two_qs=True, init_std=1.0, device=torch.device("cpu"))
    with ILQLSampler(models, heads, beta=2.0, top_k=4).sampling() as sampler:
        both(sampler)


def test_a_second_batch_finds_nothing_of_the_first_and_may_be_smaller():
    sampler = ends_often(sampler_of(tiny_model("qwen2")))
    kept = fast_sampler(sampler, rows=8, prompt_width=7, response_width=NEW, eos_id=EOS, pad_id=PAD)
    for seed, lengths in enumerate([LENGTHS, [2, 5, 5], [7] * 8, [1]]):
        _, ids, mask = prompts(lengths, seed)
        uniforms = sampling_uniforms(seed, "fast", 1, len(lengths), NEW)
        expected, about = sample("plain", sampler, ids, mask, uniforms)
        tokens, logprobs = kept.sample(ids, mask, uniforms)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(logprobs, about, atol=1e-5, rtol=1e-5)


def test_rollouts_come_back_in_the_order_of_their_prompts():
    """Though batches are of neighbours in length."""
    models = policy_models(tiny_model(), "all")
    rows, ids, mask = prompts(LENGTHS)
    batch = PromptBatch(ids, mask, [str(row) for row in rows], [""] * len(rows))
    uniforms = sampling_uniforms(0, "fast", 2, len(rows), NEW)
    tokenizer = word_tokenizer([f"w{i}" for i in range(VOCAB - 3)])
    options: dict[str, Any] = {"sampling": "fast", "batch_size": 3, "stop_strings": []}
    rollouts = generate(models, tokenizer, batch, uniforms, **options)
    assert torch.equal(rollouts.prompt_ids, ids) and rollouts.prompts == batch.texts
    for row, prompt in enumerate(rows):
        alone = torch.tensor([prompt])
        with models.sampling() as sampler:
            expected, _ = sample("plain", sampler, alone, alone > 0, uniforms[row : row + 1])
        assert torch.equal(rollouts.response_ids[row], expected[0])


# --- finished rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt_neo", "qwen3"])
def test_finished_rows_make_room_and_change_nothing(monkeypatch, architecture):
    sampler, lengths = ends_often(sampler_of(tiny_model(architecture))), LENGTHS * 4
    steps: list[int] = []
    step = fast.FastSampler._step
    monkeypatch.setattr(
        fast.FastSampler,
        "_step",
        lambda self, running, *a, **k: (steps.append(len(running.index)), step(self, running, *a, **k)),
    )
    tokens, logprobs = both(sampler, lengths)
    shrinking = sorted(set(steps), reverse=True)
    assert steps == sorted(steps, reverse=True) and len(shrinking) >= 4, steps
    ends = [row.index(EOS) if EOS in row else NEW for row in tokens.tolist()]
    assert len(set(ends)) >= 4
    # A step runs the rows that go on and at most a third more.
    going = [sum(end > t for end in ends) for t in range(len(steps))]
    assert all(rows * fast.RETIRE < alive or rows == alive for rows, alive in zip(steps, going, strict=True))
    steps.clear()
    monkeypatch.setattr(fast, "RETIRE", 0.0)
    whole = both(sampler, lengths)
    assert set(steps) == {32}
    assert torch.equal(whole[0], tokens)
    torch.testing.assert_close(whole[1], logprobs, atol=1e-6, rtol=1e-6)


# --- in fewer bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "mode"), [*((name, "lora") for name in ARCHITECTURES), ("llama", "all"), ("llama", "last_k")]
)
def test_in_bf16_matrices_are_cast_once_and_logprobs_are_off_by_rounding(architecture, mode):
    models = policy_models(tiny_model(architecture), mode, precision="bf16")
    nudge(models.named_parameters(), 0.1)
    _, ids, mask = prompts(LENGTHS)
    uniforms = sampling_uniforms(3, "fast", 0, len(LENGTHS), NEW)
    with models.sampling() as sampler:
        sizes: dict[str, Any] = {"rows": len(LENGTHS), "prompt_width": 7, "response_width": NEW}
        made = fast_sampler(sampler, **sizes, eos_id=EOS, pad_id=PAD)
        tokens, logprobs = made.sample(ids, mask, uniforms)
        model = sampler.model
    for block in made.decoder.blocks:
        parts = [part for part in (block.output, block.mlp) for part in part.modules() if isinstance(part, nn.Linear)]
        assert len(parts) >= 3 and {part.weight.dtype for part in parts} == {torch.bfloat16}
        assert {parameter.dtype for parameter in block.norm.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the policy itself is untouched
    gaps = []
    for row, prompt in enumerate(prompts(LENGTHS)[0]):
        response = tokens[row].tolist()
        length = response.index(EOS) + 1 if EOS in response else NEW
        gaps.append((plain_logprobs(model, prompt, response[:length]).float() - logprobs[row, :length]).abs())
    # Weights are drawn wide here, and rounding goes with them; the largest of all is 0.14.
    assert 1e-4 < float(torch.cat(gaps).mean()) < 0.02 and float(torch.cat(gaps).max()) < 0.2


# --- what does not fit ---------------------------------------------------------------------------------------------
