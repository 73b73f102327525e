"""Advantage-weighted regression (Peng et al. 2019) as the paper uses it: whitened advantages, no weight clip."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.batches import LossOutput, TrainingBatch
from rlhf.config import AWRConfig
from rlhf.masked import masked_mean


def awr_weights(advantages: Tensor, *, lam: float, weight_clip: float | None = None) -> Tensor:
    """exp(A / lambda), at most `weight_clip` where one is given (the original AWR clips at 20). (B, T) -> (B, T)."""
    weights = (advantages / lam).exp()
    return weights if weight_clip is None else weights.clamp(max=weight_clip)


def awr_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    lam: float,
    weight_clip: float | None = None,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """Cross entropy of the sampled tokens, weighted by their advantage (eq. 6).

    L = - mean_m exp(A_t / lambda) log pi_theta(a_t|s_t); its population minimiser is pi_old exp(A / lambda) / Z.

    Args:
        logprobs, advantages: (B, T).
        mask: (B, T) bool.
        lam: lambda: larger weighs the samples more evenly.
        num_tokens: valid tokens of the whole minibatch when these rows are a part of it.
    """
    weights = awr_weights(advantages, lam=lam, weight_clip=weight_clip)
    return masked_mean(-weights * logprobs, mask, num_tokens)


def awr(batch: TrainingBatch, logprobs: Tensor, config: AWRConfig, num_tokens: Tensor) -> LossOutput:
    """AWR's loss on a micro-batch; see `awr_loss`."""
    loss = awr_loss(
        logprobs,
        batch.advantages,
        batch.mask,
        lam=config.lam,
        weight_clip=config.weight_clip,
        num_tokens=num_tokens,
    )
    with torch.no_grad():
        weights = awr_weights(batch.advantages, lam=config.lam, weight_clip=config.weight_clip)
        mean_weight = masked_mean(weights, batch.mask, num_tokens)
    return LossOutput(loss, {"mean_weight": mean_weight})
