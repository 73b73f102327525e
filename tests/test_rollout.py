"""The sampler: right frequencies, right logprobs, the same draws however rows are batched and padded, right ends."""

from __future__ import annotations

import contextlib

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from rlhf.batches import PromptBatch, pad
from rlhf.masked import token_logprobs
from rlhf.models.loading import word_tokenizer
from rlhf.random import generator, sampling_uniforms
from rlhf.rollout import generate, read_responses
from rlhf.sampling.fast import unfit
from tests.helpers import (
    ARCHITECTURES,
    EOS,
    PAD,
    SAMPLINGS,
    VOCAB,
    plain_logprobs,
    policy_logits,
    policy_models,
    sample,
    sampler_of,
    tiny_model,
    unpadded,
)

WORDS = [f"w{i:02}" for i in range(VOCAB - 3)]
"""With [PAD], [EOS] and [UNK] a vocabulary as large as the tiny models'; token 3 + i is the word wi."""


def prompt_batch(rows: list[list[int]], width: int | None = None) -> PromptBatch:
    ids, mask = pad(rows, PAD, left=True, width=width)
    return PromptBatch(ids, mask, [str(row) for row in rows], [""] * len(rows))


def random_prompts(count: int, longest: int = 6, seed: int = 0) -> list[list[int]]:
    draws = generator(seed, "prompts")
    lengths = torch.randint(1, longest + 1, (count,), generator=draws).tolist()
    return [torch.randint(2, VOCAB, (length,), generator=draws).tolist() for length in lengths]


# --- the softmax ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_have_the_frequencies_of_the_softmax(temperature, sampling):
    model, count = tiny_model(scale=0.15), 4000
    ids, mask = pad([[5, 7, 9]] * count, PAD, left=True)
    uniforms = sampling_uniforms(0, "frequencies", 0, count, 1)
    tokens, _ = sample(sampling, sampler_of(model, temperature), ids, mask, uniforms)
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 7, 9]])).logits[0, -1].double() / temperature).softmax(-1) * count
    observed = tokens[:, 0].bincount(minlength=VOCAB).double()
    often = expected >= 5  # the rest pooled, as a chi-square test wants it
    pooled = [torch.cat([t[often], t[~often].sum()[None]]).numpy() for t in (observed, expected)]
    pooled = [p[: len(p) - (pooled[1][-1] == 0)] for p in pooled]
    assert chisquare(*pooled).pvalue > 0.001
    other = expected.pow(1.3)  # a temperature 1.3 times lower: the test can tell it apart
    assert chisquare(observed.numpy(), (other / other.sum() * count).numpy()).pvalue < 1e-6


# --- real models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_logprobs_are_those_of_a_plain_forward(architecture, sampling):
    """Left-padded prompts of different lengths, through the cache, at a temperature, against single unpadded texts."""
    model, prompts = tiny_model(architecture), random_prompts(6)
    ids, mask = pad(prompts, PAD, left=True)
    uniforms = sampling_uniforms(1, "rollout", 0, 6, 8)
    tokens, logprobs = sample(sampling, sampler_of(model, temperature=0.8), ids, mask, uniforms)
    for i, prompt in enumerate(prompts):
        response = tokens[i].tolist()
        length = response.index(EOS) + 1 if EOS in response else 8
        expected = plain_logprobs(model, prompt, response[:length], temperature=0.8).float()
        torch.testing.assert_close(logprobs[i, :length], expected, atol=1e-5, rtol=1e-5)
        assert response[length:] == [PAD] * (8 - length) and logprobs[i, length:].tolist() == [0.0] * (8 - length)


def rollouts_of(models, prompts: PromptBatch, batch_size: int, sampling: str, tokens: int = 8):
    uniforms = sampling_uniforms(0, "rollout", 1, len(prompts.texts), tokens)
    tokenizer = word_tokenizer(WORDS)
    return generate(models, tokenizer, prompts, uniforms, sampling=sampling, batch_size=batch_size, stop_strings=[])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("mode", ["last_k", "lora"])
