"""What an algorithm is: how scored responses become a signal to learn from, and a loss.

What it must be given, a critic or groups of responses, its config declares (`rlhf.config.AlgoConfig`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config import AdvantagesConfig
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

    heads: Heads | None = None

    def __init__(self, config: Any, advantages: AdvantagesConfig) -> None:
        """
        Args:
            config: the algorithm's own dataclass in `rlhf.config`.
        """
        self.config = config
        self.settings = advantages

    @abstractmethod
    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor) -> Signal:
        """What the whole rollout batch teaches.

        Args:
            rewards: (B, T): the score on the last token, less the KL penalty on each; 0 on padding. The responses to
                one prompt are neighbours, `config.group_size` of them.
            values: (B, T), V of the state before each token, 0 on padding; None without a critic.
            mask: (B, T) bool.
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
