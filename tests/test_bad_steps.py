"""optimization.max_bad_steps and those of SFT and reward model: left out, counted, kept, and an end to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf.stages.supervised as supervised
import rlhf.update as updating
from rlhf.algorithms.ilql import ILQL
from rlhf.config.identity import run_folder
from rlhf.finite import NotFinite
from rlhf.optimization import BadSteps
from rlhf.run import execute
from rlhf.runs.checkpoint import load_checkpoint
from rlhf.runs.folder import RunFolder
from rlhf.runs.state import read_rows
from tests.test_run import assert_same, signal_at, tiny, without_time

pytestmark = pytest.mark.usefixtures("torchs_switches")


def spoil(patch: pytest.MonkeyPatch, module: Any, steps: set[int], number: Callable[[tuple[Any, ...]], int]) -> None:
    """The gradients of these optimizer steps are not finite."""
    original = module.clip_and_step

    def clip_and_step(*arguments: Any, **options: Any) -> dict[str, float]:
        if number(arguments) in steps:
            (parameters, *_) = arguments[1].values()
            parameters[0].grad.view(-1)[0] = float("nan")
        return original(*arguments, **options)

    patch.setattr(module, "clip_and_step", clip_and_step)


def step_of(arguments: tuple[Any, ...]) -> int:
    return arguments[3]


def kept(folder: Path) -> dict[str, Any]:
    return {file.name: json.loads(file.read_text()) for file in sorted((folder / "bad_steps").glob("*"))}


def test_bad_steps_of_rl_are_left_out_counted_and_kept_and_resume_is_to_the_bit(tmp_path, cache, monkeypatch):
    spoil(monkeypatch, updating, {1, 6, 7}, step_of)
    whole, stopped = tiny(tmp_path / "whole", cache, "ppo"), tiny(tmp_path / "stopped", cache, "ppo")
    assert execute(whole)["status"] == "finished"
    rows = read_rows(run_folder(whole))
    assert [row.get("train/bad_steps") for row in rows] == [None, 1.0, 3.0, 3.0, 3.0]
    assert [row["step"] for row in rows] == [0, 4, 8, 12, 16]  # they count as steps of the schedule
    files = kept(run_folder(whole))
    assert list(files) == ["00000001.json", "00000006.json", "00000007.json"]
    content = files["00000006.json"]
    assert content["step"] == 6 and "policy gradient is nan" in content["problem"] and len(content["batch"]) == 4
    for response in content["batch"]:
        assert response["prompt"] and isinstance(response["score"], float)
        assert len(response["advantages"]) == len(response["old_logprobs"]) > 0
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        assert execute(stopped)["status"] == "interrupted"
    checkpoint = load_checkpoint(run_folder(stopped))
    assert checkpoint is not None and checkpoint.state["bad_steps"] == 3
    assert execute(stopped)["status"] == "finished"
    assert_same(stopped, whole)


def test_one_too_many_ends_the_run_and_more_may_be_allowed_later(tmp_path, cache, monkeypatch):
    spoil(monkeypatch, updating, {5, 6}, step_of)
    run = tiny(tmp_path, cache, "apa", "optimization.max_bad_steps=1", "checkpoint.checkpoint_every=1")
    with pytest.raises(NotFinite) as error:
        execute(run)
    text = str(error.value)
    assert "\n" not in text and "at optimizer step 6, bad step 2 of this run" in text
    assert "optimization.max_bad_steps=1" in text and str(run_folder(run) / "bad_steps/00000006.json") in text
    assert text.endswith("try a smaller optimization.learning_rate or a larger algo.lam")
    assert len(kept(run_folder(run))) == 2
    again = tiny(tmp_path, cache, "apa", "optimization.max_bad_steps=2", "checkpoint.checkpoint_every=1")
    assert execute(again)["status"] == "finished"
    whole = tiny(tmp_path / "whole", cache, "apa", "optimization.max_bad_steps=2", "checkpoint.checkpoint_every=1")
    execute(whole)
    assert_same(again, whole)


def test_a_bad_loss_of_ilql_is_left_out_too(tmp_path, cache, monkeypatch):
    calls = []
    original = ILQL.loss

    def loss(*arguments: Any) -> Any:
        output = original(*arguments)
        calls.append(1)
        return output if len(calls) != 2 else type(output)(output.loss * float("nan"), output.metrics)

    monkeypatch.setattr(ILQL, "loss", loss)
    run = tiny(tmp_path, cache, "ilql", "stage=offline", "rollout.iterations=1", "optimization.epochs=1")
    assert execute(run)["status"] == "finished"
    assert read_rows(run_folder(run))[-1]["train/bad_steps"] == 1.0
    (content,) = kept(run_folder(run)).values()
    assert "policy_loss is nan" in content["problem"]
    assert all(answer["response"] and "rewards" in answer for answer in content["batch"])


@pytest.mark.parametrize(
    ("stage", "fields"), [("sft", {"prompt", "response"}), ("reward_model", {"chosen", "rejected"})]
)
def test_bad_steps_before_rl(tmp_path, cache, monkeypatch, stage, fields):
    spoil(monkeypatch, supervised, {2}, step_of)
    run = tiny(tmp_path, cache if stage == "reward_model" else tmp_path / "cache", "apa", f"stage={stage}")
    assert execute(run)["status"] == "finished"
    rows = [without_time(row) for row in read_rows(run_folder(run))]
    assert [row.get("train/bad_steps") for row in rows] == [None, None, 1.0, 1.0]
    assert "train/loss" not in rows[2] and "train/loss" in rows[3]
    (content,) = kept(run_folder(run)).values()
    assert len(content["batch"]) == 8 and set(content["batch"][0]) >= fields
    none = tiny(tmp_path / "none", Path(run.cache_dir), "apa", f"stage={stage}", f"{stage}.max_bad_steps=0")
    with pytest.raises(NotFinite, match=rf"{stage}.max_bad_steps=0 .*; try a smaller {stage}.learning_rate$"):
        execute(none)


def test_a_step_that_is_left_out_changes_nothing(tmp_path, cache, monkeypatch):
    """Weights and moments after a run whose every step was bad are those before it."""
    spoil(monkeypatch, updating, set(range(4)), step_of)
    run = tiny(tmp_path, cache, "apa", "rollout.iterations=1", "optimization.max_bad_steps=4")
    assert execute(run)["status"] == "finished"
    last = read_rows(run_folder(run))[-1]
    assert last["train/bad_steps"] == 4.0 and "train/policy_loss" not in last and last["eval/kl"] == 0.0
    checkpoint = load_checkpoint(run_folder(run))
    assert checkpoint is not None
    assert all(not tensor.any() for name, tensor in checkpoint.tensors.items() if name.startswith("optimizer."))


def test_files_are_bounded_and_broken_weights_end_a_run_at_once(tmp_path):
    error, whole = NotFinite("the loss is nan at optimizer step 1; try less"), {"a": torch.nn.Parameter(torch.ones(2))}
    numbers = torch.tensor([float("nan"), -float("inf")])
    with RunFolder(tmp_path) as folder:
        bad = BadSteps(folder, "sft.max_bad_steps", 100)
        for step in range(60):
            bad.skip(error, step, whole, lambda: [{"text": "x", "numbers": numbers}])
    assert bad.count == 60 and len(kept(tmp_path)) <= 16
    assert kept(tmp_path)["00000000.json"]["batch"] == [{"text": "x", "numbers": ["nan", "-inf"]}]
    broken = {"a": torch.nn.Parameter(torch.tensor([1.0, float("nan")]))}
    with pytest.raises(NotFinite, match=r"the weights are not finite at optimizer step 61 \(a\); try less"):
        bad.skip(error, 61, broken, list)
