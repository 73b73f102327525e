"""The three training modes: from the initial policy to its networks. The package's docstring has their table."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.config import TrainableConfig, ValueConfig
from rlhf.errors import reason
from rlhf.models.families import BLOCKS, EMBEDDING_NORM, FINAL_NORM, LEARNED_POSITIONS, attribute
from rlhf.models.hub import ModelError
from rlhf.models.layers import to_float32, with_modules
from rlhf.models.loading import language_head
from rlhf.models.network import Network
from rlhf.models.policy import Networks, Parameters, PolicyModels

KINDS = ("layer_types", "attention_layers")
"""What configs call the list of what each block's attention sees: Qwen, Mistral; GPT-Neo."""


def build_models(
    model: PreTrainedModel,
    train: TrainableConfig,
    value: ValueConfig | None,
    *,
    temperature: float,
    precision: str,
    recompute: bool = False,
) -> PolicyModels:
    """The networks of one run from its initial policy. Seed torch before: heads and adapters are random.

    Args:
        value: of the value network; None: there is none.
        recompute: compute activations again in the backward pass (hardware.gradient_checkpointing).
    """
    head = None
    if value is not None:
        head = nn.Linear(model.config.hidden_size, 1, device=next(model.parameters()).device)
        nn.init.normal_(head.weight, std=value.head_init_std)
        nn.init.zeros_(head.bias)
    model.requires_grad_(False)
    separate = value.train if value is not None and value.network == "separate" else None
    networks = MODES[train.mode](model, train, separate, recompute)
    return PolicyModels(model, networks, head, temperature=temperature, precision=precision)


def _all_parameters(model: PreTrainedModel, train: TrainableConfig, value: str | None, recompute: bool) -> Networks:
    """Three whole models.

    Args:
        value: value.train of a separate value network; None: there is none.
    """
    reference = copy.deepcopy(model)
    value_network, value_parameters = _whole_value(model.base_model, recompute) if value else (None, {})
    return Networks(
        sampler=model,
        policy=Network(model.base_model, recompute=recompute),
        reference=Network(reference.base_model),
        reference_head=language_head(reference),
        value=value_network,
        policy_parameters=_named("policy", model),
        value_parameters=value_parameters,
    )


def _last_blocks(model: PreTrainedModel, train: TrainableConfig, value: str | None, recompute: bool) -> Networks:
    """One frozen trunk, three tops. With value.train=all the value network is a whole copy instead."""
    base = model.base_model
    trunk, reference = split(base, train.last_k)
    _check_split(base, trunk, reference)
    policy = _trainable_top(reference)
    value_network, value_parameters = None, {}
    if value == "all":
        value_network, value_parameters = _whole_value(base, recompute)
    elif value:
        value_top = _trainable_top(reference)
        value_network = Network(value_top, top=True, recompute=recompute)
        value_parameters = _numbered("value", top_parameters(value_top))
    return Networks(
        sampler=_joined(model, trunk, policy),
        policy=Network(policy, top=True, recompute=recompute),
        reference=Network(reference, top=True),
        reference_head=language_head(model),
        trunk=Network(trunk, whole=True),
        value=value_network,
        policy_parameters=_numbered("policy", top_parameters(policy)),
        value_parameters=value_parameters,
    )


def _lora(model: PreTrainedModel, train: TrainableConfig, value: str | None, recompute: bool) -> Networks:
    """One frozen base, an adapter each for policy and value network; the reference has them off."""
    whole_value = _whole_value(model.base_model, recompute) if value == "all" else None  # before adapters are put in
    settings = lora_config(train, model, "model.train")
    with adapting("model.train"):
        adapted = get_peft_model(model, copy.deepcopy(settings), adapter_name="policy")
    assert isinstance(adapted, PeftModel)
    if value == "as_policy":
        adapted.add_adapter("value", settings)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    to_float32(trained.values())
    switch = _Switch(adapted, trained.values())
    network = partial(Network, model.base_model)
    value_network = network(recompute=recompute, within=lambda: switch.on("value")) if value == "as_policy" else None
    value_parameters = {name: parameter for name, parameter in trained.items() if ".value." in name}
    if whole_value is not None:
        value_network, value_parameters = whole_value
    return Networks(
        sampler=model,
        policy=network(recompute=recompute, within=lambda: switch.on("policy")),
        reference=network(within=switch.off),
        reference_head=language_head(model),
        value=value_network,
        policy_parameters={name: parameter for name, parameter in trained.items() if ".policy." in name},
        value_parameters=value_parameters,
        adapters=adapted,
        merge_adapters=train.merge_adapters,
    )


MODES: dict[str, Callable[[PreTrainedModel, TrainableConfig, str | None, bool], Networks]] = {
    "all": _all_parameters,
    "last_k": _last_blocks,
    "lora": _lora,
}


def _named(role: str, module: nn.Module) -> Parameters:
    return {f"{role}.{name}": parameter for name, parameter in module.named_parameters()}


def _numbered(role: str, parameters: Iterable[nn.Parameter]) -> Parameters:
    return {f"{role}.{i}": parameter for i, parameter in enumerate(parameters)}


def _whole_value(base: nn.Module, recompute: bool) -> tuple[Network, Parameters]:
    """A value network that is a copy of the whole base, in float32, with its parameters."""
    twin = copy.deepcopy(base)
    to_float32(twin.parameters())
    return Network(twin, recompute=recompute), _named("value", twin)


