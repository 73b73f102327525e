"""What the loop needs of policy, reference and value network, whatever the training mode."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.batches import Rollouts
from rlhf.config import TrainableConfig, ValueConfig
from rlhf.distributed import is_sharded
from rlhf.models.concurrency import A, B, run_concurrently
from rlhf.models.features import Features, features_of
from rlhf.models.layers import sampling_head
from rlhf.models.loading import language_head
from rlhf.models.network import Again, Network
from rlhf.models.policy import Sampler, SamplerCache
from rlhf.precision import LossScaler, autocast
from rlhf.token_logprobs import measured_logprobs, pieces, trained_logprobs

Parameters = dict[str, nn.Parameter]
"""Trained parameters by name."""


class PolicyModels(ABC):
    """What the loop needs of the networks; see the module's table.

    `policy_parameters` and `value_parameters` are the trained parameters by name; where the value head sits on the
    policy it is among the former and the latter is empty, as it is without a critic. They are float32; with precision
    bf16 or fp16 every forward pass runs under autocast, but for the heads.
    """

    policy_parameters: Parameters
    value_parameters: Parameters
    switches_adapters = False
    """The networks are adapters of one base, of which one is on at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        train: TrainableConfig,
        value: ValueConfig | None,
        temperature: float,
        precision: str,
        recompute: bool,
    ) -> None:
        """
        Args:
            value: of the value network; None: there is none.
        """
        self.model = model
        self.temperature = temperature
        self.critic = value is not None
        self.value_on_policy = value is not None and value.network == "head"
        self.device = next(model.parameters()).device
        self.precision = precision
        self.scaler = LossScaler(precision)
        self.recompute = recompute
        self.language_head = language_head(model)
        self.value_head: nn.Linear | None = None
        if value is not None:
            self.value_head = nn.Linear(model.config.hidden_size, 1, device=self.device)
            nn.init.normal_(self.value_head.weight, std=value.head_init_std)
            nn.init.zeros_(self.value_head.bias)
        model.requires_grad_(False)
        self._made: list[Network] = []
        self._sampler_cache = SamplerCache()
        self.policy_parameters, self.value_parameters = self._networks(
            train, value.train if value is not None and value.network == "separate" else None
        )
        if self.value_head is not None:
            head = {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
            (self.policy_parameters if self.value_on_policy else self.value_parameters).update(head)
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)

    @abstractmethod
    def _networks(self, train: TrainableConfig, separate_value: str | None) -> tuple[Parameters, Parameters]:
        """Build policy, reference and value network from the frozen model.

        Args:
            separate_value: value.train of a value network of its own; None: there is none.

        Returns:
            What is trained, the value head left out: of the policy; of a separate value network, else empty.
        """

    @property
    @abstractmethod
    def sampler(self) -> PreTrainedModel:
        """The policy as a whole causal language model with a key-value cache."""

    @abstractmethod
    def _trunk(self, features: Features) -> Tensor | None: ...

    @abstractmethod
    def _policy_hidden(self, features: Features) -> Tensor:
        """(B, T, d) before the response tokens, as the two below."""

    @abstractmethod
    def _reference_hidden(self, features: Features) -> Tensor: ...

    @abstractmethod
    def _value_hidden(self, features: Features) -> Tensor: ...

    @contextlib.contextmanager
    def sampling(self) -> Iterator[Sampler]:
        """The policy as it is, without gradient and under its autocast."""
        with torch.no_grad(), self._autocast():
            yield Sampler(self.sampler, sampling_logits(self.language_head, self.temperature), self._sampler_cache)

    def features(self, rollouts: Rollouts) -> Features:
        """What the frozen part makes of prompts and responses; computed once per rollout."""
        features = features_of(rollouts)
        with torch.no_grad(), self._autocast():
            hidden = self._trunk(features)
        return dataclasses.replace(features, hidden=hidden)

    def policy_hidden(self, features: Features) -> Tensor:
        """(B, T, d) states before the response tokens, which the logits are made of."""
        with self._autocast():
            return self._policy_hidden(features)

    @torch.no_grad()
    def reference_hidden(self, features: Features) -> Tensor:
        """As `policy_hidden`, of the frozen initial policy."""
        with self._autocast():
            return self._reference_hidden(features)

    def policy_head(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V) float32 logits, divided by the sampling temperature."""
        return _at_temperature(float32_logits(self.language_head, hidden), self.temperature)

    @torch.no_grad()
    def reference_head(self, hidden: Tensor) -> Tensor:
        """As `policy_head`, of the frozen initial policy."""
        return _at_temperature(float32_logits(self.reference_language_head, hidden), self.temperature)

    @property
    def reference_language_head(self) -> nn.Module:
        """The policy's own where that is frozen."""
        return self.language_head

    def pieces(self, count: int) -> list[slice]:
        """range(count) of states in pieces whose logits fit into memory at once; in one where the head's weights are
        cut up among ranks, which gather them together."""
        if is_sharded(self.language_head):
            return [slice(0, count)]
        return pieces(count, self.model.config.vocab_size)

    @property
    def fallback_reason(self) -> str:
        """Why a network is measured and trained by the model's own forward pass; empty where all layers are known."""
        return next((network.fallback_reason for network in self._made if network.fallback_reason), "")

    @property
    def runs_concurrently(self) -> bool:
        """Whether `run_both` runs both at once: with a separate value network on a CPU.

        Not where the networks are adapters of one base, nor where a model's own forward pass may keep angles from call
        to call. Without such a network an update has nothing to run beside the policy, and measuring, whose logprobs
        must be those of the update to the bit, uses as many threads as it does.
        """
        separate = self.critic and not self.value_on_policy and not self.switches_adapters
        return separate and self.device.type == "cpu" and not self.fallback_reason

    def run_both(self, first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
        """What two forward or backward passes give, of two networks or of two halves of the texts.

        At once, by half of torch's threads each, where `runs_concurrently`: small matrices on two threads wait for each
        other after every product.
        """
        return run_concurrently(first, second) if self.runs_concurrently else (first(), second())

    def policy_logprobs(self, hidden: Tensor, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """(B, T) log pi of the tokens from `policy_hidden`, in chunks of logits.

        Args:
            at: (N,) int64, which of the B T positions are wanted; 0 elsewhere. None: all.
        """
        return trained_logprobs(self.language_head, hidden, tokens, temperature=self.temperature, at=at)

    def policy_logprobs_and_entropy(
        self, hidden: Tensor, tokens: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `policy_logprobs`, to the bit but without gradient, and the policy's entropy in nats."""
        return measured_logprobs(self.language_head, hidden, tokens, temperature=self.temperature, at=at)

    @torch.no_grad()
    def reference_logprobs(self, hidden: Tensor, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """As `policy_logprobs`, of the frozen initial policy."""
        head = self.reference_language_head
        return trained_logprobs(head, hidden, tokens, temperature=self.temperature, at=at)

    def values(self, features: Features) -> Tensor:
        """(B, T) float32: V of the state before each response token."""
        with self._autocast():
            hidden = self._value_hidden(features)
        return self.values_on(hidden)

    def values_on(self, hidden: Tensor) -> Tensor:
        """The value head: (B, T, d) -> (B, T)."""
        assert self.value_head is not None, "no critic"
        return self.value_head(hidden.float()).squeeze(-1)

    def named_parameters(self) -> Parameters:
        """Every trained parameter: what a checkpoint keeps."""
        return {**self.policy_parameters, **self.value_parameters}

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    def _trainable(self, base: nn.Module, *, top: bool = False, again: Again = contextlib.nullcontext) -> Network:
        """A base model as training runs it, with or without its activations kept."""
        return self._frozen(base, top=top, again=again if self.recompute else None)

    def _frozen(
        self, base: nn.Module, *, top: bool = False, whole: bool = False, again: Again | None = None
    ) -> Network:
        """A base model that is measured alone; for the arguments see `Network`."""
        self._made.append(Network(base, top=top, whole=whole, again=again))
        return self._made[-1]


def float32_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """A language head in float32 under any autocast: (..., d) -> (..., V).

    bfloat16 has steps of 0.06 at a logit of 10, which no small KL and no probability ratio survives.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())


def sampling_logits(head: nn.Module, temperature: float) -> Callable[[Tensor], Tensor]:
    """(..., d) -> (..., V) float32 logits at the temperature, for one token a row.

    A head that is held in fewer bits is cast once, when it is first asked.
    """
    made = functools.cache(lambda: sampling_head(head))
    return lambda hidden: _at_temperature(float32_logits(made(), hidden), temperature)


def _at_temperature(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature
