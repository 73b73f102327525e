"""dataset=stackexchange: the score rule on a table, pairs by hand, both forms of a row, HTML."""

import importlib.util
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.examples import DataError, Demonstration, Dropped, MalformedRow, Preference
from rlhf.data.stackexchange import answer_score, demonstration, preferences, to_markdown
from tests.data.collected import every_pair, load, write

needs_markdownify = pytest.mark.skipif(
    importlib.util.find_spec("markdownify") is None, reason="pip install -e '.[hub]'"
)


def question(*answers: tuple[int, bool], text: str = "Why?", **columns: Any) -> dict[str, Any]:
    """Answers "0", "1", ... of (upvotes, accepted)."""
    listed = [{"text": str(i), "upvotes": votes, "accepted": taken} for i, (votes, taken) in enumerate(answers)]
    return {"qid": 1, "question": text, "answers": listed, **columns}


def pairs_of(*answers: tuple[int, bool], seed: int = 0) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in preferences(question(*answers), seed)]


@pytest.mark.parametrize(
    ("upvotes", "accepted", "score"),
    [
        (0, False, 0),
        (0, True, 1),
        (1, False, 1),  # log2 2
        (1, True, 2),
        (2, False, 2),  # log2 3 = 1.58
        (4, False, 2),  # log2 5 = 2.32
        (5, False, 3),  # log2 6 = 2.58
        (10, True, 4),  # log2 11 = 3.46, and 1
        (1023, False, 10),
        (-1, False, -1),
        (-50, False, -1),
        (-1, True, -1),  # voted down: the whole score is -1
    ],
)
def test_the_score_of_an_answer(upvotes: int, accepted: bool, score: int):
    assert answer_score(upvotes, accepted) == score


@pytest.mark.parametrize(
    ("answers", "pairs"),
    [
        ([], []),
        ([(7, True)], []),  # one answer only
        ([(3, False), (3, False)], []),  # a tie
        ([(2, False), (4, False)], []),  # a tie by rounding
        ([(1, False), (0, True)], []),  # a tie by being accepted
        ([(-3, True), (-1, False)], []),  # both -1
        ([(-3, True), (0, False)], [("1", "0")]),
        ([(0, False), (1, False)], [("1", "0")]),
        ([(0, False), (7, False), (7, True)], [("2", "1"), ("2", "0"), ("1", "0")]),  # 0, 3, 4
    ],
)
def test_pairs_are_those_whose_scores_differ(answers, pairs):
    assert pairs_of(*answers) == pairs


def test_ten_pairs_at_most_drawn_by_the_seed():
    answers = [(2**n - 1, False) for n in range(8)]  # scores 0 to 7: 28 pairs
    every = {(str(high), str(low)) for low, high in combinations(range(8), 2)}
    drawn = [pairs_of(*answers, seed=seed) for seed in (0, 0, 1)]
    assert all(len(set(pairs)) == 10 and set(pairs) <= every for pairs in drawn)
    assert drawn[0] == drawn[1] != drawn[2]
    assert {pair for seed in range(40) for pair in pairs_of(*answers, seed=seed)} == every
    assert len(pairs_of(*[(2**n - 1, False) for n in range(5)])) == 10  # 10 pairs are all taken


def test_other_names_of_the_columns():
    row = {
        "title": "A title ",
        "body": "Why?",
        "answers": [
            {"body": "low", "upvotes": 3.0, "accepted": None},
            {"text": "high", "upvotes": 3, "selected": True},
        ],
    }
    prompt = "Question: A title\n\nWhy?\n\nAnswer: "
    assert preferences(row, 0) == [Preference(prompt, "high", "low")]
    assert demonstration(row) == Demonstration(prompt, "high")
    scored = {
        "question": "Why?",
        "answers": [
            {"text": "low", "pm_score": 1, "selected": True, "answer_id": 5},
            {"text": "high", "pm_score": 2, "selected": False, "answer_id": 6},
        ],
    }
    assert preferences(scored, 0) == [Preference("Question: Why?\n\nAnswer: ", "high", "low")]


def test_a_row_that_is_a_pair_already():
    row = {"qid": 1, "question": "Is `a<b>` <em>?\n", "response_j": "yes", "response_k": "no", "metadata": ["x"]}
    prompt = "Question: Is `a<b>` <em>?\n\nAnswer: "  # Markdown stays what it is
    assert preferences(row, 0) == [Preference(prompt, "yes", "no")]
    assert demonstration(row) == Demonstration(prompt, "yes")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([], "the row is list"),
        ({"answers": []}, "the row has answers (list); "),
        ({"question": "Why?"}, "a row must be an object with response_j and response_k, or with a list of answers"),
        ({"question": "Why?", "response_j": "a"}, "the row has question (text), response_j (text); "),
        ({"question": "Why?", "answers": [{"text": "a"}]}, "an answer must have a whole number of upvotes, not None"),
        ({"question": "?", "answers": [{"text": "a", "upvotes": float("nan")}]}, "an answer must have a whole number"),
        ({"question": "?", "answers": [{"text": "a", "upvotes": 1, "accepted": "no"}]}, "an answer's accepted must be"),
    ],
)
def test_malformed_rows(row, problem):
    with pytest.raises(MalformedRow) as error:
        preferences(row, 0)
    assert str(error.value).startswith(problem)


@needs_markdownify
def test_html_becomes_markdown():
    html = (
        "<p>Use <code>a &lt; b</code>, see <a href='http://x.org'>this</a>:</p>\n\n"
        "<pre><code>if a &lt; b:\n    pass\n</code></pre>\n<ul>\n<li>one</li>\n</ul>\n"
    )
    assert to_markdown(html) == "Use `a < b`, see [this](http://x.org):\n\n```\nif a < b:\n    pass\n```\n\n* one"
    assert to_markdown(" if a < b and vector<int> > c:\n ") == "if a < b and vector<int> > c:"
    row = question((1, False), (0, False), text="<p>Why <em>so</em>?</p>\n", title="Title")
    assert preferences(row, 0)[0].prompt == "Question: Title\n\nWhy *so*?\n\nAnswer: "


def test_without_markdownify_html_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "markdownify", None)
    with pytest.raises(
        DataError, match=r"^HTML in dataset=stackexchange needs the package markdownify: pip install -e '.\[hub\]'$"
    ):
        to_markdown("<p>a</p>")
    assert to_markdown("a") == "a"


def test_both_forms_of_a_file(tmp_path: Path):
    raw = [question((7, False), (0, False), (1, True), text=f"Why {n}?") for n in range(20)]
    alone = question((3, False), text="Alone?")
    data = load("stackexchange", write(tmp_path / "raw.jsonl", *raw, alone), num_test_pairs=12)
    assert (len(data.pairs), len(data.test_pairs), len(data.prompts)) == (16 * 3, 12, 16)
    assert data.dropped == Dropped(no_preference=1)
    rows = [
        {"qid": n, "question": f"Why {n}?", "response_j": high, "response_k": low, "date": "", "metadata": []}
        for n in range(20)
        for high, low in (("0", "1"), ("0", "2"), ("2", "1"))
    ]
    paired = load("stackexchange", write(tmp_path / "paired.jsonl", *rows), num_test_pairs=12)
    assert every_pair(paired) == every_pair(data)
    assert {one.prompt for one in paired.test_pairs} == {one.prompt for one in data.test_pairs}
