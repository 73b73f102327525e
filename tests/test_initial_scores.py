"""Scores of the initial policy's responses to the prompts that a run learns from, and runs that compare with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf.config.identity import run_folder
from rlhf.run import execute
from rlhf.runs.state import read_rows
from rlhf.stages.initial_scores import InitialScores
from tests.test_run import assert_same, signal_at, tiny, weights

pytestmark = pytest.mark.usefixtures("torchs_switches")


def files(cache: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (cache / "scores").glob("initial-*.txt")}


def test_scores_of_an_iteration_are_those_of_its_prompts():
    scores = InitialScores(lambda iteration: torch.tensor([7, 2, 7]), {2: 0, 7: 1}, torch.tensor([[1.0, 2], [3, 4]]))
    assert scores.of(1).tolist() == [[3, 4], [1, 2], [3, 4]]


def test_a_run_goes_on_as_if_never_stopped_and_draws_the_same_responses(tmp_path, cache, monkeypatch, capsys):
    expected, run = (
        tiny(tmp_path / name, cache, "a_star_po", "algo.reference_responses=3") for name in ("whole", "stopped")
    )
    assert execute(expected)["status"] == "finished"
    assert "3 responses of the initial policy to each of" in capsys.readouterr().out
    made = files(cache)
    assert made and "train/log_ratio" in read_rows(run_folder(expected))[-1]
    with monkeypatch.context() as patch:
        signal_at(patch, 3)  # no checkpoint is due there
        assert execute(run)["status"] == "interrupted"
    for path in made:
        path.unlink()  # a resumed run's policy is the initial one until its checkpoint is read
    assert execute(run)["status"] == "finished"
    assert_same(run, expected)
    assert {path: content for path, content in files(cache).items() if path in made} == made
    assert not any("value" in name for name in weights(run) if not name.startswith("model."))


@pytest.mark.parametrize(
    ("algo", "overrides", "metric"),
    [
        ("dro_v", ("stage=offline",), "train/value_loss"),
        ("qrpo", ("stage=offline", "algo.reference_responses=2"), "train/log_ratio"),
        ("grpo", ("algo.group_size=2", "algo.kl.estimator=exact"), "train/kl_in_loss"),
        ("grpo", ("algo.group_size=2", "algo.kl.estimator=exact", "algo.kl.place=reward"), "train/clip_fraction"),
    ],
)
def test_what_a_method_needs_is_measured_and_trained(tmp_path, cache, algo, overrides, metric):
    run = tiny(tmp_path, cache, algo, "rollout.iterations=2", *overrides)
    assert execute(run)["status"] == "finished"
    rows = read_rows(run_folder(run))
    assert metric in rows[-1] and rows[-1]["eval/kl"] > 0
    if metric == "train/kl_in_loss":  # the KL over the vocabulary, of a policy that has begun to move
        assert rows[-1][metric] >= 0
