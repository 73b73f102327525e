"""Policies of common architectures, one run each: it finishes, or one line says what cannot be and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.models.hub import ModelError
from rlhf.run import execute
from tests.config.composed import config
from tests.data.collected import dialogues, write
from tests.models.test_architectures import byte_pairs

pytestmark = pytest.mark.slow

_WIDE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
_LLAMA = {**_WIDE, "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 128}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
_EXPERTS = {**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": _WIDE,
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
    "opt": {**_WIDE, "word_embed_proj_dim": 16, "ffn_dim": 32, "max_position_embeddings": 128},
    "mixtral": _EXPERTS,
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8, "sliding_window": 16},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "sliding_window": 16},
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "stablelm": _LLAMA,
    "olmo2": _LLAMA,
    "smollm3": _LLAMA,
    "granite": {**_LLAMA, "embedding_multiplier": 12.0},
    "cohere": _LLAMA,
    "starcoder2": _LLAMA,
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2},
}
REFUSED = {
    ("opt", "last_k"): r"^model.train.mode=last_k: OPTModel keeps its blocks .* elsewhere .*; use mode all or lora$",
    ("granite", "last_k"): r"^model.train.mode=last_k: GraniteModel cannot be cut at a block; use mode all or lora$",
    ("mamba", "last_k"): r"^model.train.mode=last_k: MambaModel cannot be cut at a block; use mode all or lora$",
    ("mamba", "lora"): r"^model.train.lora_targets: .*; name other layers, or use another mode$",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each architecture, one of a reward model, and pairs."""
    parent, tokenizer = tmp_path_factory.mktemp("hub"), byte_pairs()
    write(parent / "pairs.jsonl", *dialogues(40))
    for name, settings in ARCHITECTURES.items():
        shape = AutoConfig.for_model(name, vocab_size=len(tokenizer) + 20, **settings)
        shape.eos_token_id, shape.bos_token_id, shape.pad_token_id = 0, 0, None
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape).save_pretrained(parent / name)
        tokenizer.save_pretrained(parent / name)
    shape = AutoConfig.from_pretrained(parent / "gpt2")
    shape.num_labels = 1
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(parent / "reward")
    tokenizer.save_pretrained(parent / "reward")
    return parent


@pytest.mark.parametrize("mode", ["all", "last_k", "lora"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_run_finishes_or_one_line_says_why_not(folders: Path, tmp_path: Path, kind: str, mode: str):
    run = config(
        *("dataset=hh", "debug=one_step", "tracking=none", "model=hub", "hardware=cpu", "model.sft=false"),
        *("dataset.max_total_length=48", "dataset.max_new_tokens=8", "dataset.num_test_pairs=4"),
        *(f"model.train.mode={mode}", "model.train.last_k=1"),
        f"model.path={folders / kind}",
        *(f"dataset.path={folders / 'pairs.jsonl'}", f"reward.path={folders / 'reward'}"),
        *(f"output_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"),
    )
    if (kind, mode) in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[kind, mode]):
            execute(run)
    else:
        assert execute(run)["status"] == "finished"
