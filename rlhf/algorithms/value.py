"""The value loss that every algorithm shares."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.masked import masked_mean


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    value_clip: float | None = None,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """L_V = 1/2 mean_m (V_phi(s_t) - G_t)^2; PPO2 takes the larger of this and the same with V held near V_old.

    Args:
        values, old_values, returns: (B, T).
        mask: (B, T) bool.
        value_clip: eps_v, the largest move of V from V_old in the second square; None: the first square alone.
        num_tokens: valid tokens of the whole minibatch when these rows are a part of it.
    """
    squares = (values - returns).square()
    if value_clip is not None:
        held = old_values + (values - old_values).clamp(-value_clip, value_clip)
        squares = torch.maximum(squares, (held - returns).square())
    return 0.5 * masked_mean(squares, mask, num_tokens)
