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
    with pytest.raises(WinrateError, match=r"a\.jsonl has no field 'helpful'; it has reward, gold_reward"):
        winrate(tmp_path, f"a={a}", f"b={a}", "--judge", "scores:helpful")


def test_default_place_is_beside_the_runs_and_one_for_each_set_of_pairs(tmp_path: Path, capsys: Any) -> None:
    from analysis.__main__ import main

    rows = [{"step": 0, "prompt": "p", "response": "x", "reward": 1.0}]
    runs = [write_rows(tmp_path / "sweep" / name / "samples.jsonl", rows).parent for name in ("a-s0", "b-s0")]
    arguments = [f"a={runs[0]}", f"b={runs[1]}", f"c={runs[1]}", "--judge", "scores:reward"]
    for pairs in ([], ["--pairs", "a:b"], ["--pairs", "a:b,a:c"]):
        assert main(["winrate", *arguments, *pairs]) == 0
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
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        GPTNeoXForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = ["[UNK]", "[EOS]", "[PAD]", "[BOS]", "p0", "p1", "p2", "good", "bad"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    core.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 3)])  # type: ignore[assignment]
    tokens = {"eos_token": "[EOS]", "pad_token": "[PAD]", "bos_token": "[BOS]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **tokens)
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    size |= {"num_hidden_layers": 1, "vocab_size": len(words), "max_position_embeddings": 6}
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


def test_reward_model_scores_a_text_that_begins_and_ends_once(tmp_path: Path, tiny: dict[str, Path]) -> None:
    """Against the logit at the last token, worked out here from hidden states and head; the model reads six tokens."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from analysis.winrate.scores import reward_model_scores

    model = AutoModelForSequenceClassification.from_pretrained(tiny["reward"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny["reward"])

    def by_hand(text: str) -> float:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            return float(model.score(model.base_model(ids).last_hidden_state)[0, -1, 0])

    score = reward_model_scores(str(tiny["reward"]))
    for prompt, response, ended, text in (
        ("p0", "good bad", False, "[BOS] p0 good bad"),
        ("p0", "good bad", True, "[BOS] p0 good bad [EOS]"),
        ("[BOS][BOS]p0", "good [EOS][EOS]", True, "[BOS] p0 good [EOS]"),
        ("p0", "good[EOS]", False, "[BOS] p0 good"),
        ("p0 p1 p2 p0", "good", True, "[BOS] p1 p2 p0 good [EOS]"),
    ):
        assert score(prompt, {"response": response, "ended": ended}) == pytest.approx(by_hand(text), abs=1e-6), text

    a = answers(tmp_path / "a.jsonl", dict.fromkeys(("p0", "p1", "p2"), "good"))
    b = answers(tmp_path / "b.jsonl", dict.fromkeys(("p0", "p1", "p2"), "bad"))
    arguments = ("--judge", "reward_model", "--reward-path", str(tiny["reward"]))
    assert winrate(tmp_path, f"a={a}", f"b={b}", *arguments) == 0
    (row,) = pair_rows(tmp_path)
    wins = sum(by_hand(f"[BOS] {p} good [EOS]") > by_hand(f"[BOS] {p} bad [EOS]") for p in ("p0", "p1", "p2"))
    assert (row["wins"], row["losses"]) == (str(wins), str(3 - wins))


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
