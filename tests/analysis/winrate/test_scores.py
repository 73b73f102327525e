"""Judges that need nobody to ask: stored scores, and a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.errors import WinrateError
from tests.analysis.winrate.made_up import about, answers, pair_rows, winrate, write_rows


def scored(file: Path, rewards: list[float | None]) -> Path:
    rows = [{"prompt": f"p{i}", "response": f"{file.stem}{i}", "reward": r} for i, r in enumerate(rewards)]
    return write_rows(file, [row | {"gold_reward": -(row["reward"] or 0.0)} for row in rows])


def test_higher_wins_equal_ties_null_does_not_count(tmp_path: Path) -> None:
    """No reference is needed. a against b: 2 > 1, 1 = 1, 0 < 3, null; gold is the opposite, with null as 0 = -0."""
    a, b = scored(tmp_path / "a.jsonl", [2.0, 1.0, 0.0, None]), scored(tmp_path / "b.jsonl", [1.0, 1.0, 3.0, 1.0])
    assert winrate(tmp_path, f"a={a}", f"b={b}", "--judge", "scores") == 0
    (row,) = pair_rows(tmp_path)
    assert [row[name] for name in ("wins", "ties", "losses", "unparsed")] == ["1", "1", "1", "1"]
    assert row["win_rate"] == "0.5" and row["position_bias"] == "" == row["agreement"]
    assert about(tmp_path)["judge"] == "scores:reward" and about(tmp_path)["position_bias"] is None
    assert winrate(tmp_path, f"a={a}", f"b={b}", "--judge", "scores:gold_reward") == 0
    (row,) = pair_rows(tmp_path)
    assert [row[name] for name in ("wins", "ties", "losses", "unparsed")] == ["2", "1", "1", "0"]


def test_a_score_that_is_not_there_is_named(tmp_path: Path) -> None:
    a = scored(tmp_path / "a.jsonl", [2.0])
    with pytest.raises(WinrateError, match=r"a\.jsonl has no field 'helpful'; it has reward, gold_reward"):
        winrate(tmp_path, f"a={a}", f"b={a}", "--judge", "scores:helpful")


def test_default_place_is_beside_the_runs_and_one_for_each_set_of_pairs(tmp_path: Path, capsys: Any) -> None:
    import argparse

    from analysis.winrate.command import add_arguments, run

    rows = [{"step": 0, "prompt": "p", "response": "x", "reward": 1.0}]
    runs = [write_rows(tmp_path / "sweep" / name / "samples.jsonl", rows).parent for name in ("a-s0", "b-s0")]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = [f"a={runs[0]}", f"b={runs[1]}", f"c={runs[1]}", "--judge", "scores:reward"]
    for pairs in ([], ["--pairs", "a:b"], ["--pairs", "a:b,a:c"]):
        assert run(parser.parse_args([*arguments, *pairs])) == 0
    assert sorted(file.parent.name for file in (tmp_path / "sweep" / "winrate").glob("*/winrate.json")) == [
        "scores-reward-a-b",
        "scores-reward-a-b-c",
        "scores-reward-a-vs-b-a-vs-c",
    ]
    assert "more prompts: evaluation.samples decides how many a run keeps" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models with a vocabulary of words: one logit, two logits, and a policy, which has no score at all."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        GPTNeoXForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = ["[UNK]", "[EOS]", "[PAD]", "p0", "p1", "p2", "good", "bad"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[EOS]", pad_token="[PAD]")
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    size |= {"num_hidden_layers": 1, "vocab_size": len(words), "max_position_embeddings": 16}
    folders = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, labels in (("reward", 1), ("two", 2), ("policy", 0)):
            config = GPTNeoXConfig(**size, pad_token_id=2, **({"num_labels": labels} if labels else {}))
            model = (GPTNeoXForSequenceClassification if labels else GPTNeoXForCausalLM)(config)
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name])
            tokenizer.save_pretrained(folders[name])
    return folders


def test_reward_model_scores_prompt_response_and_eos(tmp_path: Path, tiny: dict[str, Path]) -> None:
    """Against the logit at the last token, worked out here from hidden states and head."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from analysis.winrate.matching import Answer
    from analysis.winrate.scores import reward_model_scores

    model = AutoModelForSequenceClassification.from_pretrained(tiny["reward"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny["reward"])

    def by_hand(text: str) -> float:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            return float(model.score(model.base_model(ids).last_hidden_state)[0, -1, 0])

    score = reward_model_scores(str(tiny["reward"]))
    ended, cut = Answer("good good", None, {}), Answer("good good", None, {"ended": False})
    assert score("p0", cut) == pytest.approx(by_hand("p0 good good"), abs=1e-6)
    assert score("p0", ended) == pytest.approx(by_hand("p0 good good [EOS]"), abs=1e-6)
    assert score("p0", ended) != score("p0", cut)

    prompts = [f"p{i}" for i in range(3)]
    a = answers(tmp_path / "a.jsonl", dict.fromkeys(prompts, "good"))
    b = answers(tmp_path / "b.jsonl", dict.fromkeys(prompts, "bad"))
    arguments = ("--judge", "reward_model", "--reward-path", str(tiny["reward"]))
    assert winrate(tmp_path, f"a={a}", f"b={b}", *arguments) == 0
    (row,) = pair_rows(tmp_path)
    wins = sum(score(p, Answer("good", None, {})) > score(p, Answer("bad", None, {})) for p in prompts)
    assert (row["wins"], row["losses"]) == (str(wins), str(3 - wins))


def test_a_judged_text_begins_and_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer that puts [BOS] before and [SEP] behind every text, and a model that reads six tokens."""
    from types import SimpleNamespace

    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from analysis.winrate import scores
    from analysis.winrate.matching import Answer

    words = ["[UNK]", "[EOS]", "[BOS]", "[SEP]", "p0", "p1", "p2", "good"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[BOS] $A [SEP]", special_tokens=[("[BOS]", 2), ("[SEP]", 3)]
    )
    names = {
        "pad_token": "[UNK]",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    read: list[str] = []

    class Model:
        config = SimpleNamespace(max_position_embeddings=6)

        def __call__(self, input_ids: Any, attention_mask: Any) -> Any:
            read.append(" ".join(words[i] for i in input_ids[0]))
            return SimpleNamespace(logits=input_ids[:, :1])

    monkeypatch.setattr(scores, "_load", lambda *_: (tokenizer, Model()))
    score = scores.reward_model_scores("made/up")
    for prompt in ("p0", "[BOS]p0", "[BOS][BOS]p0"):
        for response in ("good", "good[EOS]", "good [EOS][EOS]"):
            score(prompt, Answer(response, None, {}))
    assert set(read) == {"[BOS] p0 good [EOS] [SEP]"}
    for prompt, response, ended, expected in (
        ("p0", "good[EOS]", False, "[BOS] p0 good [SEP]"),
        ("[BOS] p0 p1 p2 p0 p1 p2", "good", True, "[BOS] p1 p2 good [EOS] [SEP]"),
        ("p0", "good good good good good good", True, "[BOS] good good good [EOS] [SEP]"),
        ("", "good", True, "[BOS] good [EOS] [SEP]"),
    ):
        score(prompt, Answer(response, None, {"ended": ended}))
        assert read[-1] == expected


def test_what_is_no_reward_model_is_refused(tmp_path: Path, tiny: dict[str, Path]) -> None:
    a = answers(tmp_path / "a.jsonl", {"p0": "good"})
    for path, message in (
        (None, "--judge reward_model needs --reward-path"),
        (tmp_path / "none", r"--reward-path .*none: no such folder"),
        (tmp_path, r"--reward-path: cannot load"),
        (tiny["two"], "gives 2 logits"),
        (tiny["policy"], r"lacks the weights score\.weight; give a reward model, not a policy"),
    ):
        place = () if path is None else ("--reward-path", str(path))
        with pytest.raises(WinrateError, match=message):
            winrate(tmp_path, f"a={a}", f"b={a}", "--judge", "reward_model", *place)
