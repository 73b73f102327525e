"""reward=python: what a function is given, what is made of what it returns, and what ends a run in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf.stages.loop as loop
from rlhf.config import RunConfig
from rlhf.config.identity import run_folder, run_id
from rlhf.config.user_code import UserCodeError, load
from rlhf.data import load_text_data
from rlhf.data.examples import Demonstration, TextData
from rlhf.errors import UserError
from rlhf.run import RunError, execute
from rlhf.runs.state import read_rows
from rlhf.scorers.python import PythonScorer, load_python
from tests.config.composed import checked, composed
from tests.scorers.made_up import own_run
from tests.test_run import outcome, tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")

PROMPTS, ANSWERS = ["a", "bb", "ccc"], [" x", "", " yy"]
TASKS = ("dataset=sums", "dataset.num_prompts=24", "reward=python", "rollout.iterations=2")


def scorer(tmp_path: Path, source: str, names: str = "score", **settings: Any) -> PythonScorer:
    (tmp_path / "mine.py").write_text(source)
    spec = f"{tmp_path}/mine.py:{names}"
    functions = load(spec, "reward.path")
    values: dict[str, Any] = {"weights": [1.0] * len(functions), "timeout_seconds": 5.0, **settings}
    return PythonScorer(spec, functions, **values)


def test_it_gets_all_texts_and_the_columns_of_their_rows(tmp_path):
    source = "def score(prompts, completions, answer, **others):\n    assert isinstance(prompts, list)\n"
    source += "    return [len(p) + len(c) / 10 + a + len(others) for p, c, a in zip(prompts, completions, answer)]\n"
    scores = scorer(tmp_path, source).score(PROMPTS, ANSWERS, {"answer": [100, 200, 300], "other": "xyz"})
    assert scores.tolist() == pytest.approx([102.2, 203.0, 304.3]) and scores.dtype == torch.float32


def test_several_are_weighted_and_added_up(tmp_path):
    source = (
        "def one(prompts, **_): return [len(p) for p in prompts]\ndef two(completions, **_): return [1, 2.5, True]\n"
    )
    scores = scorer(tmp_path, source, "one+two", weights=[2.0, -1.0]).score(PROMPTS, ANSWERS)
    assert scores.tolist() == [1.0, 1.5, 5.0]


@pytest.mark.parametrize(
    "returned",
    [
        "(1, 2, 3)",
        "__import__('numpy').arange(1, 4)",
        "__import__('torch').tensor([1.0, 2, 3])",
        "[__import__('numpy').float32(1), __import__('torch').tensor(2), 3]",
    ],
)
def test_whatever_numbers_are_in_will_do(tmp_path, returned):
    scores = scorer(tmp_path, f"def score(**_): return {returned}\n").score(PROMPTS, ANSWERS)
    assert scores.tolist() == [1.0, 2.0, 3.0]


def test_what_it_changes_in_its_lists_changes_nothing_here(tmp_path):
    columns = {"answer": ["1", "2", "3"]}
    source = "def score(prompts, completions, answer):\n    answer.clear(); prompts.clear(); return [0] * 3\n"
    scorer(tmp_path, source).score(PROMPTS, ANSWERS, columns)
    assert columns == {"answer": ["1", "2", "3"]} and len(PROMPTS) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[1 / (len(p) - 2) for p in prompts]", r"mine\.py, line 1: ZeroDivisionError.*\(row 2 of 3: prompt 'bb'"),
        ("[float('nan') if p == 'ccc' else 0 for p in prompts]", r"score nan, which is not finite \(row 3 of 3"),
        ("[1e39 for p in prompts]", r"score 1e\+39, which is not finite \(row 1 of 3"),
        ("['good' for p in prompts]", r"score 'good', which is no number \(row 1 of 3"),
        ("[None if p == 'bb' else 1.0 for p in prompts]", r"score None, which is no number \(row 2 of 3"),
        ("[1.0, 2.0]", r"returned 2 scores for 3 responses"),
        ("[1.0 for p in prompts if p != 'bb']", r"returned 2 scores for 3 responses \(row 2 of 3"),
        ("None", r"returned NoneType, not a list"),
        ("'123'", r"returned str, not a list"),
        ("[1 / (3 - len(prompts))] * 3", r"ZeroDivisionError.*none of which does it alone"),
    ],
)
def test_what_it_does_wrong_is_one_line_with_the_row(tmp_path, body, message):
    wrong = scorer(tmp_path, f"def score(prompts, completions): return {body}\n")
    with pytest.raises(UserCodeError, match=message) as error:
        wrong.score(PROMPTS, ANSWERS)
    assert str(error.value).startswith("reward.path: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("body", ["time.sleep(60)", "while True: pass"])
def test_a_function_that_does_not_come_back_ends_in_time_with_the_row(tmp_path, body):
    source = f"import time\ndef score(prompts, completions):\n    if 'bb' in prompts:\n        {body}\n"
    source += "    return [0.0] * len(prompts)\n"
    began = time.monotonic()
    with pytest.raises(UserCodeError, match=r"reward\.timeout_seconds=0\.3.*\(row 2 of 3: prompt 'bb'"):
        scorer(tmp_path, source, timeout_seconds=0.3).score(PROMPTS, ANSWERS)
    assert time.monotonic() - began < 3


def test_a_column_that_the_data_lacks_is_told_before_anything_is_sampled(tmp_path):
    (tmp_path / "mine.py").write_text("def score(prompts, completions, solution): return [0.0] * len(prompts)\n")
    run = tiny(tmp_path, tmp_path, "apa", *TASKS, f"reward.path={tmp_path}/mine.py:score")
    data = TextData(prompts=[Demonstration("1", "2", {"answer": "2"})])
    with pytest.raises(UserCodeError, match=r"the data has answer; .* 'solution'"):
        load_python(run, None, torch.device("cpu"), data)


RIGHT = "def score(prompts, completions, answer, **_):\n"
RIGHT += "    return [float(c.strip() == a) - len(p) / 100 for p, c, a in zip(prompts, completions, answer)]\n"


def rewarded(tmp_path: Path, cache: Path, *overrides: str) -> RunConfig:
    return tiny(tmp_path, cache, "rloo", *TASKS, f"reward.path={tmp_path.parent}/mine.py:score", *overrides)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(RIGHT)
    return tmp_path / "runs"


def test_a_run_needs_no_reward_model_and_columns_go_with_their_groups(mine, cache):
    run = rewarded(mine, cache, "algo.group_size=4", "optimization.micro_batch_size=4", "evaluation.samples=8")
    assert execute(run)["status"] == "finished"
    samples = [json.loads(line) for line in (run_folder(run) / "samples.jsonl").read_text().splitlines()]
    answers = {e.prompt: e.columns["answer"] for e in load_text_data(run.dataset, ["eval_prompts"]).eval_prompts}
    for sample in samples:
        right = float(sample["response"].strip() == answers[sample["prompt"]])
        assert sample["reward"] == pytest.approx(right - len(sample["prompt"]) / 100, abs=1e-6)


def test_it_goes_on_to_the_bit_and_never_with_another_function(mine, cache, monkeypatch):
    whole = rewarded(mine, cache, "sweep_name=whole", "checkpoint.checkpoint_every=1")
    assert execute(whole)["status"] == "finished"
    run = rewarded(mine, cache, "sweep_name=stopped", "checkpoint.checkpoint_every=1")
    real = loop.one_iteration

    def failing(*arguments: Any) -> dict[str, float]:
        if arguments[-1] == 2:
            raise RuntimeError("power cut")
        return real(*arguments)

    monkeypatch.setattr(loop, "one_iteration", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        execute(run)
    monkeypatch.setattr(loop, "one_iteration", real)
    file = mine.parent / "mine.py"
    file.write_text(RIGHT.replace("/ 100", "/ 10"))
    with pytest.raises(RunError, match=re.escape(f"reward.path: {file}:score: changed since")):
        execute(run)
    fresh = dataclasses.replace(run)
    assert run_id(fresh) != run_id(run)
    file.write_text(RIGHT)
    assert execute(run)["status"] == "finished"
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.path={}/lacking.py:score"], r"reward\.path: .*the data has answer; .* 'solution'"),
        (["dataset.stop_strings=['x[EOS]y']", "reward.path={}/mine.py:score"], r"dataset\.stop_strings: "),
    ],
)
def test_what_rl_would_refuse_is_refused_before_sft(mine, tmp_path, overrides, message):
    """The cache is empty, and stays without an SFT policy."""
    (tmp_path / "lacking.py").write_text("def score(prompts, completions, solution): return [0.0] * len(prompts)\n")
    given = [text.format(tmp_path) for text in overrides]
    run = tiny(mine, tmp_path / "cache", "rloo", *TASKS, *given)
    with pytest.raises(UserError, match=message):
        execute(run)
    assert not list((tmp_path / "cache").rglob("final"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # ranks wait for each other, long on a busy machine
def test_two_ranks_find_code_and_data_of_the_user_and_give_what_one_gives(tmp_path, monkeypatch):
    """A reward and an algorithm from a file, pairs from another, by relative paths."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    given = own_run(tmp_path)
    rewards = []
    for ranks in (1, 2):
        run = checked(composed(*given, f"hardware.ranks={ranks}", "cache_dir=cache", f"output_dir=runs{ranks}"), {})
        assert execute(run)["status"] == "finished"
        rewards.append([row["eval/reward"] for row in read_rows(run_folder(run)) if "eval/reward" in row])
    assert rewards[1] == pytest.approx(rewards[0], rel=2e-3, abs=2e-4) and len(rewards[0]) == 2