# --- the last k blocks ---------------------------------------------------------------------------------------------


class _NoPositions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros(*positions.shape, self.width, device=positions.device)


def split(base: nn.Module, last_k: int, option: str = "model.train") -> tuple[nn.Module, nn.Module]:
    """The base model (no language head) as (trunk, top): top(inputs_embeds=trunk(ids)) equals base(ids) to the bit.

    Both are the architecture's own base model with fewer blocks, so any decoder that takes `inputs_embeds` works.

    Args:
        last_k: blocks in the top. The top holds the final norm, the trunk the embeddings; no tensor is copied.
        option: the section of the config that asks for it, as "model.train".

    Raises:
        ModelError: more blocks than there are, or an architecture that is not known here.
    """
    blocks_name, norm_name = (
        attribute(base, names, f"{option}.mode=last_k", "use mode all or lora") for names in (BLOCKS, FINAL_NORM)
    )
    blocks = list(getattr(base, blocks_name))
    if not 0 < last_k <= len(blocks):
        raise ModelError(f"{option}.last_k: {last_k}, but the model has {len(blocks)} blocks; make it that or less")
    cut = len(blocks) - last_k
    trunk: Any = with_modules(base, **{blocks_name: nn.ModuleList(blocks[:cut]), norm_name: nn.Identity()})
    above: dict[str, nn.Module] = {blocks_name: nn.ModuleList(blocks[cut:])}
    if hasattr(base, LEARNED_POSITIONS):
        above[LEARNED_POSITIONS] = _NoPositions(getattr(base, LEARNED_POSITIONS).embedding_dim)
    if hasattr(base, EMBEDDING_NORM):
        above[EMBEDDING_NORM] = nn.Identity()
    top: Any = with_modules(base, **above)
    for name in KINDS:  # a block's mask is looked up by its place in the list
        kinds: Any = getattr(base.config, name, None)
        for half, part in () if kinds is None else ((trunk, kinds[:cut]), (top, kinds[cut:])):
            half.config = copy.copy(half.config)
            try:
                setattr(half.config, name, part)
            except AttributeError as error:  # Mamba works them out
                raise _uncut(base, option) from error
            half.config.num_hidden_layers = len(part)
    return trunk, top


@torch.no_grad()
def _check_split(base: nn.Module, trunk: nn.Module, top: nn.Module) -> None:
    """Refuse halves that are not the whole, as where a model scales `inputs_embeds` (Granite), by one short text."""
    ids = torch.arange(1, 9, device=next(base.parameters()).device).unsqueeze(0)
    expected = base(input_ids=ids, use_cache=False).last_hidden_state
    halves = top(inputs_embeds=trunk(input_ids=ids, use_cache=False).last_hidden_state, use_cache=False)
    if not torch.equal(expected, halves.last_hidden_state):
        raise _uncut(base, "model.train")


def _uncut(base: nn.Module, option: str) -> ModelError:
    return ModelError(f"{option}.mode=last_k: {type(base).__name__} cannot be cut at a block; use mode all or lora")


def _trained(top: nn.Module) -> dict[str, nn.Module]:
    return {name: getattr(top, name) for name in (attribute(top, BLOCKS), attribute(top, FINAL_NORM))}


def top_parameters(top: nn.Module) -> list[nn.Parameter]:
    """What mode last_k trains: the top's blocks and the final norm; not the embeddings, which it shares."""
    return [parameter for module in _trained(top).values() for parameter in module.parameters()]


def _trainable_top(top: nn.Module) -> nn.Module:
    """A top with blocks and norm of its own in float32; embeddings, unused here, stay shared."""
    twin = with_modules(top, **copy.deepcopy(_trained(top)))
    to_float32(top_parameters(twin))
    return twin


def _joined(model: PreTrainedModel, trunk: nn.Module, top: nn.Module) -> PreTrainedModel:
    """The whole causal model with `top` in place of its last blocks and norm, for sampling and saving."""
    trained = _trained(top)
    blocks = attribute(top, BLOCKS)
    trained[blocks] = nn.ModuleList([*getattr(trunk, blocks), *getattr(top, blocks)])
    return with_modules(model, **{model.base_model_prefix: with_modules(model.base_model, **trained)})


# --- LoRA ----------------------------------------------------------------------------------------------------------


class _Switch:
    """Which adapter is on. peft freezes the inactive one, which would drop gradients of a graph already recorded."""

    def __init__(self, adapted: PeftModel, trained: Iterable[nn.Parameter]) -> None:
        self.adapted, self.trained, self.active = adapted, list(trained), ""

    @contextlib.contextmanager
    def on(self, adapter: str) -> Iterator[None]:
        """It stays on."""
        if adapter != self.active:
            self.adapted.set_adapter(adapter)
            for parameter in self.trained:
                parameter.requires_grad_(True)
            self.active = adapter
        yield

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        with self.adapted.disable_adapter():
            yield
        self.active = ""  # peft has frozen an adapter on its way back


@contextlib.contextmanager
def adapting(option: str) -> Iterator[None]:
    """Turn what peft raises where it cannot adapt a layer into a ModelError.

    Args:
        option: the section of the config that asks for adapters, as "model.train".
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
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in inside),  # GPT-2's, whose weights are W^T
        task_type="CAUSAL_LM",
    )
