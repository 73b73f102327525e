"""Parameters by config.json against the models that transformers builds, and what model=hub makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from rlhf.config import RunConfig
from rlhf.config.identity import run_id
from rlhf.config.model_size import parameters, parameters_at
from tests.sweeps.test_sources import run_of

SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
LLAMA_8B = {
    **SMOLLM2_135M,
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMOLLM2_135M),
        LlamaConfig(**LLAMA_8B),
        GPT2Config(),
        GPTJConfig(),
        GPTNeoXConfig(),  # 20B
        Gemma2Config(head_dim=256),
        MixtralConfig(),
        Qwen2Config(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_parameters_are_those_of_the_model(config: PretrainedConfig):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert parameters(config.to_dict()) == pytest.approx(model.num_parameters(), rel=0.02)


def test_what_says_no_size_has_none(tmp_path):
    assert parameters({"hidden_size": 64}) is None
    assert parameters_at(str(tmp_path)) is None
    for text in ("[]", "{", '{"hidden_size": "wide", "n_layer": 2, "vocab_size": 9}'):
        folder = tmp_path / str(len(text))
        folder.mkdir()
        (folder / "config.json").write_text(text)
        assert parameters_at(str(folder)) is None


def hub(folder: Path, config: dict[str, Any], *overrides: str) -> RunConfig:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return run_of("model=hub", f"model.path={folder}", "dataset=hh", *overrides)


def test_settings_follow_the_size_and_are_named(tmp_path):
    small, large = hub(tmp_path / "Small-135M", SMOLLM2_135M), hub(tmp_path / "Large-8B", LLAMA_8B)
    assert (small.model.name, large.model.name) == ("Small-135M", "Large-8B")
    assert [run.model.train.mode for run in (small, large)] == ["all", "lora"]
    assert [run.sft.train.mode for run in (small, large)] == ["all", "lora"]
    assert [run.optimization.micro_batch_size for run in (small, large)] == [8, 2]
    assert [run.model.frozen_weights for run in (small, large)] == ["float32", "bfloat16"]
    assert [run.hardware.gradient_checkpointing for run in (small, large)] == [False, True]
    assert small.settings_from[0].startswith(
        "Small-135M (134 million parameters) sets model.train.mode=all, sft.train.mode=all"
    )
    assert large.settings_from[0].startswith("Large-8B (8.03 billion parameters) sets model.train.mode=lora")


def test_what_is_typed_wins_and_the_rest_follows_it(tmp_path):
    folder = tmp_path / "model"
    nine = ("rollout.num_responses=63", "optimization.minibatch_size=9")
    run = hub(folder, LLAMA_8B, "model.train.mode=all", "sft.learning_rate=3e-3", *nine)
    assert (run.model.train.mode, run.sft.train.mode, run.sft.learning_rate) == ("all", "lora", 3e-3)
    assert run.optimization.learning_rate < hub(folder, LLAMA_8B).optimization.learning_rate
    assert run.optimization.micro_batch_size == 1  # divides 9
    assert hub(folder, LLAMA_8B, "algo=rloo", "algo.group_size=4").optimization.micro_batch_size == 4
    assert hub(folder, LLAMA_8B, "debug=one_step").optimization.micro_batch_size == 2  # debug's


def test_the_values_are_part_of_the_runs_id(tmp_path):
    """Not the size: the same values typed for a model whose size is not known are the same run."""
    folder = tmp_path / "model"
    by_size = hub(folder, SMOLLM2_135M)
    values = by_size.settings_from[0].partition(" sets ")[2].split(", ")
    assert len(values) >= 10
    assert run_id(hub(folder, SMOLLM2_135M, *values)) == run_id(by_size)
    assert run_id(hub(folder, SMOLLM2_135M, "value.learning_rate=1e-3", "algo=ppo")) != run_id(
        hub(folder, SMOLLM2_135M, "algo=ppo")
    )


def test_of_an_unknown_size_the_files_values_hold_and_are_named(tmp_path):
    parameters_at.cache_clear()
    run = hub(tmp_path / "odd", {"model_type": "odd"})
    assert run.model.train.mode == "lora" and "size" in run.settings_from[0]
