"""Dual-regularised advantage regression (He et al. 2025, arXiv 2504.14177 and 2602.11523): weighted cross entropy whose
optimum is near the initial policy and near the one that sampled.

The objective E r - alpha KL(pi || pi_init) - beta KL(pi || pi_old) has its optimum at pi_init^(alpha / (alpha + beta))
pi_old^(beta / (alpha + beta)) exp(r / (alpha + beta)) / Z; over iterations that is pi_init exp(r / alpha) / Z. The
weights follow from it; the paper's constants do not stand here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.grpo import group_mean_advantages
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config.algo import DARConfig
from rlhf.masked import response_sums


def dar_log_weights(log_ratios: Tensor, advantages: Tensor, *, lam: float, lam_old: float) -> Tensor:
    """log of (pi_init / pi_old)^(alpha / (alpha + beta)) exp(A / (alpha + beta)).

    Args:
        log_ratios: (B,), log pi_init - log pi_old of whole responses.
        advantages: (B,).
        lam, lam_old: alpha and beta.
    """
    return (lam * log_ratios + advantages) / (lam + lam_old)


class DAR(Algorithm):
    config: DARConfig

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        return Signal(group_mean_advantages(rewards.sum(1), self.config.group_size, "none"))

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        """L = - mean over responses of w log pi_theta(y|x), w at most weight_clip."""
        config = self.config
        assert batch.advantages is not None
        log_ratios = response_sums(batch.reference_logprobs - batch.old_logprobs, batch.mask)
        log_weights = dar_log_weights(log_ratios, batch.advantages, lam=config.lam, lam_old=config.lam_old)
        most = math.log(config.weight_clip)
        weights = log_weights.clamp(max=most).exp()
        loss = -(weights * response_sums(logprobs, batch.mask)).sum() / totals.responses
        clipped = (log_weights > most).to(torch.float32)
        metrics = {"mean_weight": weights.sum(), "weight_clip_fraction": clipped.sum()}
        return LossOutput(loss, {name: total / totals.responses for name, total in metrics.items()})
