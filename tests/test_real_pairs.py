"""A reward model on real preferences: a small network from random weights learns some of what people prefer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from rlhf.config.identity import run_folder
from rlhf.run import execute
from tests.config.composed import config

PAIRS = Path(__file__).parents[2] / "shared" / "data" / "hh-harmless-pairs.jsonl.gz"

SETTINGS = """
model.num_layers=2 hardware.threads=2 hardware.input_threads=2
dataset.max_total_length=128 dataset.max_new_tokens=112 dataset.num_test_pairs=360 dataset.num_eval_prompts=8
reward_model.steps=120 reward_model.eval_every=30 reward_model.warmup_steps=10
reward_model.learning_rate=1e-3 reward_model.weight_decay=0.1
"""

pytestmark = pytest.mark.slow


def small_network(folder: Path) -> Path:
    """Two blocks of width 64 and 2,000 byte pairs of the dialogues themselves, in the format of a real one."""
    with gzip.open(PAIRS, "rt") as file:
        texts = [text for line in file for text in json.loads(line).values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, learn)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    torch.manual_seed(0)
    architecture = GPTNeoXConfig(vocab_size=2000, max_position_embeddings=256, initializer_range=0.1, **shape)
    AutoModelForCausalLM.from_config(architecture).save_pretrained(folder)
    return folder


def test_accuracy_rises_on_held_out_pairs(tmp_path):
    """Words alone, by logistic regression on the answers' TF-IDF, give 0.65."""
    network = small_network(tmp_path / "network")
    run = config(
        "model=pythia_125m",
        "dataset=hh",
        "tracking=none",
        "stage=reward_model",
        f"model.path={network}",
        f"dataset.path={PAIRS}",
        *SETTINGS.split(),
        f"output_dir={tmp_path / 'runs'}",
        f"cache_dir={tmp_path / 'cache'}",
    )
    assert execute(run)["status"] == "finished"
    rows = [json.loads(line) for line in (run_folder(run) / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval/accuracy" in row]
    for row in evaluations:
        print({name: round(value, 4) for name, value in row.items() if name == "step" or name.startswith("eval/")})
    assert abs(evaluations[0]["eval/accuracy"] - 0.5) < 0.1
    # Two standard errors of a guess over 360 pairs are 0.05.
    assert max(row["eval/accuracy"] for row in evaluations[1:]) > 0.55
    assert min(row["eval/loss"] for row in evaluations[1:]) < evaluations[0]["eval/loss"]
