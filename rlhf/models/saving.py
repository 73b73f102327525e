"""Final weights on disk: a folder appears whole or not at all."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from peft import LoraConfig, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_TENSORS
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.models.base import PolicyModels
from rlhf.models.modes import LoRA


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder, then give it its name."""
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed here
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A whole model with its tokenizer in save_pretrained form."""

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    return write_folder(folder, write)


def save_policy(models: PolicyModels, tokenizer: PreTrainedTokenizerBase, folder: Path, how: str) -> None:
    """The trained policy: "full" (LoRA: the adapter, where its base lies somewhere), "trained" (its trained tensors
    alone) or "none"."""
    if how == "none":
        return
    if how == "trained":
        tensors = {name: p.detach().cpu().contiguous() for name, p in models.policy_parameters.items()}
        write_folder(folder, lambda target: save_file(tensors, target / "trained.safetensors"))
    elif not isinstance(models, LoRA):
        save_model(models.sampler, tokenizer, folder)
    elif base := _place(models.model):

        def write(target: Path) -> None:
            _write_adapter(models, base, target)
            tokenizer.save_pretrained(target)

        write_folder(folder, write)
    else:
        whole = copy.deepcopy(models.peft).merge_and_unload(adapter_names=["policy"])
        assert isinstance(whole, PreTrainedModel)
        save_model(whole, tokenizer, folder)


def _place(model: PreTrainedModel) -> str | None:
    """Where the frozen weights were loaded from, as an absolute path or a hub name; None for a model made here."""
    name = model.name_or_path
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name or None


def _write_adapter(models: LoRA, base: str, target: Path) -> None:
    """The adapter "policy" as peft reads one. peft's own save would put it one folder down, under its name."""
    settings = copy.copy(models.peft.peft_config["policy"])
    assert isinstance(settings, LoraConfig)
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.target_modules = sorted(settings.target_modules or ())  # a set, in another order in each process
    settings.save_pretrained(str(target))
    # The embeddings are frozen; "auto" would ask the hub whether the base has as many.
    tensors = get_peft_model_state_dict(models.peft, adapter_name="policy", save_embedding_layers=False)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, target / ADAPTER_TENSORS, metadata={"format": "pt"})
