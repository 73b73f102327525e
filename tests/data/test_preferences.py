"""dataset=preferences and dataset=prompts: what is held out, learned from, said and refused; what reaches a reward."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.batches import PromptBatch
from rlhf.chat import with_template
from rlhf.config.build import ConfigError
from rlhf.data import load_text_data
from rlhf.data.examples import DataError
from rlhf.data.tokenize import Prompts, prompt_report
from tests.config.composed import config, typed
from tests.data.collected import load, settings, write
from tests.tokenizer_kinds import KINDS

datasets = pytest.importorskip("datasets")
HUB = ("model=hub", "model.path=owner/model")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"{number}?", "chosen": "Yes.", "rejected": "No.", **more}


def sums(numbers: range) -> list[dict[str, Any]]:
    return [{"prompt": [user(f"{n} + 1")], "answer": str(n + 1), "level": n % 3} for n in numbers]


def test_prompts_alone_bring_their_other_columns_to_the_reward(tmp_path: Path):
    """By row, whatever order rows are asked for in; a column that a row lacks is None."""
    rows = [*sums(range(20)), {"prompt": [user("20 + 1")], "extra": datetime.date(2026, 1, 2).isoformat()}]
    data = load("prompts", write(tmp_path / "a.jsonl", *rows))
    assert not data.pairs and not data.sft and len(data.prompts) == 17 and len(data.eval_prompts) == 2
    prompts = Prompts(KINDS["neox"](), data.prompts, 100)
    batch = prompts.rows(torch.tensor([3, 0, 3]))
    assert isinstance(batch, PromptBatch) and {*batch.columns} == {"answer", "level", "extra"}
    for text, answer, extra in zip(batch.texts, batch.columns["answer"], batch.columns["extra"], strict=True):
        number = int(text.split()[1])
        assert (answer, extra) == ((str(number + 1), None) if number < 20 else (None, "2026-01-02"))
    picked = batch.rows(torch.tensor([1, 0]))
    assert picked.columns["answer"] == [batch.columns["answer"][1], batch.columns["answer"][0]]
    assert picked.trimmed().columns == picked.columns
    (line,) = data.sources[:1]
    for part in ("21 rows", "prompt (messages)", "0 with an answer", "held out (4)", "answer, level, extra"):
        assert part in line


def test_values_that_json_does_not_know_become_texts(tmp_path: Path):
    rows = [{"prompt": f"{n}?", "when": datetime.date(2026, 1, n + 1)} for n in range(20)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    data = load("prompts", tmp_path / "a.parquet")
    assert {example.columns["when"] for example in data.prompts} <= {f"2026-01-{n + 1:02}" for n in range(20)}


def test_prompts_with_answers_teach_sft_and_repeated_ones_are_counted(tmp_path: Path):
    rows = [*({"prompt": f"{n}?", "completion": f"{n}."} for n in range(20)), *({"prompt": f"{n}?"} for n in range(5))]
    data = load("prompts", write(tmp_path / "a.jsonl", *rows))
    assert [text.response for text in data.sft] == [f"{text.prompt[:-1]}." for text in data.sft]
    assert data.dropped.repeated == 5 and len(data.sft) + len(data.test_sft) == 20
    bare = write(tmp_path / "bare.jsonl", *({"prompt": f"{n}?"} for n in range(20)))
    with pytest.raises(DataError, match=r"^dataset\.path=.*model\.sft=false.*dataset\.sft_path"):
        load("prompts", bare, parts=("sft", "test_sft"))
    texts = write(tmp_path / "sft.jsonl", *({"text": f"Once {n}."} for n in range(20)))
    data = load("prompts", bare, sft_path=str(texts))
    assert len(data.sft) + len(data.test_sft) == 20 and {text.prompt for text in data.sft} == {""}
    assert len(data.prompts) >= 14 and all(prompt.prompt.endswith("?") for prompt in data.prompts)


def test_rl_prompts_are_those_of_the_pairs_and_one_question_has_one_side(tmp_path: Path):
    """Whether it is written as text or as a message."""
    pairs = write(tmp_path / "pairs.jsonl", *(pair(n) for n in range(30)))
    turns = [{"messages": [user(f"{n}?"), {"role": "assistant", "content": "Hm."}]} for n in range(20, 50)]
    data = load("preferences", pairs, sft_path=str(write(tmp_path / "sft.jsonl", *turns)))
    assert {prompt.response for prompt in data.prompts} == {"Yes."} and {text.response for text in data.sft} == {" Hm."}
    sides = [*data.pairs, *data.sft], [*data.test_pairs, *data.eval_prompts, *data.test_sft]
    asked = [{one.prompt.removeprefix("\n\nHuman: ").partition("?")[0] for one in side} for side in sides]
    assert asked[0].isdisjoint(asked[1])


def test_a_form_that_is_not_read_is_refused_at_its_first_row_whatever_may_be_malformed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *({"prompt": f"{n}?", "score": n} for n in range(20)))
    with pytest.raises(DataError) as error:
        load("preferences", path, max_bad_rows=100)
    text = str(error.value)
    assert text.startswith(f"{path}:1: ") and "max_bad_rows" not in text and "\n" not in text
    assert all(
        part in text for part in ("prompt (text)", "score (number)", "dataset.columns.chosen", "dataset=prompts")
    )
    path = write(tmp_path / "b.jsonl", *({"q": f"{n}?", "a": ["y", "n"]} for n in range(20)))
    named = load("preferences", path, columns={"prompt": "q", "chosen": "a"})
    assert len(named.pairs) == 16 and named.pairs[0].chosen == "y"


def test_the_system_text_and_the_template_make_the_first_prompt(tmp_path: Path):
    """Of rows with a system turn of their own, that one."""
    own = [{"role": "system", "content": "Own."}, user("Hi")]
    rows = [{"prompt": prompt, "completion": "Yes"} for prompt in (own, [user("Hi")], *(f"{n}?" for n in range(30)))]
    data = load("prompts", write(tmp_path / "a.jsonl", *rows), system="Be brief.", num_eval_prompts=8)
    made = with_template(settings("prompts"), data, KINDS["qwen"]())
    chat = [one.prompt for one in (*made.prompts, *made.eval_prompts)]
    turns = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert turns.format("Own.", "Hi") in chat and turns.format("Be brief.", "Hi") in chat
    assert turns.format("Be brief.", "7?") in chat and all("system" in text for text in chat)
    written = with_template(settings("prompts"), data, KINDS["neox"]())
    plain = [one.prompt for one in (*written.prompts, *written.eval_prompts)]
    for text in ("Own.\n\nHuman: Hi\n\nAssistant:", "Be brief.\n\nHuman: Hi\n\nAssistant:", "Be brief.\n\n7?"):
        assert text in plain
    report = prompt_report(settings("prompts"), KINDS["qwen"](), made.prompts, made.dropped)
    assert r"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user" in report.splitlines()[-1]


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (("dataset=preferences",), "dataset.path: "),
        (("dataset=prompts", "dataset.hub=owner/name"), "reward.name: "),
        (("dataset=prompts", "dataset.hub=owner/name", "stage=offline"), "dataset.name: "),
        (("dataset=prompts", "dataset.hub=owner/name", "stage=reward_model"), "dataset.name: "),
        (("dataset=preferences", "dataset.hub=owner/name", "dataset.columns.rejected=bad"), "dataset.columns.chosen: "),
        (("dataset=preferences", "dataset.hub=owner/name", "dataset.columns.response=a"), "dataset.columns.response: "),
        (("dataset=hh", "dataset.columns.prompt=q"), "dataset.columns.prompt: "),
        (("dataset=hh", "dataset.system=q"), "dataset.system: "),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(overrides, path):
    with pytest.raises(ConfigError) as error:
        typed(*HUB, *overrides)
    assert any(line.startswith(path) for line in error.value.problems), error.value.problems


def test_prompts_need_no_pairs_where_the_reward_needs_none():
    config(*HUB, "dataset=prompts", "dataset.hub=owner/name", "reward=sentiment", "model.sft=false")
    config(*HUB, "dataset=prompts", "dataset.hub=owner/name", "reward.path=owner/reward")


def test_the_librarys_own_loading_of_configurations_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a folder in the hub's form, which `datasets` takes for the data set of that name."""
    folder = tmp_path / "owner" / "name"
    for number, name in enumerate(("chat/train_prefs", "chat/test_prefs", "plain/train")):
        numbers = range(100 * number, 100 * number + 10)
        turns = [
            {"chosen": [user(f"{n}?"), says("Yes.")], "rejected": [user(f"{n}?"), says("No.")], "id": n}
            for n in numbers
        ]
        write(folder / f"{name}.jsonl", *(turns if name.startswith("chat") else map(pair, numbers)))
    splits = "\n".join(f"  - {{split: {name}, path: chat/{name}.jsonl}}" for name in ("train_prefs", "test_prefs"))
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: chat\n  data_files:\n{splits}\n- config_name: plain\n"
        "  data_files: plain/train.jsonl\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    place = {"hub": "owner/name"}
    with pytest.raises(DataError, match=r"^dataset\.hub=owner/name: .*chat, plain.*dataset\.hub_config"):
        load_text_data(settings("preferences", **place))
    with pytest.raises(DataError, match=r"no split train, but train_prefs, test_prefs; .*dataset\.split$"):
        load_text_data(settings("preferences", **place, hub_config="chat"))
    chosen = {"hub_config": "chat", "split": "train_prefs", "test_split": "test_prefs"}
    data = load_text_data(settings("preferences", **place, **chosen))
    assert {one.columns["id"] for one in data.pairs} == {*range(10)} and len(data.test_pairs) == 2
    assert all(one.prompt.startswith("\n\nHuman: 1") and one.columns["id"] >= 100 for one in data.test_pairs)
    assert len(load_text_data(settings("preferences", **place, hub_config="plain")).pairs) == 8


def test_too_few_rows_are_told_with_their_number_and_what_is_needed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *(pair(number) for number in range(2)))
    with pytest.raises(DataError, match=r"^dataset\.num_eval_prompts=.*: the data has 1 of them, .* needs 2, "):
        load("preferences", path)
