"""Proximal policy optimisation, version PPO2 (Schulman et al. 2017; Dhariwal et al. 2017).

The KL penalty is in the reward (`rewards.token_rewards`), its controller in `kl`; this file is the clipped ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import CriticAlgorithm
from rlhf.batches import LossOutput, Totals, TrainingBatch
from rlhf.config import PPOConfig
from rlhf.masked import masked_mean

MAX_LOG_RATIO = 20.0
"""The exponent is cut here, so that one wild token cannot make the loss infinite."""


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho_t = pi_theta(a_t|s_t) / pi_old(a_t|s_t), its logarithm cut at +-20. (B, T) -> (B, T)."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio_clip: float,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """The clipped surrogate: L = mean_m max(-A_t rho_t, -A_t clip(rho_t, 1 - eps, 1 + eps)).

    Args:
        logprobs, old_logprobs, advantages: (B, T).
        mask: (B, T) bool.
        ratio_clip: eps.
        num_tokens: valid tokens of the whole minibatch when these rows are a part of it.
    """
    ratio = probability_ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1.0 - ratio_clip, 1.0 + ratio_clip)
    return masked_mean(torch.maximum(-advantages * ratio, -advantages * clipped), mask, num_tokens)


class PPO(CriticAlgorithm):
    config: PPOConfig

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        clip, old = self.config.ratio_clip, batch.old_logprobs
        assert batch.advantages is not None
        loss = ppo_loss(logprobs, old, batch.advantages, batch.mask, ratio_clip=clip, num_tokens=totals.tokens)
        with torch.no_grad():
            outside = ((probability_ratio(logprobs, old) - 1.0).abs() > clip).float()
            clip_fraction = masked_mean(outside, batch.mask, totals.tokens)
        return LossOutput(loss, {"clip_fraction": clip_fraction})
