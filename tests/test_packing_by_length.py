"""optimization.pack_by_length: micro-batches of neighbours in length without their padding, and the same numbers."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

import rlhf.models.network as network
from rlhf.algorithms import algorithm_of
from rlhf.evaluation import policy_distance
from rlhf.kl import exact_kl
from rlhf.masked import entropy
from rlhf.models.features import Features, features_of, micro_batches
from rlhf.update import accumulate_gradients
from tests.helpers import (
    MODES,
    nudge,
    policy_logits,
    policy_models,
    random_rollouts,
    reference_logits,
    tiny_model,
)
from tests.test_update import gradients, prepared, run_update, settings

PROMPT_LENGTHS, RESPONSE_LENGTHS = [5, 1, 3, 2, 6], [4, 6, 1, 2, 3]


def some_features(width: int = 2) -> Features:
    """Hidden states that name their row and column."""
    features = features_of(random_rollouts(PROMPT_LENGTHS, RESPONSE_LENGTHS))
    rows, columns = features.mask.shape
    hidden = torch.stack([torch.arange(rows)[:, None].expand(rows, columns), torch.arange(columns).expand(rows, -1)], 2)
    return dataclasses.replace(features, hidden=hidden.float())


def test_neighbours_in_length_go_together_and_ties_stay_in_order():
    features = some_features()  # lengths in all 9, 7, 4, 4, 9
    index = torch.arange(5)
    parts = micro_batches(index, features, 2, by_length=True)
    assert [part.tolist() for part in parts] == [[2, 3], [1, 0], [4]]
    assert [part.tolist() for part in micro_batches(index, features, 2, by_length=False)] == [[0, 1], [2, 3], [4]]
    some = torch.tensor([4, 3, 0])  # some rows, in an order of their own
    assert [part.tolist() for part in micro_batches(some, features, 2, by_length=True)] == [[3, 4], [0]]
    assert [part.tolist() for part in micro_batches(some, features, 2, by_length=False)] == [[4, 3], [0]]


def test_trimmed_features_lose_the_columns_that_are_padding_in_every_row():
    features = some_features()
    part = features.rows(torch.tensor([3, 2]))  # prompts 2 and 3 of 6, responses 2 and 1 of 6
    trimmed = part.trimmed()
    assert trimmed.prompt_width == 3 and trimmed.input_ids.shape == (2, 5)
    assert torch.equal(trimmed.input_ids, part.input_ids[:, 3:8]) and torch.equal(trimmed.mask, part.mask[:, 3:8])
    assert torch.equal(trimmed.tokens, part.tokens[:, :2])
    assert trimmed.hidden is not None and trimmed.hidden[:, :, 1].tolist() == [[3, 4, 5, 6, 7]] * 2
    assert trimmed.hidden[:, 0, 0].tolist() == [3, 2]
    assert int(trimmed.mask.sum()) == int(part.mask.sum()) == 2 + 2 + 3 + 1
    assert (trimmed.prompt_lengths.tolist(), trimmed.response_lengths.tolist()) == ([2, 3], [2, 1])
    again = trimmed.trimmed()
    assert torch.equal(again.input_ids, trimmed.input_ids) and again.prompt_width == 3


def test_positions_of_response_tokens_are_those_of_the_mask():
    features = some_features()  # responses of 4, 6, 1, 2 and 3 tokens in 6 columns
    found = features.response_positions()
    assert found is not None and found.tolist() == [0, 1, 2, 3, *range(6, 12), 12, 18, 19, 24, 25, 26]
    assert torch.equal(found, features.mask[:, features.prompt_width :].flatten().nonzero().squeeze(1))
    assert features.rows(torch.tensor([1, 1])).response_positions() is None


@pytest.mark.parametrize(
    ("algo", "mode", "network"),
    [
        *(("apa", mode, "separate") for mode in MODES),
        ("ppo", "lora", "head"),
        ("ppo", "all", "head"),
        ("awr", "last_k", "head"),
    ],
)
def test_measured_columns_gradients_and_metrics_are_those_of_padded_micro_batches(algo, mode, network):
    results = []
    for by_length in (False, True):
        run = settings(algo, "optimization.micro_batch_size=2", f"optimization.pack_by_length={by_length}")
        models, _, measured, batch = prepared(run, mode, network=network)
        metrics = accumulate_gradients(
            run, algorithm_of(run), models, batch.rows(torch.tensor([4, 0, 7, 13, 1, 5, 8, 15])), measured.features
        )
        results.append((measured, gradients(models), metrics))
    (padded, expected, theirs), (packed, found, ours) = results
    for name in ("old_logprobs", "reference_logprobs", "values", "entropy"):
        torch.testing.assert_close(getattr(packed, name), getattr(padded, name), atol=1e-5, rtol=1e-5)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert set(ours) == set(theirs) and ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_padding_falls_and_no_token_is_lost(monkeypatch, mode):
    seen: Counter[str] = Counter()
    states = network.states

    def counting(decoder, features, *given, **named):
        seen.update(positions=features.mask.numel(), tokens=int(features.mask.sum()))
        return states(decoder, features, *given, **named)

    monkeypatch.setattr(network, "states", counting)
    counts = []
    for by_length in (False, True):
        run = settings("apa", f"optimization.pack_by_length={by_length}", "optimization.minibatch_size=16")
        seen.clear()
        models, _, measured, batch = prepared(run, mode)
        run_update(run, models, batch, measured)
        counts.append(dict(seen))
    padded, packed = counts
    assert packed["tokens"] == padded["tokens"]
    saved = padded["positions"] - packed["positions"]
    assert saved > 0.3 * (padded["positions"] - padded["tokens"])


@pytest.mark.parametrize("mode", MODES)
def test_the_distance_of_policies_is_measured_by_length_too(mode):
    models, rollouts = policy_models(tiny_model(), mode), random_rollouts(PROMPT_LENGTHS, RESPONSE_LENGTHS)
    nudge(models.named_parameters(), 0.1)
    with torch.no_grad():
        features = models.features(rollouts)
        logits, initial = policy_logits(models, features), reference_logits(models, features)
    kl, entropies = policy_distance(models, rollouts, 2)
    torch.testing.assert_close(kl.float(), torch.where(rollouts.mask, exact_kl(logits, initial), 0.0).float())
    torch.testing.assert_close(entropies, torch.where(rollouts.mask, entropy(logits), 0.0))
    assert float(kl.max()) > 1e-3
