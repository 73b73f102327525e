"""Implicit language Q-learning (Snell et al. 2022), with the terms of trlX's version, which the paper compares with.

One or two Q heads over the vocabulary and a V head sit on the policy's hidden states. Nothing here is a policy
gradient: the language model learns by cross entropy and through the heads, and what follows the score is the sampler
softmax(top_k(log pi + beta (min Q - V))) of `rlhf.algorithms.ilql_heads`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.ilql_heads import ILQLHeads, ILQLOutputs, ILQLSampler, load_heads
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config import ILQLConfig
from rlhf.masked import masked_mean
from rlhf.models.policy import Policy


def following_values(values: Tensor, mask: Tensor) -> Tensor:
    """V(s_{t+1}), which is 0 after a response's last token: (B, T), (B, T) bool -> (B, T)."""
    known = torch.where(mask, values, 0.0)
    return torch.cat([known[:, 1:], torch.zeros_like(known[:, :1])], 1)


def td_loss(
    q: Tensor,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """L_Q = mean_m (Q(s_t, a_t) - r_t - gamma V(s_{t+1}))^2, where V gets no gradient.

    Args:
        q, rewards, values: (B, T); of one head at the tokens taken, of those tokens, of the states before them.
        mask: (B, T) bool.
        gamma: discount per token.
        num_tokens: valid tokens of the whole minibatch when these rows are a part of it.
    """
    target = rewards + gamma * following_values(values.detach(), mask)
    return masked_mean((q - target).square(), mask, num_tokens)


def expectile_loss(
    values: Tensor, target_q: Tensor, mask: Tensor, *, tau: float, num_tokens: Tensor | float | None = None
) -> Tensor:
    """L_V = mean_m |tau - 1(u_t < 0)| u_t^2 with u_t = min Q_target(s_t, a_t) - V(s_t). Kostrikov et al. 2022.

    Args:
        values, target_q: (B, T); the targets without gradient.
        mask: (B, T) bool.
        tau: expectile; above 0.5 V leans to the better of the tokens that the data has in a state.
        num_tokens: as in `td_loss`.
    """
    difference = target_q - values
    weights = torch.where(difference < 0, 1.0 - tau, tau)
    return masked_mean(weights * difference.square(), mask, num_tokens)


def cql_loss(q_logprobs: Tensor, mask: Tensor, *, num_tokens: Tensor | float | None = None) -> Tensor:
    """L_CQL = - mean_m log softmax(Q(s_t, .))[a_t], which holds down the Q of tokens that the data does not have.

    Args:
        q_logprobs: (B, T), of one head.
        mask: (B, T) bool.
        num_tokens: as in `td_loss`.
    """
    return masked_mean(-q_logprobs, mask, num_tokens)


def awac_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, *, beta: float, num_tokens: Tensor | float | None = None
) -> Tensor:
    """L_AWAC = - mean_m exp(beta (min Q_target - V)) log pi_theta(a_t|s_t); plain cross entropy at beta = 0.

    Args:
        logprobs, advantages: (B, T); the advantages without gradient.
        mask: (B, T) bool.
        num_tokens: as in `td_loss`.
    """
    return masked_mean(-(beta * advantages).exp() * logprobs, mask, num_tokens)


class ILQL(Algorithm):
    config: ILQLConfig
    heads: ILQLHeads

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        """The token rewards: min Q - V, the advantage, is worked out anew in every loss."""
        return Signal(rewards=rewards)

    def loss(self, batch: TrainingBatch, outputs: ILQLOutputs, totals: Totals) -> LossOutput:
        """L = sum_heads L_Q + L_V + cql_scale sum_heads L_CQL + awac_scale L_AWAC on a micro-batch."""
        config, rewards, mask, num_tokens = self.config, batch.rewards, batch.mask, totals.tokens
        assert rewards is not None
        advantages = (outputs.target_q - outputs.values).detach()
        td = [td_loss(q, rewards, outputs.values, mask, gamma=config.gamma, num_tokens=num_tokens) for q in outputs.q]
        q_loss = torch.stack(td).sum()
        v_loss = expectile_loss(outputs.values, outputs.target_q, mask, tau=config.tau, num_tokens=num_tokens)
        cql = torch.stack([cql_loss(logprobs, mask, num_tokens=num_tokens) for logprobs in outputs.q_logprobs]).sum()
        awac = awac_loss(outputs.logprobs, advantages, mask, beta=config.awac_beta, num_tokens=num_tokens)
        loss = q_loss + v_loss + config.cql_scale * cql + config.awac_scale * awac
        metrics = {
            "q_loss": q_loss,
            "value_loss": v_loss,
            "cql_loss": cql,
            "awac_loss": awac,
            "target_q": masked_mean(outputs.target_q, mask, num_tokens),
            "advantage": masked_mean(advantages, mask, num_tokens),
        }
        return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})

    def after_step(self, step: int) -> None:
        if step % self.config.sync_every == 0:
            self.heads.sync(self.config.polyak)

    def policies(self, policy: Policy) -> dict[str, Policy]:
        """The sampler at every beta of `algo.betas`."""
        return {
            f"beta_{beta:g}": ILQLSampler(policy, self.heads, beta=beta, top_k=self.config.top_k)
            for beta in self.config.betas
        }

    def build_heads(self, width: int, vocabulary: int, *, init_std: float, device: torch.device) -> None:
        self.heads = ILQLHeads(width, vocabulary, two_qs=self.config.two_qs, init_std=init_std, device=device)

    def load_heads(self, folder: str, width: int, vocabulary: int, device: torch.device) -> None:
        self.heads = load_heads(folder, width, vocabulary, device)
