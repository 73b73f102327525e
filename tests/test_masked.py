"""Masked statistics against hand-worked numbers and numpy over the valid values alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf.masked import entropy, masked_mean, masked_variance, token_logprobs, whiten
from rlhf.random import generator

VALUES = torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
# Valid: 1, 2, 6. Mean 3; variance ((1-3)^2 + (2-3)^2 + (6-3)^2) / 3 = 14/3.


def test_mean_and_variance_of_three_valid_values():
    assert masked_mean(VALUES, MASK).item() == 3.0
    assert masked_variance(VALUES, MASK).item() == pytest.approx(14 / 3, rel=1e-6)


def test_a_mean_over_a_larger_batch_adds_up_over_its_parts():
    # 9 / 5 where the minibatch has five valid tokens in all, three of them here.
    assert masked_mean(VALUES, MASK, 5).item() == pytest.approx(1.8)
    parts = [masked_mean(VALUES[i : i + 1], MASK[i : i + 1], MASK.sum()) for i in range(2)]
    assert sum(parts).item() == pytest.approx(3.0)


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), -1e30])
def test_what_stands_on_padding_has_no_influence(filler):
    dirty = torch.where(MASK, VALUES, filler)
    assert masked_mean(dirty, MASK).item() == 3.0
    assert masked_variance(dirty, MASK).item() == pytest.approx(14 / 3, rel=1e-6)
    for how in ("full", "scale", "none"):
        assert torch.equal(whiten(dirty, MASK, how), whiten(VALUES, MASK, how))


def test_whitening_of_three_values():
    root = math.sqrt(14 / 3)
    full = [[-2 / root, -1 / root, 0], [3 / root, 0, 0]]
    scale = [[1 / root, 2 / root, 0], [6 / root, 0, 0]]
    torch.testing.assert_close(whiten(VALUES, MASK, "full"), torch.tensor(full))
    torch.testing.assert_close(whiten(VALUES, MASK, "scale"), torch.tensor(scale))
    assert torch.equal(whiten(VALUES, MASK, "none"), torch.tensor([[1.0, 2.0, 0.0], [6.0, 0.0, 0.0]]))


def test_whitened_values_against_numpy():
    values = torch.randn(7, 11, generator=generator(0, "values")) * 5 + 3
    mask = torch.arange(11) < torch.tensor([[1], [11], [4], [7], [2], [9], [5]])
    valid = values.numpy()[mask.numpy()].astype(np.float64)
    white = whiten(values, mask, "full")
    np.testing.assert_allclose(white[mask], (valid - valid.mean()) / valid.std(), rtol=1e-4, atol=1e-5)
    assert bool((white[~mask] == 0).all())


@pytest.mark.parametrize("how", ["full", "scale"])
def test_equal_advantages_stay_small_when_whitened(how):
    # Nothing tells these tokens apart. A division by the root of an epsilon must not blow them up.
    assert whiten(torch.full((4, 1), 0.5), torch.ones(4, 1, dtype=torch.bool), how).abs().max() <= 0.5


def test_logprobs_of_tokens_by_hand():
    # softmax(0, ln 2, ln 5) = 1/8, 2/8, 5/8.
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).expand(1, 3, 3)
    expected = torch.tensor([[1 / 8, 2 / 8, 5 / 8]]).log()
    torch.testing.assert_close(token_logprobs(logits, torch.tensor([[0, 1, 2]])), expected)
    by_hand = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    torch.testing.assert_close(entropy(logits), torch.full((1, 3), by_hand))
