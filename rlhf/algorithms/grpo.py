"""Group relative policy optimisation (Shao et al. 2024), with the changes of Dr. GRPO (Liu et al. 2025) and DAPO (Yu et
al. 2025) as options: no standard deviation, other means over tokens, a higher upper clip.

What a KL term does depends on its estimator and on where it stands (arXiv 2512.21852): in the reward k1 and exact have
the gradient of KL(pi || pi_init), in the loss k2 and exact do, each for the tokens it is made of. k3 in the loss, the
paper's, has that of KL(pi_init || pi); k1 in the loss is no penalty, and k3 in the reward drives rare responses away.
None is weighted by the ratio: after the first minibatch all of them are of samples of an older policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.ppo import probability_ratio
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config.algo import GRPOConfig
from rlhf.kl import ESTIMATORS
from rlhf.masked import masked_mean, response_sums

STD_EPSILON = 1e-4
"""Added to a standard deviation, as in TRL: a group of equal rewards has advantages of 0."""


def group_mean_advantages(rewards: Tensor, group_size: int, std: str) -> Tensor:
    """A_i = (R_i - mean of the group) / (std + 1e-4), std unbiased. (B,) -> (B,).

    Args:
        std: "group", "batch" (of all rewards), or "none", which divides by nothing.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if std == "group":
        centred = centred / (groups.std(1, keepdim=True) + STD_EPSILON)
    elif std == "batch":
        centred = centred / (rewards.std() + STD_EPSILON)
    return centred.flatten()


def reduced(values: Tensor, mask: Tensor, reduction: str, totals: Totals) -> Tensor:
    """(B, T) -> (): mean over each response's tokens and then over responses ("response"), over all tokens ("token"),
    or sum over tokens and mean over responses ("sum")."""
    if reduction == "token":
        return masked_mean(values, mask, totals.tokens)
    sums = response_sums(values, mask)
    return (sums / mask.sum(1) if reduction == "response" else sums).sum() / totals.responses


class GRPO(Algorithm):
    config: GRPOConfig

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        return Signal(group_mean_advantages(rewards.sum(1), self.config.group_size, self.config.std))

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        """L = reduction of -min(rho_t A, clip(rho_t, 1 - eps, 1 + eps_high) A) + beta kl_t, the KL where it is in the
        loss."""
        config, mask = self.config, batch.mask
        assert batch.advantages is not None
        ratios, advantages = probability_ratio(logprobs, batch.old_logprobs), batch.advantages[:, None]
        losses, metrics = -advantages * ratios, {}
        if config.ratio_clip is not None:
            low, high = 1.0 - config.ratio_clip, 1.0 + (config.ratio_clip_high or config.ratio_clip)
            losses = torch.maximum(losses, -advantages * ratios.clamp(low, high))
            outside = ((ratios.detach() < low) | (ratios.detach() > high)).float()
            metrics["clip_fraction"] = masked_mean(outside, mask, totals.tokens)
        if config.kl.place == "loss":
            kl = batch.exact_kl
            if kl is None:
                kl = ESTIMATORS[config.kl.estimator](logprobs, batch.reference_logprobs)
            losses = losses + config.kl.coef * kl
            metrics["kl_in_loss"] = response_sums(kl.detach(), mask).sum() / totals.responses
        return LossOutput(reduced(losses, mask, config.reduction, totals), metrics)
