"""GAE against hand-worked numbers and against the double sum of its definition, row by row."""

from __future__ import annotations

import pytest
import torch

from rlhf.algorithms.algorithm import generalized_advantages
from rlhf.random import generator


def slow_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l delta_{t+l} of one response, as the definition writes it; V after the end is 0."""
    last = len(rewards) - 1
    deltas = [rewards[t] + gamma * (values[t + 1] if t < last else 0.0) - values[t] for t in range(last + 1)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(last + 1 - t)) for t in range(last + 1)]


def test_three_tokens_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # delta = (0.25 - 0.5, 0.75 - 0.25, 1 - 0.75) = (-0.25, 0.5, 0.25); with lambda 0.5:
    # A_3 = 0.25, A_2 = 0.5 + 0.125, A_1 = -0.25 + 0.3125
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.5)
    assert advantages.tolist() == [[0.0625, 0.625, 0.25]]
    assert returns.tolist() == [[0.5625, 0.875, 1.0]]


def test_lambda_1_gives_the_reward_to_go_and_lambda_0_one_step():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, returns = generalized_advantages(rewards, values, mask, gamma=0.5, gae_lambda=1.0)
    assert returns.tolist() == [[1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4.0]]
    advantages, _ = generalized_advantages(rewards, values, mask, gamma=0.5, gae_lambda=0.0)
    assert advantages.tolist() == [[1 + 0.5 * 20 - 10, 2 + 0.5 * 30 - 20, 4.0 - 30]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_ragged_responses_against_the_double_sum(gamma, lam):
    lengths = [1, 7, 3, 5, 1, 7]
    rewards, values = torch.randn(2, len(lengths), 7, generator=generator(0, "gae"), dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for i, length in enumerate(lengths):
        slow = slow_advantages(rewards[i, :length].tolist(), values[i, :length].tolist(), gamma, lam)
        assert advantages[i, :length].tolist() == pytest.approx(slow, abs=1e-12)
        slow_returns = [a + float(v) for a, v in zip(slow, values[i, :length], strict=True)]
        assert returns[i, :length].tolist() == pytest.approx(slow_returns, abs=1e-12)
    assert bool((advantages[~mask] == 0).all()) and bool((returns[~mask] == 0).all())


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
def test_what_stands_on_padding_has_no_influence(filler):
    mask = torch.arange(5) < torch.tensor([[2], [5], [1]])
    rewards, values = torch.randn(2, 3, 5, generator=generator(1, "gae"))
    clean = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    dirty = generalized_advantages(
        torch.where(mask, rewards, filler), torch.where(mask, values, filler), mask, gamma=1.0, gae_lambda=0.95
    )
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
