"""What an algorithm is: how scored responses become a signal to learn from, and a loss. `CriticAlgorithm` is what those
with a value network share: generalised advantage estimation, whitening and the value loss.

What an algorithm must be given, a critic or groups of responses, its config declares (`rlhf.config.AlgoConfig`).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config import AdvantagesConfig, AlgoConfig, CriticAlgoConfig
from rlhf.masked import masked_mean, whiten
from rlhf.models.policy import Policy


class Heads(Protocol):
    """What an algorithm trains on the policy's hidden states, together with the policy."""

    def outputs(self, logprobs: Tensor, hidden: Tensor, tokens: Tensor, at: Tensor | None) -> Any:
        """What the loss takes in place of the logprobs.

        Args:
            logprobs: (B, T) log pi of the tokens, 0 on padding.
            hidden: (B, T, d) of the states before them.
            tokens: (B, T).
            at: (N,) int64, which of the B T positions hold tokens; None: all.
        """
        ...

    def trained_parameters(self) -> list[nn.Parameter]: ...

    def named(self) -> dict[str, nn.Parameter]:
        """Everything that a checkpoint keeps."""
        ...

    def save(self, folder: Path) -> None: ...


class Algorithm(ABC):
    """One for a run; nothing but `heads` changes as it trains."""

    config: AlgoConfig
    heads: Heads | None = None

    def __init__(self, config: Any, advantages: AdvantagesConfig) -> None:
        """
        Args:
            config: the algorithm's own dataclass in `rlhf.config`.
        """
        self.config = config
        self.settings = advantages

    @abstractmethod
    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        """What the whole rollout batch teaches.

        Args:
            rewards: (B, T): the score on the last token, less the KL penalty on each; 0 on padding. The responses to
                one prompt are neighbours, `config.group_size` of them.
            values: (B, T), V of the state before each token, 0 on padding; None without a critic.
            mask: (B, T) bool.
            references: (B, N), what N responses of the initial policy to each row's prompt are worth; None where
                `config.reference_samples` is 0.
        """

    def before_loss(self, minibatch: TrainingBatch) -> TrainingBatch:
        """The minibatch with what depends on which responses share it, such as whitening."""
        return minibatch

    @abstractmethod
    def loss(self, batch: TrainingBatch, logprobs: Any, totals: Totals, /) -> LossOutput:
        """The policy's loss on a micro-batch, a function of its arguments alone.

        Args:
            logprobs: (B, T), the policy's of the sampled tokens, with gradient; with heads, what they make of them.
            totals: what means divide by.
        """

    def critic_loss(self, values: Tensor, batch: TrainingBatch, totals: Totals) -> Tensor:
        """The value network's loss on a micro-batch; for algorithms whose config declares a critic.

        Args:
            values: (B, T), fresh, with gradient.
        """
        assert batch.old_values is not None and batch.returns is not None
        clip, tokens = (
            getattr(self.config, "value_clip", None),
            totals.tokens,
        )  # one of its own may have no such setting
        return value_loss(values, batch.old_values, batch.returns, batch.mask, value_clip=clip, num_tokens=tokens)

    def after_step(self, step: int) -> None:  # noqa: B027  # most algorithms have nothing to do
        """Called after every optimizer step that moved the weights, with the steps done so far."""

    def policies(self, policy: Policy) -> dict[str, Policy]:
        """What an evaluation measures by name, the headline first; "" is the language model alone."""
        return {"": policy}

    def build_heads(self, width: int, vocabulary: int, *, init_std: float, device: torch.device) -> None:
        """Draw `heads` for a policy of these d and V; for algorithms whose config declares some."""
        raise NotImplementedError

    def load_heads(self, folder: str, width: int, vocabulary: int, device: torch.device) -> None:
        """`heads` as a run left them in its final/.

        Raises:
            ModelError: none there, damaged, or of another model.
        """
        raise NotImplementedError


class CriticAlgorithm(Algorithm):
    """Advantages by GAE from the values, whitened over the rollout batch or each minibatch."""

    config: CriticAlgoConfig

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        assert values is not None
        settings = self.settings
        advantages, returns = generalized_advantages(
            rewards, values, mask, gamma=settings.gamma, gae_lambda=settings.gae_lambda
        )
        if settings.whiten_over == "rollout":
            advantages = whiten(advantages, mask, settings.whiten)
        return Signal(advantages, returns)

    def before_loss(self, minibatch: TrainingBatch) -> TrainingBatch:
        if self.settings.whiten_over != "minibatch":
            return minibatch
        assert minibatch.advantages is not None
        whitened = whiten(minibatch.advantages, minibatch.mask, self.settings.whiten)
        return dataclasses.replace(minibatch, advantages=whitened)


def generalized_advantages(
    token_rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """delta_t = r_t + gamma V(s_{t+1}) - V(s_t); A_t = sum_l (gamma gae_lambda)^l delta_{t+l}; G_t = A_t + V(s_t).

    The value after a response's last token is 0: an answer ends, whether by EOS, by a stop string or by the cut at
    max_new_tokens, and nothing is bootstrapped.

    Args:
        token_rewards: (B, T), reward of each response token.
        values: (B, T), V of the state before each token.
        mask: (B, T) bool, valid tokens, a prefix of each row.

    Returns:
        advantages and returns, (B, T) each, 0 on padding.
    """
    rewards = torch.where(mask, token_rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    running = torch.zeros_like(next_value)
    for t in range(values.shape[1] - 1, -1, -1):
        # On padding reward and value are 0, so running stays 0 until a row's last valid token.
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = delta + gamma * gae_lambda * running
        advantages[:, t] = running
        next_value = values[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    value_clip: float | None = None,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """L_V = 1/2 mean_m (V_phi(s_t) - G_t)^2; PPO2 takes the larger of this and the same with V kept near V_old.

    Args:
        values, old_values, returns: (B, T).
        mask: (B, T) bool.
        value_clip: eps_v, the largest move of V from V_old in the second square; None: the first square alone.
        num_tokens: valid tokens of the whole minibatch when these rows are a part of it.
    """
    squares = (values - returns).square()
    if value_clip is not None:
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        squares = torch.maximum(squares, (near - returns).square())
    return 0.5 * masked_mean(squares, mask, num_tokens)
