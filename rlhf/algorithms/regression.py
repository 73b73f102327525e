"""Regression of log-ratios on rewards, mean w (u - A / lam)^2 with u = log pi_theta - log anchor: one form, whose
switches (unit, anchor, baseline, weight) make the methods of these presets.

| preset | source | unit | anchor | baseline | weight |
| --- | --- | --- | --- | --- | --- |
| dro | verl's `dro` loss; Tinker's documentation | token | old | critic | lam / 2 |
| dro_v | Richemond et al. 2024, arXiv 2405.19107 | sequence | initial | learnt V(x) | lam / 2 |
| rebel | Gao et al. 2024, arXiv 2404.16767 | pair | old | the other response | 1 |
| pmd_mean | Kimi k1.5, arXiv 2501.12599 | sequence | old | mean of the others | lam / (2 length) |
| pmd_partition | OpenKimi's `ploo` | sequence | old | log mean exp of the others | lam / (2 length) |
| tba | Bartoldson et al. 2025, arXiv 2503.18929 (VarGrad) | sequence | initial | group's mean of r / lam - u | 1 |
| a_star_po | Brantley et al. 2025, arXiv 2505.20686 | sequence | initial | V* from samples of pi_init | lam^2 |
| oapl | arXiv 2602.19362 | sequence | old | log mean exp of the group | lam^2 |
| qrpo | Matrenok et al. 2025, arXiv 2507.08068 | sequence | initial | quantiles among samples of pi_init | lam^2 |

APA (apa.py) is the same with unit=token, anchor=initial, baseline=critic and weight=one. Gradients of weights lam^2 and
lam / 2 shrink with lam: learning rates are not comparable across lam where the optimiser is not invariant to scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import CriticAlgorithm
from rlhf.algorithms.grpo import group_mean_advantages
from rlhf.algorithms.rloo import leave_one_out
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config.regression import RegressionConfig
from rlhf.masked import masked_mean, response_sums


def soft_mean(rewards: Tensor, lam: float) -> Tensor:
    """V = lam log mean_j exp(r_j / lam) over the last dimension."""
    return lam * ((rewards / lam).logsumexp(-1) - math.log(rewards.shape[-1]))


def soft_mean_of_others(groups: Tensor, lam: float) -> Tensor:
    """`soft_mean` of the others in each row: (N, G) -> (N, G)."""
    size = groups.shape[1]
    others = torch.stack([groups[:, [j for j in range(size) if j != i]] for i in range(size)], 1)
    return soft_mean(others, lam)


def quantile_advantages(rewards: Tensor, references: Tensor, lam: float, quantile: str) -> Tensor:
    """f(F) - lam log Z, F the share of the initial policy's rewards below, of equal ones half.

    Z is that of a continuous reward, whose F is uniform under the initial policy: lam (e^(1/lam) - 1) for f = F, and
    lam / (1 + lam) for f = log F, where F is at least 1 / N.

    Args:
        rewards: (B,).
        references: (B, N).
    """
    below, equal = (compare(references, rewards[:, None]).double().mean(1) for compare in (torch.lt, torch.eq))
    share = (below + equal / 2).to(rewards.dtype)
    if quantile == "log":
        return share.clamp(min=1 / references.shape[1]).log() - lam * math.log(lam / (1 + lam))
    return share - lam * (math.log(lam) + 1 / lam + math.log1p(-math.exp(-1 / lam)))


class Regression(CriticAlgorithm):
    config: RegressionConfig

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        """r - baseline of each response, or GAE of each token; r alone where the baseline is of the residuals."""
        config = self.config
        if config.baseline == "critic":
            return super().signal(rewards, values, mask)
        scores, size, lam = rewards.sum(1), config.group_size, config.lam
        if config.baseline == "value":
            assert values is not None
            return Signal(scores - values[:, 0])
        if references is not None:
            if config.baseline == "quantile":
                return Signal(quantile_advantages(scores, references, lam, config.quantile))
            return Signal(scores - soft_mean(references, config.reference_lam or lam))
        groups = scores.view(-1, size)
        if config.baseline == "group_mean":
            return Signal(group_mean_advantages(scores, size, "none"))
        if config.baseline == "leave_one_out":
            return Signal(leave_one_out(scores, size))
        if config.baseline == "log_mean_exp":
            return Signal((groups - soft_mean(groups, lam)[:, None]).flatten())
        if config.baseline == "log_mean_exp_others":
            return Signal((groups - soft_mean_of_others(groups, lam)).flatten())
        return Signal(scores)

    def before_loss(self, minibatch: TrainingBatch) -> TrainingBatch:
        return super().before_loss(minibatch) if self.config.baseline == "critic" else minibatch

    def anchor(self, batch: TrainingBatch) -> Tensor:
        return batch.reference_logprobs if self.config.anchor == "initial" else batch.old_logprobs

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        config, mask, anchor = self.config, batch.mask, self.anchor(batch)
        assert batch.advantages is not None
        lam, scale = config.lam, {"one": 1.0, "lam_squared": config.lam**2}.get(config.weight, config.lam / 2)
        if config.unit == "token":
            advantages = batch.advantages if batch.advantages.dim() == 2 else batch.advantages[:, None]
            errors = logprobs - advantages / lam - anchor
            infeasible = (anchor + advantages / lam > 0).float()
            metrics = {"infeasible_target_fraction": masked_mean(infeasible, mask, totals.tokens)}
            return LossOutput(scale * masked_mean(errors.square(), mask, totals.tokens), metrics)
        lengths = mask.sum(1)
        log_ratios = response_sums(logprobs - anchor, mask)
        if config.unit == "sequence_mean":
            log_ratios = log_ratios / lengths
        metrics = {"log_ratio": log_ratios.detach().sum() / totals.responses}
        errors, count = log_ratios - batch.advantages / lam, float(totals.responses)
        if config.baseline == "residual":
            groups = errors.view(-1, config.group_size)
            errors = (groups - groups.detach().mean(1, keepdim=True)).flatten()
        elif config.baseline == "pair":
            first, second = errors.view(-1, 2).unbind(1)
            errors, lengths, count = first - second, lengths.view(-1, 2).sum(1), count / 2
        squares = errors.square() / lengths if config.weight == "half_lam_by_length" else errors.square()
        return LossOutput(scale * squares.sum() / count, metrics)

    def critic_loss(self, values: Tensor, batch: TrainingBatch, totals: Totals) -> Tensor:
        """Of baseline=value: L_V = 1/2 mean (r - V(x) - lam u)^2, V(x) the value before the first token.

        u is of the policy that began the update, as V in the policy's own loss is: each is fitted to the other in turn,
        and both losses are at rest where the paper's joint one is.
        """
        if self.config.baseline == "critic":
            return super().critic_loss(values, batch, totals)
        assert batch.advantages is not None and batch.old_values is not None
        rewards = batch.advantages + batch.old_values[:, 0]
        start = batch.old_logprobs if batch.start_logprobs is None else batch.start_logprobs
        log_ratios = response_sums(start - self.anchor(batch), batch.mask)
        errors = rewards - values[:, 0] - self.config.lam * log_ratios
        return 0.5 * errors.square().sum() / totals.responses