def test_neither_batching_nor_padding_changes_a_draw(mode, sampling):
    models, rows = policy_models(tiny_model(), mode), random_prompts(10)
    whole = rollouts_of(models, prompt_batch(rows), 10, sampling)
    for batch_size in (1, 3):
        parts = rollouts_of(models, prompt_batch(rows), batch_size, sampling)
        assert torch.equal(parts.response_ids, whole.response_ids) and torch.equal(parts.mask, whole.mask)
        torch.testing.assert_close(parts.sampler_logprobs, whole.sampler_logprobs, atol=1e-5, rtol=1e-5)
    wide = rollouts_of(models, prompt_batch(rows, width=15), 4, sampling)
    assert torch.equal(wide.response_ids, whole.response_ids)
    assert len({tuple(row) for row in whole.response_ids.tolist()}) > 5  # draws differ between rows


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rollouts_carry_what_the_update_will_measure(sampling):
    models, rows = policy_models(tiny_model(), "last_k", temperature=0.7), random_prompts(8)
    rollouts = rollouts_of(models, prompt_batch(rows), 3, sampling)
    with torch.no_grad():
        logits = policy_logits(models, models.features(rollouts))
    measured = torch.where(rollouts.mask, token_logprobs(logits, rollouts.response_ids), 0.0)
    torch.testing.assert_close(rollouts.sampler_logprobs, measured, atol=1e-5, rtol=1e-5)
    assert rollouts.ended.tolist() == [EOS in row for row in rollouts.response_ids.tolist()]
    texts = [" ".join(WORDS[t - 3] for t in row if t > 2) for row in unpadded(rollouts.response_ids, rollouts.mask)]
    assert rollouts.responses == texts  # [EOS] and [UNK] are special


# --- where a response ends -----------------------------------------------------------------------------------------


class Chain:
    """A language model in which every token has one successor: blocks that add nothing, between one-hot embeddings and
    a head. A stand-in for a policy, too."""

    device = torch.device("cpu")

    def __init__(self, successor: dict[int, int], vocabulary: int) -> None:
        settings = GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=64,
        )
        self.model = AutoModelForCausalLM.from_config(settings).eval()
        following = torch.tensor([successor.get(token, PAD) for token in range(vocabulary)])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.fill_(1.0 if "norm.weight" in name else 0.0)
            self.model.get_input_embeddings().weight[:, :vocabulary] = torch.eye(vocabulary)
            self.model.get_output_embeddings().weight[following, torch.arange(vocabulary)] = 100.0
        assert unfit(self.model) == ""
        self.steps = 0
        self.model.base_model.final_layer_norm.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.steps += 1

    @contextlib.contextmanager
    def sampling(self, precision=None):
        assert precision is None
        yield sampler_of(self.model)


