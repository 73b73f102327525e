"""Adapters in peft's form: what they adapt, where their tokenizer lies, and how they become part of their base."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import (
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from rlhf.models.hub import ModelError, few_of, loading

# What a hub repository of an adapter holds besides may be large: checkpoints, optimizers.
_FILES = ["adapter_*", "*.json", "*.model", "*.txt", "*.jinja"]
_PREFIX = "base_model.model."
"""Of every name of a tensor in an adapter's file."""


@dataclass(frozen=True)
class Adapter:
    path: str
    """As it was given: a folder or a hub name."""
    folder: Path
    """Its files on this machine."""
    config: PeftConfig
    base: str
    """Folder or hub name of the model that it adapts."""

    @property
    def revision(self) -> str:
        """The base's on the hub."""
        return self.config.revision or "main"

    @property
    def tokenizer(self) -> str | Path:
        """Where its tokenizer lies: peft saves none, and its base's is used unless somebody else has saved one."""
        return self.folder if (self.folder / "tokenizer_config.json").is_file() else self.base


def adapter_at(path: str | Path, option: str, base: str | None = None) -> Adapter | None:
    """The adapter in a folder or hub repository; None where none is.

    Args:
        option: what named it, as "model.path".
        base: where its base lies; None: where it says.

    Raises:
        ModelError: damaged, of a base that is not there, of another adapter, or of a kind that cannot be merged.
    """
    path = str(path)
    with loading(option, path):
        file = find_adapter_config_file(path)
        if file is None:
            return None
        folder = Path(path if Path(path).is_dir() else snapshot_download(path, allow_patterns=_FILES))
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ModelError(
                f"{option}: {path} is an adapter of type {config.peft_type}, not one of weights; give LoRA"
            )
        base = base or _base(config, folder, path, option)
    with loading(option, base, f"the base of the adapter {path}, "):
        if find_adapter_config_file(base) is not None:
            raise ModelError(
                f"{option}: {path} is an adapter of {base}, which is an adapter itself; merge that one into its base "
                "(peft's merge_and_unload), save it and name the result as base_model_name_or_path"
            )
    return Adapter(path, folder, config, base)


def _base(config: PeftConfig, folder: Path, path: str, option: str) -> str:
    """A relative path is looked for beside the adapter, then in the working folder."""
    name = config.base_model_name_or_path
    where = f"base_model_name_or_path in {folder / CONFIG_NAME}"
    if not name:
        raise ModelError(f"{option}: the adapter {path} names no base; give its folder or hub name as {where}")
    for place in (folder / name, Path(name)):
        if place.is_dir():
            return str(place)
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"{option}: {path}: it is an adapter of {name}, which is not there; correct {where}")
    return name


def merge(model: PreTrainedModel, adapter: Adapter, option: str, tokens: int = 0) -> tuple[PreTrainedModel, set[str]]:
    """A base with an adapter folded in, loaded by peft.

    Embeddings are widened before: an adapter that was trained with more tokens holds tensors of that many rows.

    Args:
        tokens: rows of the embeddings, at least.

    Returns:
        The model, and the names of the base's own tensors that the adapter has brought whole.

    Raises:
        ModelError: the adapter lacks tensors, has others than the base has layers for, or is of another task.
    """
    if not any((adapter.folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise ModelError(f"{option}: the adapter {adapter.path} lacks {SAFETENSORS_WEIGHTS_NAME}; copy it whole")
    tensors = load_peft_weights(str(adapter.folder), device="cpu")
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    places = tuple(f"{_PREFIX}{name}." for name, module in model.named_modules() if module in layers)
    about_embeddings = {name: tensor for name, tensor in tensors.items() if name.startswith(places)}
    # What LoRA's first matrix of an embedding has as columns, other tensors have as rows.
    rows = [
        tensor.shape[1 if name.endswith("lora_embedding_A") else 0]
        for name, tensor in about_embeddings.items()
        if name.endswith(("lora_embedding_A", ".weight")) and "lora_A" not in name
    ]
    resize(model, max(rows, default=max(tokens, model.config.vocab_size)))
    head: Any = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    copied = {place.split(".")[-2] for place in places} & set(getattr(adapter.config, "modules_to_save", None) or ())
    adapted = any("lora_" in name for name in about_embeddings)
    if head is not None and tied and (copied or adapted) and not getattr(adapter.config, "ensure_weight_tying", False):
        # It was trained on one of the two, and the other stayed as it was.
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    in_base = {f"{_PREFIX}{name}" for name in model.state_dict()}
    settings = copy.copy(adapter.config)
    settings.base_model_name_or_path = None  # peft would warn that the base lies elsewhere now
    wrapped = get_peft_model(model, settings)
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    known = expected | in_base | {name.replace(f".{wrapped.active_adapter}.", ".") for name in wrapped.state_dict()}
    wrong = {"lacks": expected - set(tensors), f"does not fit {adapter.base}: it has": set(tensors) - known}
    for problem, names in wrong.items():
        if names:
            few = few_of({name.removeprefix(_PREFIX) for name in names})
            raise ModelError(f"{option}: the adapter {adapter.path} {problem} {few}; give a whole one of that base")
    set_peft_model_state_dict(wrapped, tensors)
    merged: Any = wrapped.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    inputs, outputs = merged.get_input_embeddings(), merged.get_output_embeddings()
    if tied and torch.equal(inputs.weight, outputs.weight):
        outputs.weight = inputs.weight
    elif tied:
        merged.config.tie_word_embeddings = False
        merged.all_tied_weights_keys = merged.get_expanded_tied_weights_keys(all_submodels=False)
    merged.name_or_path = ""  # what it is now lies nowhere as a whole
    return merged, {name.removeprefix(_PREFIX) for name in in_base & set(tensors)}


def resize(model: PreTrainedModel, tokens: int) -> None:
    """Give a model embeddings of so many tokens, in place; the new rows are the same each time."""
    if tokens == model.config.vocab_size:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(tokens, mean_resizing=False)
