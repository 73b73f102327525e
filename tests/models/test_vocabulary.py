"""No token can be sampled that the tokenizer has not, and final/ ends where it was trained to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from rlhf.chat import template_of
from rlhf.control_tokens import add_padding
from rlhf.models.loading import load_pretrained
from rlhf.models.reward_model import load_reward_model, new_reward_model
from rlhf.models.saving import save_model, write_folder
from rlhf.text import encode_prompt
from tests.tokenizer_kinds import KINDS


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: int, eos: int = 3) -> Path:
    """A policy with so many embeddings, whose configs name some other token as the EOS."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=rows, eos_token_id=eos, bos_token_id=None, max_position_embeddings=64, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beyond", [0, 47])
def test_a_policy_has_a_logit_for_each_token_and_no_more(tmp_path, kind, beyond):
    tokenizer = KINDS[kind]()
    folder = saved(tmp_path / "policy", tokenizer, len(tokenizer) + beyond)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    before = torch.get_rng_state()
    model, loaded = load_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loaded) == len(tokenizer) == model.config.vocab_size
    ids = torch.arange(8)[None]
    with torch.no_grad():
        logits, expected = model(ids).logits, plain(ids).logits[..., : len(tokenizer)]
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("spare", [0, 40])
@pytest.mark.parametrize("padding", ["[PAD]", "<blank>"])
def test_padding_that_was_added_behind_all_tokens_is_not_used(tmp_path, padding, spare):
    tokenizer = KINDS["gpt2"]()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": padding})
    folder = saved(tmp_path / "policy", tokenizer, rows + spare)
    for place in ("final", "again"):
        model, loaded = load_pretrained(folder)
        assert model.config.vocab_size == rows and loaded.pad_token_id == loaded.eos_token_id
        assert max(encode_prompt(loaded, f"hello {padding} there", 50)[0]) < rows
        folder = save_model(model, loaded, tmp_path / place)


def test_a_token_that_stands_for_padding_and_more_keeps_its_row(tmp_path):
    tokenizer = KINDS["gpt2"]()
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    model, loaded = load_pretrained(saved(tmp_path / "policy", tokenizer, len(tokenizer) + 40))
    assert loaded.pad_token == "<unk>" and model.config.vocab_size == len(tokenizer)


def test_tokens_that_were_added_to_be_learned_get_rows(tmp_path):
    tokenizer = KINDS["gpt2"]()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    model, _ = load_pretrained(saved(tmp_path / "policy", tokenizer, rows))
    assert model.config.vocab_size == rows + 1


@pytest.mark.parametrize(("kind", "end"), [("qwen", "<|im_end|>"), ("gemma", "<end_of_turn>"), ("gpt2", None)])
def test_what_is_saved_agrees_on_where_a_text_ends_and_generate_stops_there(tmp_path, kind, end):
    tokenizer = KINDS[kind]()
    model, loaded = load_pretrained(saved(tmp_path / "policy", tokenizer, len(tokenizer)))
    template_of(loaded, "auto")
    save_model(model, loaded, tmp_path / "final")
    model, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "final"),
        AutoTokenizer.from_pretrained(tmp_path / "final"),
    )
    assert end is None or again.eos_token == end
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        expected = getattr(again, name)
        assert getattr(model.config, name) == getattr(model.generation_config, name) == expected
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[again.eos_token_id] = model.model(torch.tensor([[5, 6]])).last_hidden_state[0, -1]
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=5, do_sample=False)[0].tolist()[2:] == [
        again.eos_token_id
    ]


def test_transformers_reads_a_reward_model_where_it_was_trained_to_be_read(tmp_path):
    """Its own forward pass takes the last token that is no padding, which must not be the EOS."""
    from transformers import AutoModelForSequenceClassification

    tokenizer = KINDS["gpt2"]()
    folder = saved(tmp_path / "policy", tokenizer, len(tokenizer))
    _, loaded = load_pretrained(folder)
    assert loaded.pad_token_id == loaded.eos_token_id
    add_padding(loaded)
    limits = {"max_prompt_tokens": 20, "max_new_tokens": 20}
    made = new_reward_model(folder, loaded, **limits)
    write_folder(tmp_path / "final", made.save)
    read = load_reward_model(tmp_path / "final", **limits)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    own = AutoTokenizer.from_pretrained(tmp_path / "final")
    batch = own(["hello you<|endoftext|>", "hi<|endoftext|>"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**batch).logits[:, 0]
    torch.testing.assert_close(read.score(["hello", "hi"], [" you", ""]), expected, atol=1e-5, rtol=1e-5)