def chain_rollouts(
    successor: dict[int, int], last_prompt_tokens: list[int], tokenizer, sampling, tokens=6, stop_strings=()
):
    prompts = prompt_batch([[9, last] for last in last_prompt_tokens])
    uniforms = sampling_uniforms(0, "rollout", 0, len(last_prompt_tokens), tokens)
    chain = Chain(successor, len(tokenizer))
    options = {"sampling": sampling, "batch_size": 2, "stop_strings": stop_strings}
    return generate(chain, tokenizer, prompts, uniforms, **options), chain  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_response_runs_through_its_first_eos_or_to_the_cut(sampling):
    successor = {5: 6, 6: 7, 7: EOS, EOS: 8, 8: 8, 10: EOS, 11: 12, 12: 11}
    rollouts, chain = chain_rollouts(successor, [5, 10, 11], word_tokenizer(WORDS), sampling)
    assert rollouts.response_ids.tolist() == [[6, 7, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [12, 11, 12, 11, 12, 11]]
    assert rollouts.mask.sum(1).tolist() == rollouts.lengths.tolist() == [3, 1, 6]
    assert rollouts.ended.tolist() == [True, True, False]
    assert rollouts.responses == ["w03 w04", "", "w09 w08 w09 w08 w09 w08"]
    assert chain.steps == 3 + 6  # the batch of the first two stops when both have ended


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_sampled_pad_token_is_a_token_like_any_other(sampling):
    # Masks go by position: pad before the EOS was sampled, and leaving it out would bias the KL.
    rollouts, _ = chain_rollouts({5: PAD, PAD: 6, 6: EOS}, [5], word_tokenizer(WORDS), sampling)
    assert rollouts.response_ids.tolist() == [[PAD, 6, EOS, PAD, PAD, PAD]]
    assert rollouts.mask.tolist() == [[True, True, True, False, False, False]]
    assert rollouts.responses == ["w03"]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_eos_in_the_last_place_ends_a_response(sampling):
    successor = {5: 6, 6: 7, 7: EOS}
    rollouts, _ = chain_rollouts(successor, [5], word_tokenizer(WORDS), sampling, tokens=3)
    assert rollouts.ended.tolist() == [True]
    rollouts, _ = chain_rollouts(successor, [5], word_tokenizer(WORDS), sampling, tokens=2)
    assert rollouts.ended.tolist() == [False] and rollouts.lengths.tolist() == [2]


PIECES = ["[PAD]", "[EOS]", " yes", " no", "\n", "Hum", "an", ": go", " on", "Assistant:", "an:", ":", " Human", "x"]


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces that decode by being put together, so that a stop string can lie across several of them."""
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", clean_up_tokenization_spaces=False
    )


STOPS = ["Human:", "Assistant:"]


def read(*pieces: str, stops: list[str] = STOPS) -> tuple[int, bool, str]:
    tokens = torch.tensor([[PIECES.index(piece) for piece in pieces]])
    lengths, stopped, texts = read_responses(piece_tokenizer(), tokens, torch.ones_like(tokens).bool(), stops)
    return int(lengths[0]), bool(stopped[0]), texts[0]


@pytest.mark.parametrize(
    ("pieces", "length", "stopped", "text"),
    [
        ((" yes", " no", "[EOS]"), 3, False, " yes no"),
        ((" yes", "\n", "Assistant:", " no", "[EOS]"), 3, True, " yes"),  # what follows was never part of it
        ((" yes", "\n", "Hum", "an", ":", " no", "[EOS]"), 5, True, " yes"),  # across three tokens
        ((" yes", "Hum", "an", ": go", " on"), 4, True, " yes"),  # completed within a token that holds more
        ((" yes", " Human", " no"), 3, False, " yes Human no"),  # not completed
        (("Hum", "an:"), 2, True, ""),  # nothing but a stop string
        (("[EOS]",), 1, False, ""),
        ((" yes", "Hum", "an:", "Assistant:"), 3, True, " yes"),  # the first of two
        ((" yes", "Hum", "an", ":", "[EOS]"), 4, True, " yes"),  # just before the EOS
    ],
)
def test_a_stop_string_ends_a_response_at_the_token_that_completes_it(pieces, length, stopped, text):
    assert read(*pieces) == (length, stopped, text)


def test_of_two_overlapping_stop_strings_the_one_that_is_complete_first_counts():
    # After "x" and "Hum" the stop "um" is complete; "xHuman" would start earlier and is never finished by then.
    assert read("x", "Hum", "an", " no", stops=["xHuman", "um"]) == (2, True, "xH")


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_stop_string_ends_a_rollout(sampling):
    yes, newline, hum, an, colon, no = (PIECES.index(p) for p in (" yes", "\n", "Hum", "an", ":", " no"))
    successor = {13: yes, yes: newline, newline: hum, hum: an, an: colon, colon: no, no: no}
    rollouts, _ = chain_rollouts(successor, [13, no], piece_tokenizer(), sampling, tokens=8, stop_strings=["Human:"])
    assert rollouts.response_ids.tolist() == [[yes, newline, hum, an, colon, 0, 0, 0], [no] * 8]
    assert rollouts.mask.tolist() == [[True] * 5 + [False] * 3, [True] * 8]
    assert rollouts.ended.tolist() == [True, False]
    assert rollouts.responses == [" yes", " no" * 8]
    assert bool((rollouts.sampler_logprobs[0, 5:] == 0).all())


# --- in fewer bits -------------------------------------------------------------------------------------------------
