"""Advantage-weighted regression (Peng et al. 2019) as the paper uses it: whitened advantages, no weight clip."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import CriticAlgorithm
from rlhf.batches import LossOutput, Totals, TrainingBatch
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


class AWR(CriticAlgorithm):
    config: AWRConfig

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        lam, clip = self.config.lam, self.config.weight_clip
        assert batch.advantages is not None
        loss = awr_loss(logprobs, batch.advantages, batch.mask, lam=lam, weight_clip=clip, num_tokens=totals.tokens)
        with torch.no_grad():
            weights = awr_weights(batch.advantages, lam=lam, weight_clip=clip)
            mean_weight = masked_mean(weights, batch.mask, totals.tokens)
        return LossOutput(loss, {"mean_weight": mean_weight})
