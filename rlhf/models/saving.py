"""Final weights on disk: a folder appears whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_TENSORS
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import TrainableConfig
from rlhf.control_tokens import eos_id, pad_id
from rlhf.files import write_folder
from rlhf.finite import check_weights
from rlhf.models.base import PolicyModels
from rlhf.models.hub import ModelError
from rlhf.models.layers import linear
from rlhf.models.modes import LoRA

REMEDY = "a smaller learning rate"


def end_alike(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the configs that are saved with a model name the tokenizer's special tokens: what it was trained to end with
    is where `generate` stops."""
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.eos_token_id, config.pad_token_id = eos_id(tokenizer), pad_id(tokenizer)
            config.bos_token_id = tokenizer.bos_token_id


def save_tensors(tensors: Mapping[str, Tensor], file: Path, **metadata: str) -> None:
    """A safetensors file of weights that are finite.

    Raises:
        NotFinite: they are not.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_weights(on_cpu, "at the end of training", REMEDY)
    save_file(on_cpu, file, metadata=metadata or None)


def save_whole(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """`save_pretrained` of a model whose weights are finite.

    Args:
        weights: where `model` does not hold them itself (hardware.sharding).

    Raises:
        NotFinite: they are not.
    """
    check_weights(dict(model.named_parameters()) if weights is None else weights, "at the end of training", REMEDY)
    model.save_pretrained(folder, state_dict=weights)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """A whole model with its tokenizer in save_pretrained form.

    Args:
        weights: where `model` does not hold them itself (hardware.sharding).
    """
    return _save(model, tokenizer, folder, lambda target: save_whole(model, target, weights))


def save_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    train: TrainableConfig,
    path: str,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """What a stage before RL has trained: whole weights, with adapters folded in, or the adapter alone.

    Args:
        path: of `train` in the config, as "sft.train".
        weights: as in `save_model`.

    Raises:
        ModelError: the adapter alone of a base that lies nowhere.
    """
    return _save(model, tokenizer, folder, lambda target: write_trained(model, target, train, path, weights))


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, write: Callable[[Path], None]
) -> Path:
    def write_all(target: Path) -> None:
        write(target)
        tokenizer.save_pretrained(target)

    end_alike(model, tokenizer)
    return write_folder(folder, write_all)


def write_trained(
    model: PreTrainedModel, target: Path, train: TrainableConfig, path: str, weights: dict[str, Tensor] | None = None
) -> None:
    """`save_trained` without its tokenizer, into a folder that is there."""
    if train.mode != "lora" or train.merge_adapters:
        merge_adapters(model, "default")
        save_whole(model, target, weights)
        return
    _write_adapter(model, "default", check_place(model, path), target)


def check_place(model: PreTrainedModel, path: str) -> str:
    """Where an adapter's base lies, as its folder will say.

    Args:
        path: of the options that it is trained by in the config, as "sft.train".

    Raises:
        ModelError: it lies nowhere as a whole.
    """
    base = _place(model)
    if base is None:
        raise ModelError(f"{path}.merge_adapters: false, but the model it adapts lies nowhere as a whole; use true")
    return base


def merge_adapters(model: PreTrainedModel, adapter: str) -> None:
    """Fold a LoRA adapter into the weights it adapts, in place and in float32; nothing to do where there is none."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _folded(layer, adapter))
    if vars(model).pop("hf_quantizer", None) is not None:  # its weights no longer are int8 or int4
        vars(model.config).pop("quantization_config")


@torch.no_grad()
def _folded(layer: Any, adapter: str) -> nn.Module:
    """A LoraLayer's base with the adapter in it."""
    base = layer.get_base_layer()
    weight = dequantize_module_weight(base).float() + layer.get_delta_weight(adapter).float()
    if not base.weight.is_floating_point():  # int8, int4
        return linear(weight, base.bias)
    base.weight.data = weight
    return base


def save_policy(
    models: PolicyModels,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    how: str,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """The trained policy: "full" (LoRA: the adapter, where its base lies somewhere and model.train.merge_adapters does
    not ask for whole weights), "trained" (its trained tensors alone) or "none"."""
    if how == "none":
        return
    if how == "trained":
        write_folder(folder, lambda target: save_tensors(models.policy_parameters, target / "trained.safetensors"))
    elif not isinstance(models, LoRA):
        save_model(models.sampler, tokenizer, folder, weights)
    elif (base := _place(models.model)) and not models.merge_adapters:
        _save(models.model, tokenizer, folder, lambda target: _write_adapter(models.model, "policy", base, target))
    else:
        merged = copy.deepcopy(models.model)
        merge_adapters(merged, "policy")
        save_model(merged, tokenizer, folder)


def _place(model: PreTrainedModel) -> str | None:
    """Where the frozen weights were loaded from, as an absolute path or a hub name; None for a model made here."""
    name = model.name_or_path
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name or None


def _write_adapter(model: PreTrainedModel, adapter: str, base: str, target: Path) -> None:
    """An adapter, and a head called `score`, as peft reads them. Its own save would put an adapter with a name one
    folder down, and ask the hub whether the base has as many embeddings."""
    settings = copy.copy(model.peft_config[adapter])
    assert isinstance(settings, LoraConfig)
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.target_modules = sorted(settings.target_modules or ())  # a set, in another order in each process
    if hasattr(model, "score"):
        settings.task_type, settings.modules_to_save = TaskType.SEQ_CLS, ["score"]
    settings.save_pretrained(str(target))
    tensors = {
        f"base_model.model.{name.replace(f'.{adapter}.', '.')}": parameter
        for name, parameter in model.named_parameters()
        if ("lora_" in name and f".{adapter}." in name) or name.startswith("score.")
    }
    save_tensors(tensors, target / ADAPTER_TENSORS, format="pt")
