"""sums, countdown and reasoning_gym: tasks with exact answers, SFT texts of mixed quality, a split by prompt."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs
from rlhf.data import load_text_data
from rlhf.data.countdown import evaluated, is_right
from rlhf.data.examples import PARTS, DataError, columns_of
from rlhf.data.reasoning_gym import scored
from tests.config.composed import config

FEW = (
    "dataset.difficulty=3",
    "dataset.num_sft=400",
    "dataset.num_pairs=50",
    "dataset.num_test_pairs=20",
    "dataset.num_eval_prompts=40",
)


def tasks(name: str, *overrides: str) -> RunConfig:
    return config(f"dataset={name}", "reward=verifiable", *FEW, *overrides)


@pytest.mark.parametrize("name", ["sums", "countdown"])
def test_right_answers_are_right_pairs_tell_them_apart_and_sft_texts_are_mixed(name):
    run = tasks(name)
    data = load_text_data(run.dataset)
    assert data.verify is not None

    def share(examples: Any, responses: Any) -> float:
        scores = data.verify([e.prompt for e in examples], list(responses), columns_of(examples))
        return sum(scores) / len(scores)

    for part in (data.prompts, data.eval_prompts):
        assert share(part, [e.response for e in part]) == 1
        assert len({e.prompt for e in part}) == len(part)
    assert share(data.pairs, [e.chosen for e in data.pairs]) == 1
    assert share(data.pairs, [e.rejected for e in data.pairs]) == 0
    assert 0.3 < share(data.sft, [e.response for e in data.sft]) < 0.6
    trained = {e.prompt for e in (*data.sft, *data.pairs, *data.prompts)}
    assert trained.isdisjoint({e.prompt for e in (*data.test_sft, *data.test_pairs, *data.eval_prompts)})
    said = [word for e in (*data.sft, *data.prompts) for word in (e.prompt + e.response).split()]
    assert set(said) <= set(data.words)
    longest = max(len(e.response.split()) for e in (*data.sft, *data.prompts))
    assert longest < run.dataset.max_new_tokens


def test_each_part_has_random_numbers_of_its_own():
    whole = load_text_data(tasks("sums").dataset)
    assert load_text_data(tasks("sums").dataset, ["pairs"]).pairs == whole.pairs
    assert load_text_data(tasks("sums", "dataset.num_sft=20").dataset).sft == whole.sft[:20]
    assert load_text_data(tasks("sums", "dataset.seed=1").dataset).sft != whole.sft


def test_difficulty_is_how_many_numbers_there_are():
    data = load_text_data(tasks("countdown", "dataset.difficulty=5").dataset, ["prompts"])
    assert {len(e.columns["numbers"]) for e in data.prompts} == {5}
    with pytest.raises(DataError, match=r"dataset.num_eval_prompts=40: .* type dataset.num_eval_prompts=\d+,"):
        load_text_data(tasks("sums", "dataset.difficulty=2").dataset, ["eval_prompts"])
    with pytest.raises(DataError, match=r"dataset.max_new_tokens: .* 12 tokens"):
        load_text_data(tasks("countdown", "dataset.difficulty=6", "dataset.max_new_tokens=11").dataset, ["sft"])


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        (" 2 * 3 + 7", True),
        ("7 + 2*3", True),
        (" ( 2 * 3 ) + 7 ", True),
        ("13", False),
        ("2 * 3 + 7 + 7 - 7", False),
        ("2 + 3 + 7", False),
        ("2 ** 3 + 7", False),
        ("2 * 3 + 7 # or not", False),
        ("2 * 3 + -7", False),
        ("__import__('os')", False),
        ("((((((", False),
        ("2 / 0 + 3 + 7", False),
        ("", False),
        ("2 * 3 + 7 =", False),
    ],
)
def test_countdown_counts_each_number_once_exactly(expression, right):
    assert is_right(expression, [3, 2, 7], 13) is right


def test_division_is_exact():
    assert is_right("1 / 3 * 6", [1, 3, 6], 2)
    assert evaluated("(" * 500 + "1" + ")" * 500) is None


def test_right_or_wrong_needs_no_reward_model():
    assert "reward_model" not in [run.stage.name for run in input_runs(tasks("sums"))]


class Stranger:
    """A scorer of which everything can be expected."""

    def score_answer(self, answer: str, entry: dict[str, Any]) -> Any:
        if answer == "slow":
            time.sleep(30)
        if answer == "raises":
            raise RuntimeError("two\nlines")
        return {"nan": float("nan"), "text": "good", "half": 0.5}.get(answer, float(answer == entry["answer"]))


def test_a_strangers_scorer_may_fail_in_any_way(monkeypatch, capsys):
    monkeypatch.setattr("rlhf.data.reasoning_gym.LONGEST_SECONDS", 0.2)
    said = ["1", "<answer>1</answer>", "2", "half", "raises", "nan", "text", "slow"]
    assert scored(Stranger(), "mine", said, {"answer": ["1"] * 8}) == [1, 1, 0, 0.5, 0, 0, 0, 0]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "row 5 of 8" in lines[0] and "two lines" in lines[0]


def test_reasoning_gyms_tasks_are_a_data_set():
    pytest.importorskip("reasoning_gym")
    run = tasks("reasoning_gym", "model=smollm2_135m", "dataset.task=leg_counting", "dataset.num_prompts=20")
    data = load_text_data(run.dataset, [part for part in PARTS if part != "test_sft"])
    assert data.verify is not None and len(data.prompts) == 20
    prompts = data.eval_prompts
    assert data.verify([], [e.response for e in prompts], columns_of(prompts)) == [1.0] * 40
    assert data.verify([], ["no idea"] * 40, columns_of(prompts)) != [1.0] * 40
    with pytest.raises(DataError, match=r"dataset.task: .* did you mean leg_counting"):
        load_text_data(tasks("reasoning_gym", "model=smollm2_135m", "dataset.task=leg_countin").dataset, ["prompts"])
