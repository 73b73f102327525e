"""Rows of every common form: which columns are found, what they become, what travels, what is refused and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf.data.columns import ColumnReader
from rlhf.data.examples import Demonstration, Dropped, MalformedRow, Preference, TextAlone, UnknownForm
from rlhf.data.messages import messages_in, plain_text, where_they_part

READ = ColumnReader()
ASK = "\n\nHuman: Why?\n\nAssistant:"


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


PART = {"type": "text", "text": "Why?"}
BRIEF = {"role": "system", "content": "Be brief."}
PLAIN = ("Why?", "A", "B")
CHAT = (ASK, " A", " B")
TOLD = ("Be brief." + ASK, " A", " B")
PAIRS: list[tuple[dict[str, Any], tuple[str, str, str], list[dict[str, Any]] | None]] = [
    # Texts, as they are; no blank that the form does not ask for.
    ({"prompt": "Why?", "chosen": "A", "rejected": "B"}, PLAIN, None),
    ({"prompt": "Why?", "chosen": "    A\n", "rejected": "B"}, ("Why?", "    A\n", "B"), None),
    ({"question": "Why?", "chosen": "A", "rejected": "B"}, PLAIN, None),
    ({"instruction": "Why?", "input": "", "output": ["A", "B"]}, PLAIN, None),
    ({"instruction": "Add.", "input": "1 2", "output": ["3", "4"]}, ("Add.\n\n1 2", "3", "4"), None),
    ({"prompt": "Why?", "response_0": "B", "response_1": "A", "better_response_id": 1}, PLAIN, None),
    ({"prompt": "Why?", "response_0": "A", "response_1": "B", "better_response_id": "0"}, PLAIN, None),
    ({"prompt": "Why?", "response_a": "B", "response_b": "A", "winner": "model_b"}, PLAIN, None),
    ({"question": "Why?", "response_j": "A", "response_k": "B"}, PLAIN, None),
    ({"prompt": ASK, "chosen": " A", "rejected": "B"}, CHAT, None),
    ({"chosen": f"{ASK} A", "rejected": f"{ASK} B"}, CHAT, None),
    ({"prompt": None, "chosen": f"{ASK} A", "rejected": f"{ASK} B"}, CHAT, None),
    # Conversations.
    ({"prompt": [user("Why?")], "chosen": [says("A")], "rejected": [says("B")]}, CHAT, [user("Why?")]),
    ({"prompt": [user("Why?")], "chosen": "A", "rejected": "B"}, CHAT, [user("Why?")]),
    ({"prompt": [user("Why?")], "chosen": says("A"), "rejected": says("B")}, CHAT, [user("Why?")]),
    ({"prompt": "Why?", "chosen": [says("A")], "rejected": [says("B")]}, CHAT, [user("Why?")]),
    ({"prompt": [BRIEF, user("Why?")], "chosen": "A", "rejected": "B"}, TOLD, [BRIEF, user("Why?")]),
    ({"chosen": [user("Why?"), says("A")], "rejected": [user("Why?"), says("B")]}, CHAT, [user("Why?")]),
    (
        {"prompt": "Why?", "chosen": [user("Why?"), says("A")], "rejected": [user("Why?"), says("B")]},
        CHAT,
        [user("Why?")],
    ),
    (
        {"prompt": [BRIEF, user("Why?")], "chosen": [user("Why?"), says("A")], "rejected": [user("Why?"), says("B")]},
        TOLD,
        [BRIEF, user("Why?")],
    ),
    ({"system": "Be brief.", "question": "Why?", "chosen": "A", "rejected": "B"}, TOLD, [BRIEF, user("Why?")]),
    ({"system": "", "question": "Why?", "chosen": "A", "rejected": "B"}, CHAT, [user("Why?")]),
    (
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
        },
        CHAT,
        [user("Why?")],
    ),
    (  # as parquet gives messages: with the keys of all, content in parts, null where there is a tool call
        {
            "prompt": [
                {**user("Hm"), "name": None},
                {**says(None), "tool_calls": [1]},
                user([{"type": "text", "text": "Why?"}]),
            ],
            "chosen": "A",
            "rejected": "B",
        },
        ("\n\nHuman: Hm\n\nAssistant: \n\nHuman: Why?\n\nAssistant:", " A", " B"),
        [user("Hm"), {**says(""), "tool_calls": [1]}, user("Why?")],
    ),
]


@pytest.mark.parametrize(("row", "texts", "messages"), PAIRS)
def test_a_pair_of_every_form(row, texts, messages):
    (pair,) = READ.preferences(row)
    assert isinstance(pair, Preference) and (pair.prompt, pair.chosen, pair.rejected) == texts
    assert json.loads(pair.messages or "null") == messages
    assert not any(pair.columns.values())


@pytest.mark.parametrize(("row", "texts", "messages"), PAIRS)
def test_the_same_row_as_a_prompt_and_as_an_sft_text(row, texts, messages):
    """The better answer is the reference, and the one to imitate."""
    prompt, text = READ.prompt(row), READ.demonstration(row)
    assert (prompt.prompt, prompt.response) == (text.prompt, text.response) == texts[:2]
    assert json.loads(prompt.messages or "null") == json.loads(text.messages or "null") == messages


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"messages": [user("Why?"), says("A")]}, (ASK, " A")),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "A"}]}, (ASK, " A")),
        ({"prompt": "cut", "messages": [user("Why?"), says("A")]}, (ASK, " A")),
        (
            {"messages": [BRIEF, user("Hm"), says("Hm?"), user("Why?"), says("A")]},
            ("Be brief.\n\nHuman: Hm\n\nAssistant: Hm?\n\nHuman: Why?\n\nAssistant:", " A"),
        ),
        ({"prompt": "Why?", "completion": "A"}, ("Why?", "A")),
        ({"prompt": [user("Why?")], "completion": [says("A")]}, (ASK, " A")),
        ({"prompt": ASK, "response": "A", "chosen": "B", "rejected": "C"}, (ASK, " A")),
        ({"instruction": "Why?", "input": "", "output": "A"}, ("Why?", "A")),
    ],
)
def test_sft_texts_and_prompts_with_an_answer(row, texts):
    text, prompt = READ.demonstration(row), READ.prompt(row)
    assert isinstance(text, Demonstration) and (text.prompt, text.response) == texts == (prompt.prompt, prompt.response)


def test_a_text_alone_teaches_sft_and_is_no_prompt():
    assert READ.demonstration({"text": "Once.", "id": 1}) == TextAlone("", "Once.", {"id": 1})
    with pytest.raises(UnknownForm, match=r"dataset\.columns\.prompt"):
        READ.prompt({"text": "Once."})


def test_other_columns_travel_with_the_row():
    """Beside a prompt alone all others do, the answer's too: a reward may need it."""
    row = {"prompt": "1 + 1", "answer": "2", "level": {"of": [1]}}
    assert READ.prompt(row).columns == {"answer": "2", "level": {"of": [1]}} and READ.prompt(row).response == ""
    assert READ.demonstration(row).response == "2"
    named = ColumnReader({"response": "answer"}).prompt(row)
    assert named.response == "2" and named.columns == {"answer": "2", "level": {"of": [1]}}
    (pair,) = READ.preferences({"prompt": "a", "chosen": "b", "rejected": "c", "source": 7})
    assert isinstance(pair, Preference) and pair.columns == {"source": 7}


