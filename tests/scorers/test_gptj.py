"""The paper's reward models in their released form, against GPT-J written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.data.examples import TextData
from rlhf.models import reward_model
from rlhf.models.loading import ModelError
from rlhf.scorers import Scorer, load_scorer
from tests.config.composed import config
from tests.scorers.made_up import GPTJ, byte_tokenizer, released_gptj, slow_gptj_score

FILES = {"hh_gptj": "hf_ckpt.pt", "tldr_gptj": "pytorch_model.bin"}
PROMPTS, ANSWERS = ["abc", "a", "a long one: "], [" de", "", "fgh"]
NO_DATA = TextData((), (), (), (), (), ())


def scorer(folder: Path, name: str, *overrides: str) -> Scorer:
    places = (f"reward.path={folder}", f"reward.base={folder / 'base'}", f"reward.tokenizer={folder / 'tokenizer'}")
    run = config(f"reward={name}", *places, "reward.precision=fp32", *overrides)
    return load_scorer(run, folder, torch.device("cpu"), NO_DATA)


@pytest.mark.parametrize("name", FILES)
def test_scores_are_those_of_the_architecture_written_out(tmp_path, name):
    tensors = released_gptj(tmp_path / "model", FILES[name])
    scores = scorer(tmp_path / "model", name).score(PROMPTS, ANSWERS)
    tokenizer, end = byte_tokenizer(), 256
    before, place = {"hh_gptj": ("", -1), "tldr_gptj": ("<|startoftext|>", -2)}[name]
    for prompt, answer, score in zip(PROMPTS, ANSWERS, scores.tolist(), strict=True):
        tokens = [*tokenizer(before + prompt + answer)["input_ids"], end]
        assert len(tokens) == len(before + prompt + answer) + 1
        assert score == pytest.approx(slow_gptj_score(tensors, tokens, place), abs=1e-4)
        assert abs(score - slow_gptj_score(tensors, tokens, place - 1)) > 1e-2  # one token off would show


def test_long_texts_lose_their_beginning_and_keep_the_end(tmp_path):
    tensors = released_gptj(tmp_path / "model", FILES["hh_gptj"])
    (score,) = scorer(tmp_path / "model", "hh_gptj", "reward.max_tokens=6").score(["0123456789"], ["xyz"]).tolist()
    tokens = [*byte_tokenizer()("89xyz")["input_ids"], 256]
    assert score == pytest.approx(slow_gptj_score(tensors, tokens, -1), abs=1e-4)
    # The architecture has 96 places, fewer than max_tokens.
    (score,) = scorer(tmp_path / "model", "hh_gptj").score(["p" * 200], ["xyz"]).tolist()
    tokens = [*byte_tokenizer()("p" * 92 + "xyz")["input_ids"], 256]
    assert score == pytest.approx(slow_gptj_score(tensors, tokens, -1), abs=1e-4)


def test_a_response_that_spells_out_the_end_is_scored_whole(tmp_path):
    tensors = released_gptj(tmp_path / "model", FILES["hh_gptj"])
    (score,) = scorer(tmp_path / "model", "hh_gptj").score(["ab"], ["good<|endoftext|>bad"]).tolist()
    tokens = [*byte_tokenizer()("abgood<|endoftext|>bad", split_special_tokens=True)["input_ids"], 256]
    assert tokens.count(256) == 1  # what a response spells out is text
    assert score == pytest.approx(slow_gptj_score(tensors, tokens, -1), abs=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_holds_the_body_and_spares_the_head(tmp_path, precision):
    tensors = released_gptj(tmp_path / "model", FILES["hh_gptj"])
    whole = scorer(tmp_path / "model", "hh_gptj")
    half: Any = scorer(tmp_path / "model", "hh_gptj", f"reward.precision={precision}")
    kinds = {name: p.dtype for name, p in half.model.named_parameters()}
    assert kinds.pop("score.weight") == torch.float32
    assert set(kinds.values()) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert torch.equal(half.model.score.weight, tensors["v_head.weight"])
    scores, exact = half.score(PROMPTS, ANSWERS), whole.score(PROMPTS, ANSWERS)
    assert scores.dtype == torch.float32 and not torch.equal(scores, exact)
    torch.testing.assert_close(scores, exact, atol={"bf16": 0.3, "fp16": 0.03}[precision], rtol=0)


def test_a_head_that_would_be_rounded_is_refused(tmp_path, monkeypatch):
    released_gptj(tmp_path / "model", FILES["hh_gptj"])
    monkeypatch.setattr(reward_model, "KEPT_IN_FLOAT32", "moved")
    with pytest.raises(ModelError, match=r"^reward\.precision: transformers .*; use reward\.precision=fp32$"):
        scorer(tmp_path / "model", "hh_gptj", "reward.precision=bf16")
    assert scorer(tmp_path / "model", "hh_gptj").score(["a"], ["b"]).shape == (1,)


def test_a_file_of_halves_and_one_of_the_old_format_are_read(tmp_path):
    tensors = released_gptj(tmp_path / "model", FILES["hh_gptj"])
    expected = scorer(tmp_path / "model", "hh_gptj").score(PROMPTS, ANSWERS)
    torch.save(tensors, tmp_path / "model" / "hf_ckpt.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(scorer(tmp_path / "model", "hh_gptj").score(PROMPTS, ANSWERS), expected)
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "model" / "hf_ckpt.pt")
    torch.testing.assert_close(
        scorer(tmp_path / "model", "hh_gptj").score(PROMPTS, ANSWERS), expected, atol=0.03, rtol=0
    )


def without_head(state: dict[str, Any]) -> None:
    del state["v_head.weight"]


def other_names(state: dict[str, Any]) -> None:
    state["model.wte.weight"] = state.pop("transformer.wte.weight")


def with_bias(state: dict[str, Any]) -> None:
    state["v_head.bias"] = torch.zeros(1)


def two_outputs(state: dict[str, Any]) -> None:
    state["v_head.weight"] = torch.zeros(2, GPTJ["n_embd"])


def nested(state: dict[str, Any]) -> None:
    state["model"] = dict(state)


def with_code(state: dict[str, Any]) -> None:
    state["when"] = Path("anything that is no tensor")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_head, r"lacks v_head.weight for reward.base .*base; give"),
        (other_names, r"lacks transformer.wte.weight, has model.wte.weight too many for"),
        (with_bias, r"has v_head.bias too many for"),
        (two_outputs, r"has other shapes in v_head.weight for"),
        (nested, r"is no bare state dict, names of tensors alone$"),
        (with_code, r"cannot read .*hf_ckpt.pt \("),
    ],
)
def test_another_files_content_is_one_line(tmp_path, change, message):
    released_gptj(tmp_path / "model", FILES["hh_gptj"], change)
    with pytest.raises(ModelError, match=r"^reward\.checkpoint_file: .*" + message) as error:
        scorer(tmp_path / "model", "hh_gptj")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.checkpoint_file=other.pt"], r"^reward.checkpoint_file: there is no other.pt in "),
        (["reward.base={}/tokenizer"], r"^reward.base: cannot load the config of .*tokenizer \("),
        (["reward.tokenizer={}/base"], r"^reward.tokenizer: no tokenizer at .*base \("),
        (["reward.path={}/hf_ckpt.pt"], r"^reward.path: .*hf_ckpt.pt is a file; give its folder"),
    ],
)
def test_a_wrong_place_is_one_line(tmp_path, overrides, message):
    released_gptj(tmp_path / "model", FILES["hh_gptj"])
    with pytest.raises(ModelError, match=message) as error:
        scorer(tmp_path / "model", "hh_gptj", *(text.format(tmp_path / "model") for text in overrides))
    assert "\n" not in str(error.value)
