"""Final weights on disk: a folder appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
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
    """The trained policy: "full" (adapter form for LoRA), "trained" (its trained tensors alone) or "none"."""
    if how == "none":
        return
    if how == "trained":
        tensors = {name: p.detach().cpu().contiguous() for name, p in models.policy_parameters.items()}
        write_folder(folder, lambda target: save_file(tensors, target / "trained.safetensors"))
    elif isinstance(models, LoRA):
        adapters = models.peft
        assert isinstance(adapters, PeftModel)

        def write(target: Path) -> None:
            adapters.save_pretrained(str(target), selected_adapters=["policy"])
            tokenizer.save_pretrained(target)

        write_folder(folder, write)
    else:
        save_model(models.sampler, tokenizer, folder)
