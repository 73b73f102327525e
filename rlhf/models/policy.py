"""What sampling and evaluation need of a policy, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhf.batches import Rollouts
from rlhf.models.base import Features


class Policy(Protocol):
    """A policy beside the initial one that its KL is measured to: the networks of a run, a pair of loaded models, or
    another sampler on top of either."""

    @property
    def device(self) -> torch.device: ...

    def sampling(self) -> AbstractContextManager[Callable[..., Any]]:
        """A causal language model with a key-value cache for `rollout.sample`, without gradient.

        Its output's `hidden_states` are those before the logits, alone, where the policy is a language model.
        """
        ...

    def features(self, rollouts: Rollouts) -> Features:
        """What the two methods below take."""
        ...

    def policy_logits(self, features: Features) -> Tensor:
        """(B, T, V) logits of the response tokens at the sampling temperature; -inf where the policy never goes."""
        ...

    def reference_logits(self, features: Features) -> Tensor:
        """As `policy_logits`, of the initial policy; finite."""
        ...


class LanguagePolicy(Policy, Protocol):
    """A policy that is a language model as it stands, whose hidden states other heads can read."""

    @property
    def temperature(self) -> float: ...

    @property
    def language_head(self) -> nn.Module: ...

    def policy_logits_and_hidden(self, features: Features) -> tuple[Tensor, Tensor]:
        """As `policy_logits`, and the (B, T, d) hidden states before the response tokens that they are made of."""
        ...
