"""What algorithms with a value network share: generalised advantage estimation, whitening and the value loss."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.batches import Signal, TrainingBatch
from rlhf.masked import masked_mean, whiten


class CriticAlgorithm(Algorithm):
    """Advantages by GAE from the values, whitened over the rollout batch or each minibatch."""

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> Signal:
        assert values is not None
        settings = self.settings
        advantages, returns = generalized_advantages(
            rewards, values, mask, gamma=settings.gamma, gae_lambda=settings.gae_lambda
        )
        if settings.whiten_over == "rollout":
            advantages = whiten(advantages, mask, settings.whiten)
        return Signal(advantages, returns)

    def before_loss(self, minibatch: TrainingBatch) -> TrainingBatch:
        if self.settings.whiten_over != "minibatch":
            return minibatch
        whitened = whiten(minibatch.advantages, minibatch.mask, self.settings.whiten)
        return dataclasses.replace(minibatch, advantages=whitened)


def generalized_advantages(
    token_rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """delta_t = r_t + gamma V(s_{t+1}) - V(s_t); A_t = sum_l (gamma gae_lambda)^l delta_{t+l}; G_t = A_t + V(s_t).

    The value after a response's last token is 0: an answer ends, whether by EOS, by a stop string or by the cut at
    max_new_tokens, and nothing is bootstrapped.

    Args:
        token_rewards: (B, T), reward of each response token.
        values: (B, T), V of the state before each token.
        mask: (B, T) bool, valid tokens, a prefix of each row.

    Returns:
        advantages and returns, (B, T) each, 0 on padding.
    """
    rewards = torch.where(mask, token_rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    running = torch.zeros_like(next_value)
    for t in range(values.shape[1] - 1, -1, -1):
        # On padding reward and value are 0, so running stays 0 until a row's last valid token.
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = delta + gamma * gae_lambda * running
        advantages[:, t] = running
        next_value = values[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    value_clip: float | None = None,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """L_V = 1/2 mean_m (V_phi(s_t) - G_t)^2; PPO2 takes the larger of this and the same with V kept near V_old.

    Args:
        values, old_values, returns: (B, T).
        mask: (B, T) bool.
        value_clip: eps_v, the largest move of V from V_old in the second square; None: the first square alone.
        num_tokens: valid tokens of the whole minibatch when these rows are a part of it.
    """
    squares = (values - returns).square()
    if value_clip is not None:
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        squares = torch.maximum(squares, (near - returns).square())
    return 0.5 * masked_mean(squares, mask, num_tokens)
