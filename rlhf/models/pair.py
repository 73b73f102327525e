"""Two finished models, the policy that is measured and the initial one, as `Policy`: nothing is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.batches import Rollouts
from rlhf.control_tokens import eos_id, pad_id
from rlhf.models.base import float32_logits, sampling_logits
from rlhf.models.features import Features, features_of
from rlhf.models.loading import ModelError, language_head
from rlhf.models.network import Network
from rlhf.models.policy import Sampler, SamplerCache
from rlhf.token_logprobs import pieces


class PolicyPair:
    """`reference` may be `policy` itself, whose KL is then 0.

    Args:
        autocast: makes the context in which every forward pass runs.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        *,
        temperature: float,
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.temperature = temperature
        self.device: torch.device = next(policy.parameters()).device
        self.language_head = language_head(policy)
        self._policy_run, self._reference_run = Network(policy.base_model), Network(reference.base_model)
        self._autocast = autocast
        self._sampler_cache = SamplerCache()

    @property
    def fallback_reason(self) -> str:
        """As `PolicyModels.fallback_reason`."""
        return self._policy_run.fallback_reason or self._reference_run.fallback_reason

    @contextlib.contextmanager
    def sampling(self) -> Iterator[Sampler]:
        with torch.no_grad(), self._autocast():
            yield Sampler(self.policy, sampling_logits(self.language_head, self.temperature), self._sampler_cache)

    def features(self, rollouts: Rollouts) -> Features:
        """The whole texts: the two models need not share anything."""
        return features_of(rollouts)

    def pieces(self, count: int) -> list[slice]:
        return pieces(count, self.policy.config.vocab_size)

    def policy_hidden(self, features: Features) -> Tensor:
        return self._hidden(self._policy_run, features)

    def policy_head(self, hidden: Tensor) -> Tensor:
        return float32_logits(self.language_head, hidden) / self.temperature

    def reference_hidden(self, features: Features) -> Tensor:
        return self._hidden(self._reference_run, features)

    @torch.no_grad()
    def reference_head(self, hidden: Tensor) -> Tensor:
        return float32_logits(language_head(self.reference), hidden) / self.temperature

    @torch.no_grad()
    def _hidden(self, run: Network, features: Features) -> Tensor:
        with self._autocast():
            return run(features)


def check_same_tokens(mine: PreTrainedTokenizerBase, initial: PreTrainedTokenizerBase, path: str) -> None:
    """A KL needs two distributions over the same tokens; a policy that was loaded has a logit for each and no more.

    Raises:
        ModelError: the tokenizers differ, and with them the logits.
    """
    if (mine.get_vocab(), eos_id(mine), pad_id(mine)) != (initial.get_vocab(), eos_id(initial), pad_id(initial)):
        raise ModelError(
            f"evaluation.policy: {path} has another tokenizer than the initial policy; give the `model` it came from"
        )
