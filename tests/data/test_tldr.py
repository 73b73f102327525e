"""dataset=tldr: both tables bring the same prompt, summaries keep one blank, SFT texts give the RL prompts."""

from pathlib import Path

import pytest

from rlhf.data.examples import DataError, Demonstration, Dropped, MalformedRow, Preference
from rlhf.data.tldr import demonstration, preferences
from tests.data.collected import contents, every_pair, load, write

POST = "SUBREDDIT: r/ask\nTITLE: Why?\nPOST: Because.\n\nAnd so on."
PROMPT = POST + "\nTL;DR:"


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"POST: {n}", "chosen": f"TL;DR: good {n}", "rejected": "TL;DR:  bad"} for n in numbers]


def texts(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"POST: {n}\nTL;DR:", "label": f"own {n}"} for n in numbers]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (POST, "TL;DR: A b.", "TL;DR:  C.\n"),  # the comparisons' own form
        (PROMPT, " A b.", " C."),
        (POST + "\n\nTL;DR: ", "A b.", "C."),
        (POST + " TL;DR:", "TL;DR: A b.", "C."),
    ],
)
def test_every_form_of_a_pair_becomes_one(prompt, chosen, rejected):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert preferences(row) == [Preference(PROMPT, " A b.", " C.")]


def test_sft_texts_have_the_prompts_of_pairs():
    assert demonstration({"prompt": PROMPT, "label": "My summary. "}) == Demonstration(PROMPT, " My summary.")
    assert demonstration({"prompt": POST, "label": "TL;DR: mine"}) == Demonstration(PROMPT, " mine")


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": "a", "chosen": "b", "rejected": None}, "a"])
def test_malformed_rows(row):
    with pytest.raises(MalformedRow, match="prompt, chosen, rejected"):
        preferences(row)
    with pytest.raises(MalformedRow, match="prompt, label"):
        demonstration(row)


def test_rl_prompts_and_references_are_those_of_the_sft_texts(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", *pairs(*range(40)))
    sft_path = write(tmp_path / "sft.jsonl", *texts(*range(30, 70)), {"prompt": "POST: 7", "label": " "})
    data = load("tldr", path, sft_path=str(sft_path))
    for part in (data.sft, data.prompts, data.eval_prompts, data.test_sft):
        assert len(part) > 0 and all(one.response == f" own {one.prompt[6:-7]}" for one in part)
    trained = {one.prompt for one in [*data.sft, *data.prompts, *data.pairs]}
    held_out = {one.prompt for one in [*data.test_sft, *data.test_pairs, *data.eval_prompts]}
    assert trained.isdisjoint(held_out)
    assert data.dropped == Dropped(no_preference=1)
    sides = [{one.prompt for one in part} for part in (data.sft, data.test_sft)]
    assert len(sides[0]) + len(sides[1]) == 40


def test_a_prompt_that_either_table_holds_out_is_trained_on_by_neither(tmp_path: Path):
    write(tmp_path / "pairs" / "train.jsonl", *pairs(*range(20)))
    write(tmp_path / "pairs" / "test.jsonl", *pairs(18, 19, 50))
    write(tmp_path / "pairs" / "valid1.jsonl", *pairs(90))  # is neither trained on nor held out
    write(tmp_path / "sft" / "train.jsonl.part", "")
    write(tmp_path / "sft" / "train.jsonl", *texts(*range(10, 30), 50))
    write(tmp_path / "sft" / "valid.jsonl", *texts(3, 29))
    data = load("tldr", tmp_path / "pairs", sft_path=str(tmp_path / "sft"))
    numbers = {part: sorted(int(one.prompt[6:-7]) for one in examples) for part, examples in contents(data).items()}
    assert numbers["pairs"] == [n for n in range(20) if n not in (3, 18, 19)]
    assert numbers["sft"] == numbers["prompts"] == [n for n in range(10, 29) if n not in (18, 19)]
    assert numbers["test_sft"] == numbers["eval_prompts"] == [3, 29]
    assert set(numbers["test_pairs"]) < {18, 19, 50}  # num_test_pairs=2 of them
    assert data.dropped.held_out == 3 + 4  # pairs 3, 18, 19; texts 18, 19, 29, 50


def test_local_pairs_do_without_the_hubs_sft_texts(tmp_path: Path):
    data = load("tldr", write(tmp_path / "pairs.jsonl", *pairs(*range(20))), sft_hub="nobody/nothing")
    assert {one.response for one in data.sft} <= {pair.chosen for pair in every_pair(data)}
    with pytest.raises(DataError, match=r"^dataset.sft_path=.*missing.jsonl: cannot be read \("):
        load("tldr", tmp_path / "pairs.jsonl", sft_path=str(tmp_path / "missing.jsonl"))
