"""The three training modes: all parameters, the last k blocks, LoRA. The package's docstring has their table."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.config import TrainableConfig, ValueConfig
from rlhf.models.base import Features, Parameters, PolicyModels, before_response, run_base
from rlhf.models.loading import language_head
from rlhf.models.split import check_split, copy_top, joined, split, top_parameters


def _named(role: str, module: nn.Module) -> Parameters:
    return {f"{role}.{name}": parameter for name, parameter in module.named_parameters()}


def _named_top(role: str, top: nn.Module) -> Parameters:
    return {f"{role}.{i}": parameter for i, parameter in enumerate(top_parameters(top))}


class AllParameters(PolicyModels):
    """Mode all: three whole models."""

    def _networks(self, train: TrainableConfig, value: ValueConfig) -> tuple[Parameters, Parameters]:
        self.reference = copy.deepcopy(self.model)
        self.value_base = None if self.value_on_policy else copy.deepcopy(self.model.base_model)
        return _named("policy", self.model), {} if self.value_base is None else _named("value", self.value_base)

    @property
    def sampler(self) -> PreTrainedModel:
        return self.model

    def _trunk(self, input_ids: Tensor, mask: Tensor) -> None:
        return None

    def _policy_hidden(self, features: Features) -> Tensor:
        return run_base(self.model.base_model, features, None)

    def _reference_hidden(self, features: Features) -> Tensor:
        return run_base(self.reference.base_model, features, None)

    @torch.no_grad()
    def reference_logits(self, features: Features) -> Tensor:
        with self._autocast():
            hidden = before_response(self._reference_hidden(features), features)
            return language_head(self.reference)(hidden) / self.temperature

    def _value_hidden(self, features: Features) -> Tensor:
        return self._policy_hidden(features) if self.value_base is None else run_base(self.value_base, features, None)


class LastBlocks(PolicyModels):
    """Mode last_k: one frozen trunk, three tops. With value.train=all the value network is a whole copy instead."""

    def _networks(self, train: TrainableConfig, value: ValueConfig) -> tuple[Parameters, Parameters]:
        base = self.model.base_model
        self.trunk, self.reference_top = split(base, train.last_k)
        check_split(base, self.trunk, self.reference_top)
        self.policy_top = copy_top(self.reference_top)
        self._joined = joined(self.model, self.trunk, self.policy_top)
        self.value_top: nn.Module | None = None
        self.value_base: nn.Module | None = None
        trained_value: Parameters = {}
        if value.network == "separate" and value.train == "all":
            self.value_base = copy.deepcopy(base)
            trained_value = _named("value", self.value_base)
        elif value.network == "separate":
            self.value_top = copy_top(self.reference_top)
            trained_value = _named_top("value", self.value_top)
        return _named_top("policy", self.policy_top), trained_value

    @property
    def sampler(self) -> PreTrainedModel:
        return self._joined

    def _trunk(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        return run_base(self.trunk, Features(input_ids, mask, None, 0), None)

    def _policy_hidden(self, features: Features) -> Tensor:
        return run_base(self.policy_top, features, features.hidden)

    def _reference_hidden(self, features: Features) -> Tensor:
        return run_base(self.reference_top, features, features.hidden)

    def _value_hidden(self, features: Features) -> Tensor:
        if self.value_base is not None:
            return run_base(self.value_base, features, None)
        top = self.policy_top if self.value_top is None else self.value_top
        return run_base(top, features, features.hidden)


class LoRA(PolicyModels):
    """Mode lora: one frozen base, an adapter each for policy and value network; the reference has them off."""

    def _networks(self, train: TrainableConfig, value: ValueConfig) -> tuple[Parameters, Parameters]:
        own_base = value.network == "separate" and value.train == "all"
        self.value_base = copy.deepcopy(self.model.base_model) if own_base else None  # before adapters are put in
        adapted = get_peft_model(self.model, lora_config(train), adapter_name="policy")
        assert isinstance(adapted, PeftModel)
        self.peft = adapted
        if value.network == "separate" and not own_base:
            self.peft.add_adapter("value", lora_config(train))
        adapters = {n: p for n, p in self.peft.named_parameters() if "lora_" in n}
        trained_value = {n: p for n, p in adapters.items() if ".value." in n}
        if self.value_base is not None:
            trained_value = _named("value", self.value_base)
        return {n: p for n, p in adapters.items() if ".policy." in n}, trained_value

    def _use(self, adapter: str) -> None:
        """Switch adapters. peft freezes the inactive one, which would drop gradients of a graph already recorded."""
        self.peft.set_adapter(adapter)
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)

    @property
    def sampler(self) -> PreTrainedModel:
        self._use("policy")
        return self.model

    def _trunk(self, input_ids: Tensor, mask: Tensor) -> None:
        return None

    def _policy_hidden(self, features: Features) -> Tensor:
        self._use("policy")
        return run_base(self.model.base_model, features, None)

    def _reference_hidden(self, features: Features) -> Tensor:
        with self.peft.disable_adapter():
            return run_base(self.model.base_model, features, None)

    def _value_hidden(self, features: Features) -> Tensor:
        if self.value_on_policy:
            return self._policy_hidden(features)
        if self.value_base is not None:
            return run_base(self.value_base, features, None)
        self._use("value")
        return run_base(self.model.base_model, features, None)


def lora_config(train: TrainableConfig) -> LoraConfig:
    """peft's settings; without dropout, since rollouts and updates must see one network."""
    return LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,  # type: ignore[arg-type]  # peft scales by alpha / r, any number
        lora_dropout=0.0,
        target_modules=train.lora_targets or "all-linear",
        task_type="CAUSAL_LM",
    )
