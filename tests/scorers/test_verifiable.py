"""reward=verifiable: which answer is the final one, which two are the same, and what evaluations tell of right ones."""

from __future__ import annotations

import itertools

import pytest
import torch

from rlhf.config.build import ConfigError
from rlhf.data.examples import DataError
from rlhf.evaluation import accuracy
from rlhf.scorers.verifiable import compared, final_answer, same_plainly
from tests.config.composed import config, typed


@pytest.mark.parametrize(
    ("right", "response", "same"),
    [
        ("42", "42", True),
        ("42", " so 6 * 7 = 42.", True),
        ("42", "43", False),
        ("42", "42, no, 43", False),
        ("42", "", False),
        ("42", "\\boxed{42} and then 7", True),
        ("42", "\\boxed{1} \\boxed{42}", True),
        ("42", "The answer is 42, since 5 + 37", True),
        ("42", "Answer: 41", False),
        ("1000", "it costs $1,000.00", True),
        ("-3", "x = -3", True),
        ("0.5", "1/2", True),
        ("25%", "0.25", True),
        ("72", "48 / 2 = 24\n48 + 24 = 72\n#### 72", True),
        ("6 + 66 = 72\n#### 72", "72", True),
        ("Paris", "The answer is  paris.", True),
        ("Paris", "Rome", False),
        ("B", "B", True),
        ("B", "(b)", True),
        ("(B)", "The answer is (B) because A is wrong", True),
        ("B", "A is tempting. I choose B", True),
        ("B", "A", False),
        ("B", "Because", False),
        ("B", "\\boxed{B}", True),
    ],
)
def test_numbers_and_choices_are_compared_plainly(right, response, same):
    assert same_plainly(right, response) is same


def test_the_final_answer_may_have_braces_and_no_end():
    assert final_answer("\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert final_answer("\\boxed{12") == "12"


def test_it_is_the_rows_own_answer():
    scores = compared(["a", "b"], ["1", "1"], {"answer": [1, 2]}, column="answer", how="plain")
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize("columns", [{}, {"answer": ["1", None]}, {"answer": ["1", " "]}, {"solution": ["1", "2"]}])
def test_a_row_without_one_is_refused(columns):
    with pytest.raises(DataError, match=r"^reward\.answer=answer: "):
        compared(["a", "b"], ["1", "1"], columns, column="answer", how="plain")


def test_math_verify_compares_mathematics_and_survives_anything():
    pytest.importorskip("math_verify")
    texts = ["the answer is $\\frac{2}{4}$", "\\boxed{\\frac{", "x" * 2000, "7"]
    scores = compared(["p"] * 4, texts, {"answer": ["0.5"] * 4}, column="answer", how="math_verify")
    assert scores == [1.0, 0.0, 0.0, 0.0]


def test_what_compares_is_settled_with_the_config_and_read_where_something_is_compared(monkeypatch):
    for there, compare in ((None, "plain"), (object(), "math_verify")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: there)
        assert config("dataset=sums", "reward=verifiable").reward.compare == compare
    with pytest.raises(ConfigError, match=r"reward.compare: dataset=sums does not read it"):
        typed("dataset=sums", "reward=verifiable", "reward.compare=plain")
    with pytest.raises(ConfigError, match=r"reward.name: dataset=letters has no right answers"):
        typed("reward=verifiable")


def test_pass_at_k_is_the_mean_over_all_choices_of_k():
    rows = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    found = accuracy(rows.flatten(), torch.ones(12).bool(), 4)
    assert found.keys() == {"eval/accuracy", "eval/pass_at_2", "eval/pass_at_4"}
    assert found["eval/accuracy"] == 3 / 12
    for k in (2, 4):
        one = [any(rows[i, list(some)].bool()) for i in range(3) for some in itertools.combinations(range(4), k)]
        assert found[f"eval/pass_at_{k}"] == pytest.approx(sum(map(bool, one)) / len(one))


def test_it_is_told_where_every_score_is_right_or_wrong_alone():
    every = torch.ones(2).bool()
    assert accuracy(torch.tensor([1.0, 0.5]), every, 1) == {}
    assert accuracy(torch.tensor([1.0, 0.0]), every, 1) == {"eval/accuracy": 0.5}
    # A response that never ended has reward.missing_eos_score, and is wrong.
    assert accuracy(torch.tensor([1.0, -2.0]), torch.tensor([True, False]), 1) == {"eval/accuracy": 0.5}
