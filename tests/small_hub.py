"""What the paper takes from the hub, tiny and in the same formats: policies, a GPT-J reward model, data sets.

Weights are random. `in_place_of_the_hub` gives the overrides with which an experiment takes its parts from there.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    GPTJModel,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

WIDTH, POSITIONS = 16, 1024
WORDS = ("please", "tell", "me", "how", "to", "mend", "a", "bicycle", "or", "bake", "bread", "today", "thank", "you")


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE, whose EOS is "<|endoftext|>" as GPT-2's is, and which has no pad token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    return fast


def architecture(kind: str, layers: int, vocab: int) -> PretrainedConfig:
    shared = {"vocab_size": vocab, "eos_token_id": 0, "bos_token_id": 0}
    if kind == "gpt_neox":
        return GPTNeoXConfig(
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=POSITIONS,
            **shared,
        )
    if kind == "gpt_neo":
        return GPTNeoConfig(
            hidden_size=WIDTH,
            num_layers=layers,
            num_heads=2,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=POSITIONS,
            attention_types=[[["global", "local"], layers // 2]],
            window_size=256,
            **shared,
        )
    if kind == "gptj":
        return GPTJConfig(n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=POSITIONS, rotary_dim=4, **shared)
    return LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        **shared,
    )


def policy(folder: Path, kind: str, layers: int) -> Path:
    """A causal language model with its tokenizer in save_pretrained form."""
    torch.manual_seed(0)
    vocab = len(tokenizer(folder))
    AutoModelForCausalLM.from_config(architecture(kind, layers, vocab)).save_pretrained(folder)
    return folder


def gptj_reward(folder: Path) -> Path:
    """A bare state dict as Dahoas/gptj-rm-static has it: transformer.* and a linear head without bias."""
    torch.manual_seed(1)
    vocab = len(tokenizer(folder))
    config = architecture("gptj", 2, vocab)
    config.save_pretrained(folder)
    state = {f"transformer.{name}": tensor.half() for name, tensor in GPTJModel(config).state_dict().items()}
    state["v_head.weight"] = torch.randn(1, WIDTH).half()
    torch.save(state, folder / "rm.pt")
    return folder


def write_hub(folder: Path) -> None:
    """Everything below `folder`, once."""
    policy(folder / "pythia", "gpt_neox", 2)
    policy(folder / "gpt_neo", "gpt_neo", 8)
    policy(folder / "gptj", "gptj", 8)
    policy(folder / "llama", "llama", 2)
    gptj_reward(folder / "reward")
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(words))

    hh = (
        {
            "prompt": f"\n\nHuman: {text(6)}?\n\nAssistant:",
            "response": "",
            "chosen": f" {text(5)}.",
            "rejected": f" {text(4)}!",
        }
        for _ in range(120)
    )
    _jsonl(folder / "hh.jsonl.gz", hh)
    tldr = (
        {
            "prompt": f"SUBREDDIT: r/mending\nTITLE: {text(4)}\nPOST: {text(20)}\nTL;DR:",
            "chosen": text(6),
            "rejected": text(5),
        }
        for _ in range(120)
    )
    _jsonl(folder / "tldr.jsonl", tldr)
    sft = ({"prompt": f"TITLE: {text(5)}\nPOST: {text(15)}\nTL;DR:", "label": text(6)} for _ in range(60))
    _jsonl(folder / "tldr_sft.jsonl", sft)
    exchange = (
        {"qid": i, "question": f"{text(8)}?", "date": "", "metadata": [], "response_j": text(7), "response_k": text(6)}
        for i in range(120)
    )
    _jsonl(folder / "stackexchange.jsonl", exchange)


def in_place_of_the_hub(hub: Path, experiment: str) -> list[str]:
    """Overrides of an experiment of the paper: its policy, data and reward from `hub`, and a CPU."""
    kinds = {"tldr_2_7b": "gpt_neo", "tldr_6b": "gptj", "stackexchange_7b": "llama"}
    data = "stackexchange.jsonl" if experiment == "stackexchange_7b" else "hh.jsonl.gz"
    overrides = [f"model.path={hub / kinds.get(experiment, 'pythia')}", "hardware=cpu"]
    if experiment.startswith("tldr"):
        data = "tldr.jsonl"
        overrides.append(f"dataset.sft_path={hub / 'tldr_sft.jsonl'}")
    if experiment == "stackexchange_7b":
        overrides += ["dataset.num_sft=40", "dataset.num_pairs=40", "dataset.num_test_pairs=4"]
    else:
        reward = hub / "reward"
        overrides += [f"reward.{key}={reward}" for key in ("path", "base", "tokenizer")]
        overrides.append("reward.checkpoint_file=rm.pt")
    return [
        *overrides,
        f"dataset.path={hub / data}",
        "dataset.max_new_tokens=6",
        "dataset.max_total_length=48",
    ]


def _jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(lines)
    else:
        path.write_text(lines)
