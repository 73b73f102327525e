"""What sampling and evaluation need of a policy, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.batches import Rollouts
from rlhf.models.features import Features


@dataclass
class SamplerCache:
    """Where `rlhf.sampling` keeps what it has made of a policy, a GPU's captured graphs, from rollout to rollout."""

    content: object = None


@dataclass(frozen=True)
class Sampler:
    """What `rlhf.sampling` runs."""

    model: PreTrainedModel
    """A causal language model, whose hidden states matter alone."""
    logits: Callable[[Tensor], Tensor]
    """Hidden states (..., d) -> (..., V) float32 logits at the sampling temperature; -inf where the policy never
    goes."""
    cache: SamplerCache = field(default_factory=SamplerCache)
    """The policy's own; its tensors stay where they are, but for those that `rlhf.sampling` casts."""


class Policy(Protocol):
    """A policy beside the initial one that its KL is measured to: the networks of a run, a pair of loaded models, or
    another sampler on top of either."""

    @property
    def device(self) -> torch.device: ...

    def pieces(self, count: int) -> list[slice]:
        """range(count) of states in pieces whose logits fit into memory at once."""
        ...

    def sampling(self) -> AbstractContextManager[Sampler]:
        """The policy as it is, without gradient and under its autocast."""
        ...

    def features(self, rollouts: Rollouts) -> Features:
        """What the two methods below take."""
        ...

    def policy_hidden(self, features: Features) -> Tensor:
        """(B, T, d) states before the response tokens."""
        ...

    def policy_head(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V) logits at the sampling temperature; -inf where the policy never goes."""
        ...

    def reference_hidden(self, features: Features) -> Tensor:
        """As `policy_hidden`, of the initial policy."""
        ...

    def reference_head(self, hidden: Tensor) -> Tensor:
        """As `policy_head`, of the initial policy; finite."""
        ...
