"""Pairwise proximal policy optimisation (Wu et al. 2023, arXiv 2310.00212): the policy gradient of a pair of responses.

The gradient is (R_1 - R_2) grad log(pi_1 / pi_2) / 2, which no shift of a prompt's rewards changes. Off policy it holds
with the joint ratio rho_1 rho_2 as a weight, which is kept within 1 +- eps here. (The paper clips each response's ratio
or the joint one; the former is algo=rloo with two responses. The exact form of the latter was not at hand.)
"""

from __future__ import annotations

from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config.algo import P3OConfig
from rlhf.masked import response_sums


def p3o_loss(
    logprobs: Tensor, old_logprobs: Tensor, rewards: Tensor, *, ratio_clip: float, num_pairs: float
) -> tuple[Tensor, Tensor]:
    """L = - mean_pairs 1/2 w (R_1 - R_2) log(pi_1 / pi_2), w = clip(rho_1 rho_2, 1 - eps, 1 + eps) without gradient.

    Args:
        logprobs, old_logprobs: (B,), nats of whole responses, those of a pair neighbours.
        rewards: (B,).
        ratio_clip: eps.
        num_pairs: of the whole minibatch when these rows are a part of it.

    Returns:
        The loss, and the share of pairs whose weight was clipped.
    """
    ratios = (logprobs.detach() - old_logprobs).view(-1, 2).sum(1).exp()
    weights = ratios.clamp(1.0 - ratio_clip, 1.0 + ratio_clip)
    first, second = logprobs.view(-1, 2).unbind(1)
    better = rewards.view(-1, 2)
    loss = -(weights * (better[:, 0] - better[:, 1]) * (first - second)).sum() / 2 / num_pairs
    return loss, (ratios != weights).float().sum() / num_pairs


class P3O(Algorithm):
    config: P3OConfig

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        return Signal(rewards.sum(1))

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        assert batch.advantages is not None
        responses, old = response_sums(logprobs, batch.mask), response_sums(batch.old_logprobs, batch.mask)
        clip, pairs = self.config.ratio_clip, totals.responses / 2
        loss, clipped = p3o_loss(responses, old, batch.advantages, ratio_clip=clip, num_pairs=pairs)
        return LossOutput(loss, {"clip_fraction": clipped})
