"""Generalised advantage estimation (Schulman et al. 2016) over responses of different lengths."""

from __future__ import annotations

import torch
from torch import Tensor


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