def test_columns_are_named_where_they_cannot_be_found():
    row = {"frage": "Why?", "rolle": "Be brief.", "gut": "A", "schlecht": "B", "x": 1}
    names = {"prompt": "frage", "system": "rolle", "chosen": "gut", "rejected": "schlecht"}
    (pair,) = ColumnReader(names).preferences(row)
    assert (
        isinstance(pair, Preference) and (pair.prompt, pair.chosen, pair.rejected) == TOLD and pair.columns == {"x": 1}
    )
    (listed,) = ColumnReader({"prompt": "q", "chosen": "both"}).preferences({"q": "Why?", "both": ["A", "B"]})
    assert isinstance(listed, Preference) and (listed.prompt, listed.chosen, listed.rejected) == PLAIN
    labelled = ColumnReader({"prompt": "q", "chosen": "left", "rejected": "right", "preferred": "which"})
    for which in ("right", 1, "1"):
        (pair,) = labelled.preferences({"q": "Why?", "left": "B", "right": "A", "which": which})
        assert isinstance(pair, Preference) and (pair.prompt, pair.chosen, pair.rejected) == PLAIN
    with pytest.raises(UnknownForm, match=r"frage \(text\), .*dataset\.columns\.prompt=frag$"):
        ColumnReader({"prompt": "frag"}).preferences(row)
    turns = ColumnReader({"messages": "turns"})
    assert turns.prompt({"turns": [user("Why?"), says("A")], "prompt": "no"}).prompt == ASK
    assert turns.demonstration({"prompt": "Why?", "completion": "A"}).prompt == "Why?"  # SFT texts may have other names


