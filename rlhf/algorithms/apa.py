"""Advantage-Induced Policy Alignment (Zhu et al. 2023).

What the paper does, and the released code does not: the squared loss runs at all (the code stops at an undefined
name). There is no importance ratio, no clip and no KL term in the reward: the anchor log pi_init holds the policy.
"""

from __future__ import annotations

from torch import Tensor

from rlhf.algorithms.algorithm import CriticAlgorithm
from rlhf.batches import LossOutput, Totals, TrainingBatch
from rlhf.config import APAConfig
from rlhf.masked import masked_mean


def apa_loss(
    logprobs: Tensor,
    anchor_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    lam: float,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """Squared distance to the advantage-induced target policy, in log-probabilities (eq. 9).

    L = mean_m (log pi_theta(a_t|s_t) - A_t / lambda - log pi_init(a_t|s_t))^2

    Args:
        logprobs, anchor_logprobs, advantages: (B, T); nats, nats, the unit that whitening leaves.
        mask: (B, T) bool.
        lam: lambda, on the advantage's side: larger stays closer to pi_init.
        num_tokens: valid tokens of the whole minibatch when these rows are a part of it.
    """
    error = logprobs - advantages / lam - anchor_logprobs
    return masked_mean(error.square(), mask, num_tokens)


class APA(CriticAlgorithm):
    config: APAConfig

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        lam, initial = self.config.lam, self.config.anchor == "initial"
        anchor = batch.reference_logprobs if initial else batch.old_logprobs
        assert batch.advantages is not None
        loss = apa_loss(logprobs, anchor, batch.advantages, batch.mask, lam=lam, num_tokens=totals.tokens)
        # A target log pi_init + A / lambda above 0 is where no probability can be.
        infeasible = masked_mean((anchor + batch.advantages / lam > 0).float(), batch.mask, totals.tokens)
        return LossOutput(loss, {"infeasible_target_fraction": infeasible})
