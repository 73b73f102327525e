"""Direct preference optimisation (Rafailov et al. 2023) and IPO (Azar et al. 2023), from a data set's pairs.

The preferred answer is the data set's chosen one; no score has a part in the losses. Log-probabilities are summed over
a response, in IPO too (TRL divides them by the length there).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config.algo import PreferenceConfig
from rlhf.masked import response_sums


def dpo_losses(margins: Tensor, *, lam: float) -> Tensor:
    """L = - log sigmoid(beta (u_w - u_l)) of each pair. (pairs,) -> (pairs,).

    Args:
        margins: u_w - u_l, nats; u = log pi_theta(y|x) - log pi_init(y|x).
        lam: beta.
    """
    return -F.logsigmoid(lam * margins)


def ipo_losses(margins: Tensor, *, lam: float) -> Tensor:
    """L = (u_w - u_l - 1 / (2 tau))^2 of each pair, as `dpo_losses`; lam is tau."""
    return (margins - 0.5 / lam).square()


class Preferences(Algorithm):
    """What both share: the margin of each pair, the first of which is the chosen answer."""

    config: PreferenceConfig

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        """1 for the chosen answer, -1 for the rejected one: (B,)."""
        return Signal(rewards.new_tensor([1.0, -1.0]).repeat(len(rewards) // 2))

    @abstractmethod
    def losses(self, margins: Tensor) -> Tensor:
        """(pairs,) -> (pairs,)."""

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        assert batch.advantages is not None
        log_ratios = response_sums(logprobs - batch.reference_logprobs, batch.mask)
        margins = (batch.advantages * log_ratios).view(-1, 2).sum(1)
        pairs, found = totals.responses / 2, margins.detach()
        metrics = {"margin": found.sum() / pairs, "pair_accuracy": (found > 0).to(torch.float32).sum() / pairs}
        return LossOutput(self.losses(margins).sum() / pairs, metrics)


class DPO(Preferences):
    def losses(self, margins: Tensor) -> Tensor:
        return dpo_losses(margins, lam=self.config.lam)


class IPO(Preferences):
    def losses(self, margins: Tensor) -> Tensor:
        return ipo_losses(margins, lam=self.config.lam)