def test_ties_teach_nothing_and_what_follows_an_answer_is_cut_and_counted():
    tie = {"prompt": "Why?", "response_a": "A", "response_b": "B", "winner": "tie (bothbad)"}
    assert READ.preferences(tie) == []
    long = [says("A"), user("and?"), says("C")]
    assert READ.preferences({"prompt": [user("Why?")], "chosen": long, "rejected": long[:1]})[1] == Dropped(
        cut_answers=1
    )
    assert READ.preferences({"prompt": ASK, "chosen": "A\n\nHuman: B", "rejected": "C"})[1] == Dropped(cut_answers=1)
    (pair,) = READ.preferences({"prompt": "Play", "chosen": "A\n\nHuman: B", "rejected": "C"})
    assert isinstance(pair, Preference) and pair.chosen == "A\n\nHuman: B"


@pytest.mark.parametrize(
    ("row", "needed"),
    [
        (
            {"prompt": "a", "completion": "b", "label": True},
            ("prompt (text)", "label (true or false)", "dataset.columns.chosen"),
        ),
        ({"prompt": [user("a")]}, ("prompt (messages)", "dataset=prompts")),
        ({"chosen": "a", "rejected": "b"}, ("chosen (text)", "dataset.columns.prompt")),
        (["a"], ("list",)),
    ],
)
def test_an_unknown_form_is_described_with_the_option_that_helps(row, needed):
    with pytest.raises(UnknownForm) as error:
        READ.preferences(row)
    assert all(text in str(error.value) for text in needed)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": 7, "chosen": "a", "rejected": "b"},
        {"prompt": "a", "chosen": 7, "rejected": "b"},
        {"prompt": "a", "chosen": "a", "rejected": None},
        {"prompt": [user("a"), says("b")], "chosen": "a", "rejected": "b"},
        {"prompt": "a", "chosen": [user("a")], "rejected": [user("b")]},
        {"prompt": [user([{"type": "image"}])], "chosen": "a", "rejected": "b"},
        {"prompt": "a", "response_0": "a", "response_1": "b", "better_response_id": 2},
        {"instruction": "a", "output": ["b"]},
        {"system": 7, "prompt": "a", "chosen": "b", "rejected": "c"},
    ],
)
def test_a_row_that_is_not_as_the_others_is_malformed(row):
    with pytest.raises(MalformedRow) as error:
        READ.preferences(row)
    assert not isinstance(error.value, UnknownForm)


def test_conversations_part_where_both_are_answered():
    a, b = [user("1"), says("x"), user("2"), says("y")], [user("1"), says("x"), user("2"), says("z")]
    assert where_they_part(a, b) == 3 and where_they_part(a, a) == 3  # equal ones, at their last answer
    assert where_they_part(a, [user("1"), says("w")]) == 1
    assert where_they_part(a, [user("2"), says("w")]) == 0 and where_they_part(a[:2], [user("1"), user("2")]) == 0


def test_plain_text_of_messages_and_what_are_messages():
    assert plain_text([user("a"), says("b"), {"role": "tool", "content": "c"}]) == (
        "\n\nHuman: a\n\nAssistant: b\n\nTool: c\n\nAssistant:"
    )
    assert plain_text([user(" ")]) == plain_text([]) == ""
    for other in ("a", ["a"], [{"role": "user"}], 1, None, {"a": 1}):
        assert messages_in(other) is None


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "Why?", "chosen": "A", "rejected": 3}, "rejected"),
        ({"prompt": "Why?", "response_0": 3, "response_1": "A", "better_response_id": 1}, "response_0"),
        ({"prompt": "Why?", "chosen": [user("A")], "rejected": "B"}, "chosen"),
    ],
)
def test_an_answer_that_is_none_is_named_by_its_column(row: dict[str, Any], column: str):
    with pytest.raises(MalformedRow, match=f"^{column}: an answer "):
        READ.preferences(row)


def test_what_lacks_answers_and_a_prompt_names_the_options_of_both():
    options = ("dataset.columns.chosen", "dataset.columns.rejected", "dataset.columns.prompt")
    with pytest.raises(UnknownForm) as error:
        READ.preferences({"frage": "Why?", "gut": "A", "schlecht": "B"})
    assert all(option in str(error.value) for option in options)
