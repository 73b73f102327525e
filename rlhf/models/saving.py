"""Final weights on disk: a folder appears whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_TENSORS
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import TrainableConfig
from rlhf.control_tokens import eos_id, pad_id
from rlhf.files import write_folder
from rlhf.finite import check_weights
from rlhf.models.hub import ModelError
from rlhf.models.layers import linear
from rlhf.models.loading import language_head
from rlhf.models.policy import PolicyModels

REMEDY = "a smaller learning rate"


def save_tensors(tensors: Mapping[str, Tensor], file: Path, **metadata: str) -> None:
    """A safetensors file of weights that are finite.

    Raises:
        NotFinite: they are not.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_weights(on_cpu, "at the end of training", REMEDY)
    save_file(on_cpu, file, metadata=metadata or None)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Tensor] | None = None
) -> Path:
    """A whole model with its tokenizer in save_pretrained form.

    Args:
        weights: where `model` does not hold them itself (hardware.sharding).

    Raises:
        NotFinite: they are not finite.
    """
    return write_folder(folder, lambda target: _write_whole(model, tokenizer, target, weights))


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
    return write_folder(folder, lambda target: write_trained(model, tokenizer, target, train, path, weights))


def write_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    train: TrainableConfig | None,
    path: str,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """`save_trained` into a folder that is there; without `train` all of the model."""
    if train is None or train.mode != "lora" or train.merge_adapters:
        merge_adapters(model, "default")
        _write_whole(model, tokenizer, target, weights)
    else:
        _write_adapter(model, tokenizer, target, "default", check_place(model, path))


def _write_whole(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, weights: dict[str, Tensor] | None = None
) -> None:
    check_weights(dict(model.named_parameters()) if weights is None else weights, "at the end of training", REMEDY)
    # What the model was trained to end with is where `generate` stops.
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.eos_token_id, config.pad_token_id = eos_id(tokenizer), pad_id(tokenizer)
            config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(target, state_dict=weights)
    tokenizer.save_pretrained(target)


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


@torch.no_grad()
def merge_adapters(model: PreTrainedModel, adapter: str) -> None:
    """Fold a LoRA adapter into the weights it adapts, in place and in float32; nothing to do where there is none."""
    layers: list[tuple[str, Any]] = [(name, x) for name, x in model.named_modules() if isinstance(x, LoraLayer)]
    for name, layer in layers:
        base = layer.get_base_layer()
        weight = dequantize_module_weight(base).float() + layer.get_delta_weight(adapter).float()
        if base.weight.is_floating_point():
            base.weight.data = weight
        else:  # int8, int4
            base = linear(weight, base.bias)
        model.set_submodule(name, base)
    if vars(model).pop("hf_quantizer", None) is not None:  # its weights no longer are int8 or int4
        vars(model.config).pop("quantization_config")


def save_policy(
    models: PolicyModels,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    how: str,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """The trained policy: "full" (LoRA: the adapter, where its base lies somewhere and model.train.merge_adapters does
    not ask for whole weights), "trained" (its trained tensors alone) or "none"."""
    networks = models.networks
    if how == "none":
        return
    if how == "trained":
        write_folder(folder, lambda target: save_tensors(models.policy_parameters, target / "trained.safetensors"))
    elif networks.adapters is not None and (base := _place(models.model)) and not networks.merge_adapters:
        write_folder(folder, lambda target: _write_adapter(models.model, tokenizer, target, "policy", base))
    else:
        save_whole_policy(models, tokenizer, folder, weights)


def save_whole_policy(
    models: PolicyModels, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """The policy as whole weights, adapters folded in; arguments as of `save_model`."""
    save_model(_whole(models), tokenizer, folder, weights)


def save_for_server(models: PolicyModels, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The policy as whole weights, with a language head of its own even where it shares the embeddings' tensor.

    Of a shared one vLLM keeps a packed copy on a CPU, which no later load renews.
    """
    model = _whole(models)
    config, tied, head = model.config, model.config.tie_word_embeddings, language_head(model)
    weights = dict(model.state_dict())
    weights |= {
        f"{name}.weight": head.state_dict()["weight"].clone() for name, part in model.named_modules() if part is head
    }
    config.tie_word_embeddings = False
    try:
        save_model(model, tokenizer, folder, weights)
    finally:
        config.tie_word_embeddings = tied


def _whole(models: PolicyModels) -> PreTrainedModel:
    if models.networks.adapters is None:
        return models.sampler
    merged = copy.deepcopy(models.model)
    merge_adapters(merged, "policy")
    return merged


def _place(model: PreTrainedModel) -> str | None:
    """Where the frozen weights were loaded from, as an absolute path or a hub name; None for a model made here."""
    name = model.name_or_path
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name or None


def _write_adapter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, adapter: str, base: str
) -> None:
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
    tokenizer.save_pretrained(target)
