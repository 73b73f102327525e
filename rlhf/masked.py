"""Means, variances and whitening over valid positions; logprobs of given tokens; where a response ends."""

from __future__ import annotations

import torch
from torch import Tensor

WHITEN_EPSILON = 1e-8
"""At a variance below this every advantage counts as the same, and nothing is divided."""


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Sum over valid positions divided by their number; by `count` where these are a part of a larger batch.

    Args:
        values: (B, T) float.
        mask: (B, T) bool. Values outside it do not count; for a gradient they must be finite all the same.
        count: valid positions of the whole minibatch; None: those of `mask`.
    """
    total = torch.where(mask, values, 0.0).sum()
    return total / (mask.sum() if count is None else count)


def response_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over a response's valid tokens: (B, T), (B, T) bool -> (B,)."""
    return torch.where(mask, values, 0.0).sum(1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Biased variance (division by the number of valid positions) over (B, T)."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def whiten(values: Tensor, mask: Tensor, how: str) -> Tensor:
    """Advantages at unit standard deviation over all valid positions of (B, T); 0 on padding.

    Args:
        how: "full" shifts to zero mean too, "scale" divides alone, "none" leaves the values as they are.
    """
    if how == "none":
        return torch.where(mask, values, 0.0)
    mean = masked_mean(values, mask)
    variance = masked_variance(values, mask)
    scale = torch.where(variance > WHITEN_EPSILON, variance + WHITEN_EPSILON, 1.0).rsqrt()
    shift = mean if how == "full" else torch.zeros_like(mean)
    return torch.where(mask, (values - shift) * scale, 0.0)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits) at `tokens`, without holding a second (..., V) tensor in float32.

    Args:
        logits: (B, T, V) in any float type, at the sampling temperature.
        tokens: (B, T) int64.

    Returns:
        (B, T) float32.
    """
    logits = logits.float()
    picked = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return picked - logits.logsumexp(-1)


def finite_logprobs(logits: Tensor) -> Tensor:
    """log softmax(logits) in float32, with the lowest finite number for -inf: times a probability of 0 it gives 0."""
    return logits.float().log_softmax(-1).clamp(min=torch.finfo(torch.float32).min)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats: (B, T, V) -> (B, T); a logit of -inf adds 0."""
    logprobs = finite_logprobs(logits)
    return -(logprobs.exp() * logprobs).sum(-1)


def mask_through_first(tokens: Tensor, token_id: int) -> tuple[Tensor, Tensor]:
    """The positions up to and including the first `token_id` of each row, and whether the row has one.

    Args:
        tokens: (B, T) int64.

    Returns:
        (B, T) bool mask and (B,) bool.
    """
    hits = tokens == token_id
    before = hits.cumsum(-1) - hits.long()  # occurrences strictly before each position
    return before == 0, hits.any(-1)
