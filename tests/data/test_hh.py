"""dataset=hh: both forms of a row, what is left out, the split, real dialogues."""

import hashlib
from pathlib import Path

import pytest

from rlhf.data.columns import ColumnReader
from rlhf.data.examples import Dropped, Preference
from tests.data.collected import contents, dialogues, load, write

ASK = "\n\nHuman: hello\n\nAssistant:"
TWO_TURNS = ASK + " Hi.\n\nHuman: Assistant: who?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"chosen": ASK + " Hi there.", "rejected": ASK + " Hi you."}, (ASK, " Hi there.", " Hi you.")),
        ({"chosen": TWO_TURNS + " Me", "rejected": TWO_TURNS + "I "}, (TWO_TURNS, " Me", " I ")),
        # The dialogues part in the first answer: the prompt ends there, and the answers at the next turn.
        ({"chosen": TWO_TURNS + " Me", "rejected": ASK + " Go."}, (ASK, " Hi.", " Go.")),
        ({"chosen": ASK + " A\n\nAssistant: B", "rejected": ASK + " C"}, (ASK, " A", " C")),
        ({"chosen": ASK + " ", "rejected": ASK + " C"}, (ASK, "", " C")),
        ({"prompt": ASK, "response": "x", "chosen": " A\n\nB ", "rejected": "C"}, (ASK, " A\n\nB ", " C")),
        ({"prompt": ASK, "chosen": "    if x:\n", "rejected": "C"}, (ASK, "    if x:\n", " C")),
        ({"prompt": ASK + " ", "chosen": "A", "rejected": "C"}, (ASK + " ", "A", "C")),
        # What is no such dialogue is taken as it is.
        ({"prompt": "Why?", "chosen": "A", "rejected": "    C\n"}, ("Why?", "A", "    C\n")),
        ({"prompt": "Play", "chosen": "A\n\nHuman: B", "rejected": "C"}, ("Play", "A\n\nHuman: B", "C")),
    ],
)
def test_rows_of_both_forms(row, pair):
    found = ColumnReader().preferences(row)[0]
    assert isinstance(found, Preference) and (found.prompt, found.chosen, found.rejected) == pair


def test_answers_that_lose_what_follows_them_are_counted(tmp_path: Path):
    told = {"chosen": " A\n\nHuman: B", "rejected": "C"}
    rows = [{**told, "prompt": f"\n\nHuman: {i}\n\nAssistant:"} for i in range(10)]
    data = load("hh", write(tmp_path / "dialogues.jsonl", *rows))
    assert data.dropped == Dropped(cut_answers=10) and {pair.chosen for pair in data.pairs} == {" A"}
    data = load("hh", write(tmp_path / "others.jsonl", *({**row, "prompt": f"{i}?"} for i, row in enumerate(rows))))
    assert data.dropped == Dropped() and {pair.chosen for pair in data.pairs} == {" A\n\nHuman: B"}


def test_stop_strings_are_those_of_dialogues(tmp_path: Path):
    assert "Human:" in load("hh", write(tmp_path / "a.jsonl", *dialogues(20))).stop_strings
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(20)]
    assert load("hh", write(tmp_path / "b.jsonl", *rows)).stop_strings == ()


def test_empty_and_equal_answers_are_left_out_and_counted(tmp_path: Path):
    empty = {"chosen": ASK + " ", "rejected": ASK + " C"}
    equal = {"chosen": ASK + " C", "rejected": ASK + " C "}
    nowhere = {"prompt": " ", "chosen": "a", "rejected": "b"}
    data = load("hh", write(tmp_path / "a.jsonl", empty, *dialogues(10), equal, nowhere))
    assert len(data.pairs) + len(data.test_pairs) == 10
    assert data.dropped == Dropped(no_preference=2, empty_prompts=1)


def test_a_local_file_is_split_by_prompt_and_by_seed(tmp_path: Path):
    rows = [*dialogues(50), *dialogues(50)]  # each prompt twice
    path = write(tmp_path / "a.jsonl", *rows)
    data = load("hh", path, num_test_pairs=20, num_eval_prompts=10)
    sizes = [len(part) for part in (data.sft, data.test_sft, data.pairs, data.test_pairs, data.prompts)]
    assert sizes == [40, 10, 80, 20, 40]
    trained = {one.prompt for one in [*data.sft, *data.pairs, *data.prompts]}
    held_out = {one.prompt for one in [*data.test_sft, *data.test_pairs, *data.eval_prompts]}
    assert trained.isdisjoint(held_out) and len(trained | held_out) == 50
    assert data.gold is None and {one.response for one in data.eval_prompts} == {" Yes."}
    again, other = (load("hh", path, num_test_pairs=20, num_eval_prompts=10, seed=seed) for seed in (0, 1))
    assert contents(again) == contents(data) != contents(other)


def test_the_split_by_hand(tmp_path: Path):
    """Sorted prompts shuffled by `random.Random("0 split")`, of which the first fifth is held out; then each side."""
    import random

    prompts = sorted(f"\n\nHuman: {number}?\n\nAssistant:" for number in range(20))
    random.Random("0 split").shuffle(prompts)
    held_out = set(prompts[:4])
    in_file_order = [f"\n\nHuman: {number}?\n\nAssistant:" for number in range(20)]
    train = [prompt for prompt in in_file_order if prompt not in held_out]
    test = [prompt for prompt in in_file_order if prompt in held_out]
    shuffle = random.Random("0 order").shuffle
    shuffle(train)
    shuffle(test)
    data = load("hh", write(tmp_path / "a.jsonl", *dialogues(20)), num_test_pairs=4, num_eval_prompts=4)
    assert [one.prompt for one in data.pairs] == [one.prompt for one in data.prompts] == train
    assert [one.prompt for one in data.test_pairs] == [one.prompt for one in data.eval_prompts] == test


def test_real_dialogues():
    """The 1,800 pairs beside the repository, where they are: 4 preferred answers are empty, 2 hold a next turn, and 2
    prompts come twice."""
    path = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless-pairs.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    data = load("hh", path, num_test_pairs=256, num_eval_prompts=128)
    whole = load("hh", path, num_test_pairs=360, num_eval_prompts=128)
    assert data.dropped == Dropped(no_preference=4, cut_answers=2)
    assert (len(data.pairs), len(data.sft), len(data.test_sft)) == (1436, 1435, 359)
    assert len(whole.pairs) + len(whole.test_pairs) == 1796
    for pair in [*whole.pairs, *whole.test_pairs]:
        assert pair.prompt.startswith("\n\nHuman:") and pair.prompt.endswith("\n\nAssistant:")
        assert "\n\nAssistant:" not in pair.chosen + pair.rejected and pair.chosen[0] == pair.rejected[0] == " "
    # Of every example in its order, as the reader that held the whole set in memory gave them.
    parts = (data.pairs, data.test_pairs, data.sft, data.test_sft, data.prompts, data.eval_prompts)
    digest = hashlib.sha256(repr([list(part) for part in parts]).encode()).hexdigest()
    assert digest == "faaceb4bfff3891ecc4a43a85e5d59a49dad731d045bf6a64fcf4f808da19007"
