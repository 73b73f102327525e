"""The three training modes: all parameters, the last k blocks, LoRA. The package's docstring has their table."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.config import TrainableConfig
from rlhf.errors import reason
from rlhf.models.base import Parameters, PolicyModels
from rlhf.models.features import Features
from rlhf.models.held import to_float32
from rlhf.models.loading import ModelError, language_head
from rlhf.models.split import check_split, copy_top, joined, split, top_parameters


def _named(role: str, module: nn.Module) -> Parameters:
    return {f"{role}.{name}": parameter for name, parameter in module.named_parameters()}


def _named_top(role: str, top: nn.Module) -> Parameters:
    return {f"{role}.{i}": parameter for i, parameter in enumerate(top_parameters(top))}


def _trainable_top(top: nn.Module) -> nn.Module:
    """A copy to be trained, in float32 whatever the original is held in."""
    twin = copy_top(top)
    to_float32(top_parameters(twin))
    return twin


def _trainable_base(base: nn.Module) -> nn.Module:
    twin = copy.deepcopy(base)
    to_float32(twin.parameters())
    return twin


class AllParameters(PolicyModels):
    """Mode all: three whole models."""

    def _networks(self, train: TrainableConfig, separate_value: str | None) -> tuple[Parameters, Parameters]:
        self.reference = copy.deepcopy(self.model)
        self.value_base = copy.deepcopy(self.model.base_model) if separate_value else None
        self._policy_run = self._trainable(self.model.base_model)
        self._reference_run = self._frozen(self.reference.base_model)
        self._value_run = None if self.value_base is None else self._trainable(self.value_base)
        return _named("policy", self.model), {} if self.value_base is None else _named("value", self.value_base)

    @property
    def sampler(self) -> PreTrainedModel:
        return self.model

    def _trunk(self, features: Features) -> None:
        return None

    def _policy_hidden(self, features: Features) -> Tensor:
        return self._policy_run(features)

    def _reference_hidden(self, features: Features) -> Tensor:
        return self._reference_run(features)

    @property
    def reference_language_head(self) -> nn.Module:
        return language_head(self.reference)

    def _value_hidden(self, features: Features) -> Tensor:
        return self._policy_hidden(features) if self._value_run is None else self._value_run(features)


class LastBlocks(PolicyModels):
    """Mode last_k: one frozen trunk, three tops. With value.train=all the value network is a whole copy instead."""

    def _networks(self, train: TrainableConfig, separate_value: str | None) -> tuple[Parameters, Parameters]:
        base = self.model.base_model
        self.trunk, self.reference_top = split(base, train.last_k)
        check_split(base, self.trunk, self.reference_top)
        self._trunk_run = self._frozen(self.trunk, whole=True)
        self.policy_top = _trainable_top(self.reference_top)
        self._policy_run = self._trainable(self.policy_top, top=True)
        self._reference_run = self._frozen(self.reference_top, top=True)
        self._joined = joined(self.model, self.trunk, self.policy_top)
        self.value_top: nn.Module | None = None
        self.value_base: nn.Module | None = None
        self._value_run = self._policy_run
        trained_value: Parameters = {}
        if separate_value == "all":
            self.value_base = _trainable_base(base)
            self._value_run = self._trainable(self.value_base)
            trained_value = _named("value", self.value_base)
        elif separate_value:
            self.value_top = _trainable_top(self.reference_top)
            self._value_run = self._trainable(self.value_top, top=True)
            trained_value = _named_top("value", self.value_top)
        return _named_top("policy", self.policy_top), trained_value

    @property
    def sampler(self) -> PreTrainedModel:
        return self._joined

    def _trunk(self, features: Features) -> Tensor:
        return self._trunk_run(features)

    def _policy_hidden(self, features: Features) -> Tensor:
        return self._policy_run(features)

    def _reference_hidden(self, features: Features) -> Tensor:
        return self._reference_run(features)

    def _value_hidden(self, features: Features) -> Tensor:
        return self._value_run(features)


class LoRA(PolicyModels):
    """Mode lora: one frozen base, an adapter each for policy and value network; the reference has them off."""

    switches_adapters = True

    def _networks(self, train: TrainableConfig, separate_value: str | None) -> tuple[Parameters, Parameters]:
        # Copied before adapters are put in.
        self.value_base = _trainable_base(self.model.base_model) if separate_value == "all" else None
        self._value_run = None if self.value_base is None else self._trainable(self.value_base)
        self.merge_adapters = train.merge_adapters
        self._active = ""
        adapters = lora_config(train, self.model, "model.train")
        with adapting("model.train"):
            adapted = get_peft_model(self.model, copy.deepcopy(adapters), adapter_name="policy")
        assert isinstance(adapted, PeftModel)
        self.peft = adapted
        names = ["policy"]
        if separate_value == "as_policy":
            self.peft.add_adapter("value", adapters)
            names.append("value")
        self._runs = {
            adapter: self._trainable(self.model.base_model, again=lambda adapter=adapter: self._using(adapter))
            for adapter in names
        }
        self._reference_run = self._frozen(self.model.base_model)
        trained = {n: p for n, p in self.peft.named_parameters() if "lora_" in n}
        to_float32(trained.values())
        trained_value = {n: p for n, p in trained.items() if ".value." in n}
        if self.value_base is not None:
            trained_value = _named("value", self.value_base)
        return {n: p for n, p in trained.items() if ".policy." in n}, trained_value

    def _use(self, adapter: str) -> None:
        """Switch adapters. peft freezes the inactive one, which would drop gradients of a graph already recorded."""
        if adapter == self._active:
            return
        self.peft.set_adapter(adapter)
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)
        self._active = adapter

    @contextlib.contextmanager
    def _using(self, adapter: str) -> Iterator[None]:
        """For activations that are computed again after the other adapter was switched on."""
        self._use(adapter)
        yield

    @property
    def sampler(self) -> PreTrainedModel:
        self._use("policy")
        return self.model

    def _trunk(self, features: Features) -> None:
        return None

    def _policy_hidden(self, features: Features) -> Tensor:
        self._use("policy")
        return self._runs["policy"](features)

    def _reference_hidden(self, features: Features) -> Tensor:
        with self.peft.disable_adapter():
            hidden = self._reference_run(features)
        self._active = ""  # peft has frozen an adapter on its way back
        return hidden

    def _value_hidden(self, features: Features) -> Tensor:
        if self.value_on_policy:
            return self._policy_hidden(features)
        if self._value_run is not None:
            return self._value_run(features)
        self._use("value")
        return self._runs["value"](features)


@contextlib.contextmanager
def adapting(option: str) -> Iterator[None]:
    """Turn what peft raises where it cannot adapt a layer into one line.

    Args:
        option: the section of the config that asks for adapters, as "model.train".

    Raises:
        ModelError: it did.
    """
    try:
        yield
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{option}.lora_targets: {reason(error)}; name other layers, or use another mode") from error


def lora_config(train: TrainableConfig, model: PreTrainedModel, option: str) -> LoraConfig:
    """peft's settings; without dropout, since rollouts and updates must see one network.

    Args:
        model: that gets the adapters.
        option: the section of the config that `train` is.

    Raises:
        ModelError: lora_targets names what is no linear layer of the blocks: a head, whose adapter nothing would read,
            or nothing at all.
    """
    inside = set(model.base_model.modules())
    layers = [name for name, x in model.named_modules() if isinstance(x, (nn.Linear, Conv1D)) and x in inside]
    for target in train.lora_targets or []:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ModelError(
                f"{option}.lora_targets: {target} is no linear layer in the model's blocks; "
                f"they have {', '.join(known) or 'none'}"
            )
    return LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,  # type: ignore[arg-type]  # peft scales by alpha / r, any number
        lora_dropout=0.0,
        target_modules=train.lora_targets or "all-linear",
        fan_in_fan_out=any(
            isinstance(module, Conv1D) for module in inside
        ),  # GPT-2's linear layers, whose weights are W^T
        task_type="CAUSAL_LM",
    )
