"""REINFORCE leave-one-out (Ahmadian et al. 2024), with PPO's clip on the ratio of a whole response.

The KL penalty is in the reward, before the baseline (`rewards.token_rewards`). No division by length or by a standard
deviation. The paper takes one step a batch, where the ratio is 1 and the clip idle; over several epochs a whole
response's ratio leaves 1 +- eps after few nats, and `clip_fraction` says how many have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config.algo import RLOOConfig

MAX_LOG_RATIO = 40.0
"""Of a whole response; e^40 still has a square in float32, as the norm of a gradient needs."""


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """A_i = R_i - 1/(G-1) sum_{j != i} R_j over the G responses to a prompt, which are neighbours. (B,) -> (B,)."""
    groups = rewards.view(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def rloo_loss(ratios: Tensor, advantages: Tensor, *, ratio_clip: float, num_responses: int) -> Tensor:
    """L = 1/N sum_i max(-A_i rho_i, -A_i clip(rho_i, 1 - eps, 1 + eps)).

    Args:
        ratios: (B,), rho = pi_theta(y|x) / pi_old(y|x) of whole responses, at most e^40.
        advantages: (B,).
        ratio_clip: eps.
        num_responses: N, of the whole minibatch when these rows are a part of it.
    """
    clipped = ratios.clamp(1.0 - ratio_clip, 1.0 + ratio_clip)
    return torch.maximum(-advantages * ratios, -advantages * clipped).sum() / num_responses


class RLOO(Algorithm):
    config: RLOOConfig

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        return Signal(leave_one_out(rewards.sum(1), self.config.group_size))

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        clip, count = self.config.ratio_clip, totals.responses
        assert batch.advantages is not None
        responses, old = (torch.where(batch.mask, x, 0.0).sum(1) for x in (logprobs, batch.old_logprobs))
        ratios = (responses - old).clamp(max=MAX_LOG_RATIO).exp()
        loss = rloo_loss(ratios, batch.advantages, ratio_clip=clip, num_responses=count)
        outside = ((ratios.detach() - 1.0).abs() > clip).float()
        return LossOutput(loss, {"clip_fraction": outside.sum() / count})
