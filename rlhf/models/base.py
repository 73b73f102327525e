"""What the loop needs of policy, reference and value network, whatever the training mode."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlhf.batches import Rollouts
from rlhf.config import TrainableConfig, ValueConfig
from rlhf.models.loading import language_head
from rlhf.models.recompute import recomputing
from rlhf.precision import LossScaler, autocast

Parameters = dict[str, nn.Parameter]
"""Trained parameters by name."""


@dataclass(frozen=True)
class Features:
    """A batch of whole texts as the trained parts take it. B rows, L = P + T positions."""

    input_ids: Tensor
    """(B, L) int64: left-padded prompt, then right-padded response."""
    mask: Tensor
    """(B, L) bool."""
    hidden: Tensor | None
    """(B, L, d) float: the trunk's output; None where nothing is shared."""
    prompt_width: int
    """P."""

    def rows(self, index: Tensor) -> Features:
        hidden = None if self.hidden is None else self.hidden[index]
        return Features(self.input_ids[index], self.mask[index], hidden, self.prompt_width)


def positions_of(mask: Tensor) -> Tensor:
    """Position ids under left padding: the first real token is at 0. (B, L) bool -> (B, L) int64."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


class PolicyModels(ABC):
    """What the loop needs of the networks; see the module's table.

    `policy_parameters` and `value_parameters` are the trained parameters by name; where the value head sits on the
    policy it is among the former and the latter is empty. They are float32; with precision bf16 or fp16 every
    forward pass runs under autocast, but for the heads.
    """

    policy_parameters: Parameters
    value_parameters: Parameters

    def __init__(
        self,
        model: PreTrainedModel,
        train: TrainableConfig,
        value: ValueConfig,
        temperature: float,
        precision: str,
        recompute: bool,
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.value_on_policy = value.network == "head"
        self.device = next(model.parameters()).device
        self.precision = precision
        self.scaler = LossScaler(precision)
        self.recompute = recompute
        self.language_head = language_head(model)
        self.value_head = nn.Linear(model.config.hidden_size, 1, device=self.device)
        nn.init.normal_(self.value_head.weight, std=value.head_init_std)
        nn.init.zeros_(self.value_head.bias)
        model.requires_grad_(False)
        self.policy_parameters, self.value_parameters = self._networks(train, value)
        head = {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        (self.policy_parameters if self.value_on_policy else self.value_parameters).update(head)
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)

    @abstractmethod
    def _networks(self, train: TrainableConfig, value: ValueConfig) -> tuple[Parameters, Parameters]:
        """Build policy, reference and value network from the frozen model.

        Returns:
            What is trained, the value head left out: of the policy; of a separate value network, else empty.
        """

    @property
    @abstractmethod
    def sampler(self) -> PreTrainedModel:
        """The policy as a whole causal language model with a key-value cache."""

    @abstractmethod
    def _trunk(self, input_ids: Tensor, mask: Tensor) -> Tensor | None: ...

    @abstractmethod
    def _policy_hidden(self, features: Features) -> Tensor: ...

    @abstractmethod
    def _reference_hidden(self, features: Features) -> Tensor: ...

    @abstractmethod
    def _value_hidden(self, features: Features) -> Tensor: ...

    @contextlib.contextmanager
    def sampling(self) -> Iterator[Sampler]:
        """The policy for `rollout.sample`, without gradient."""
        with torch.no_grad(), self._autocast():
            yield Sampler(self.sampler)

    def features(self, rollouts: Rollouts) -> Features:
        """What the frozen part makes of prompts and responses; computed once per rollout."""
        input_ids = torch.cat([rollouts.prompt_ids, rollouts.response_ids], 1)
        mask = torch.cat([rollouts.prompt_mask, rollouts.mask], 1)
        with torch.no_grad(), self._autocast():
            hidden = self._trunk(input_ids, mask)
        return Features(input_ids, mask, hidden, rollouts.prompt_ids.shape[1])

    def policy_logits(self, features: Features) -> Tensor:
        """(B, T, V) logits of the response tokens, divided by the sampling temperature."""
        return self._logits(self._policy_hidden, features)

    @torch.no_grad()
    def reference_logits(self, features: Features) -> Tensor:
        """As `policy_logits`, of the frozen initial policy."""
        return self._logits(self._reference_hidden, features)

    def values(self, features: Features) -> Tensor:
        """(B, T) float32: V of the state before each response token."""
        with self._autocast():
            hidden = self._value_hidden(features)
        return self.value_head(before_response(hidden, features).float()).squeeze(-1)

    def policy_logits_and_values(self, features: Features) -> tuple[Tensor, Tensor]:
        """Both from one forward pass, where the value head sits on the policy; two passes otherwise."""
        if not self.value_on_policy:
            return self.policy_logits(features), self.values(features)
        logits, hidden = self.policy_logits_and_hidden(features)
        return logits, self.value_head(hidden.float()).squeeze(-1)

    def policy_logits_and_hidden(self, features: Features) -> tuple[Tensor, Tensor]:
        """As `policy_logits`, and the (B, T, d) hidden states before the response tokens that they are made of."""
        with self._autocast():
            hidden = before_response(self._policy_hidden(features), features)
        return float32_logits(self.language_head, hidden) / self.temperature, hidden

    def named_parameters(self) -> Parameters:
        """Every trained parameter: what a checkpoint keeps."""
        return {**self.policy_parameters, **self.value_parameters}

    def _logits(self, hidden_of: Callable[[Features], Tensor], features: Features) -> Tensor:
        with self._autocast():
            hidden = before_response(hidden_of(features), features)
        return float32_logits(self.language_head, hidden) / self.temperature

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    def _trainable(
        self, base: nn.Module, again: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    ) -> nn.Module:
        """A base model as training runs it, with or without its activations kept."""
        return recomputing(base, again) if self.recompute else base


def before_response(hidden: Tensor, features: Features) -> Tensor:
    """Hidden states that predict the response tokens: (B, L, d) -> (B, T, d), contiguous (bf16 heads are slow else)."""
    return hidden[:, features.prompt_width - 1 : -1].contiguous()


def float32_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """A language head in float32 under any autocast: (..., d) -> (..., V).

    bfloat16 has steps of 0.06 at a logit of 10, which no small KL and no probability ratio survives.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())


class Sampler(nn.Module):
    """A causal language model as `rollout.sample` calls it, with `float32_logits`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, logits_to_keep: int = 0, **arguments: Any) -> CausalLMOutputWithPast:
        """`hidden_states` are those that the logits are made of, alone."""
        output = self.model.base_model(**arguments)
        hidden = output.last_hidden_state[:, -logits_to_keep:]
        logits: Any = float32_logits(language_head(self.model), hidden)
        return CausalLMOutputWithPast(
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=(hidden,),  # type: ignore[arg-type]
        )


def run_base(base: nn.Module, features: Features, hidden: Tensor | None) -> Tensor:
    """Final hidden states (B, L, d) of a base model, from tokens or from the trunk's output."""
    start = {"input_ids": features.input_ids} if hidden is None else {"inputs_embeds": hidden}
    output = base(
        **start, attention_mask=features.mask.long(), position_ids=positions_of(features.mask), use_cache=False
    )
    return output.last_hidden_state
