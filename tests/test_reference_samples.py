"""stage=reference_samples: what the initial policy answers, made once and kept beside the runs that start from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_folder, run_id, sweep_folder
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests.test_run import tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")

EACH = "evaluation.reference_responses=6"


def reference(run: RunConfig) -> RunConfig:
    return input_runs(run)[-1]


def scores(run: RunConfig) -> dict[str, np.ndarray]:
    with np.load(run_folder(run) / "final" / "scores.npz") as file:
        return dict(file)


def test_runs_of_all_algorithms_share_the_scores_and_keep_one_copy(tmp_path, cache):
    runs = [tiny(tmp_path, cache, algo, EACH, "rollout.iterations=1") for algo in ("apa", "ppo")]
    assert len({run_id(reference(run)) for run in runs}) == 1
    for run in runs:
        assert execute(run)["status"] == "finished"
        summary = json.loads((run_folder(run) / "summary.json").read_text())
        assert summary["reference_samples"] == f"{run_id(reference(run))}.npz"
    (kept,) = (sweep_folder(runs[0]) / "reference_samples").iterdir()
    assert kept.read_bytes() == (run_folder(reference(runs[0])) / "final" / "scores.npz").read_bytes()
    found = scores(reference(runs[0]))
    assert found["reward"].shape == found["gold_reward"].shape == (8, 6)
    assert np.isfinite(found["reward"]).all() and (found["reward"].std(axis=1) > 0).any()
    last = read_rows(run_folder(reference(runs[0])))[-1]
    assert last["eval/reward"] == pytest.approx(found["reward"].mean())
    # The same prompts in the same order as evaluations: their means lie as near as one response allows.
    first = json.loads((run_folder(runs[0]) / "evaluations.jsonl").read_text().splitlines()[0])
    assert first["prompts"] == str(found["prompts"])
    spread = np.sqrt(found["reward"].var(axis=1, ddof=1) * (1 + 1 / 6) / 8).mean() * 4
    assert np.mean(first["reward"]) == pytest.approx(found["reward"].mean(), abs=spread)


def test_it_goes_on_to_the_same_scores(tmp_path, cache):
    run = tiny(tmp_path, cache, "apa", EACH, "stage=reference_samples")
    assert execute(run)["status"] == "finished"
    whole, folder = scores(run), run_folder(run)
    shutil.rmtree(folder / "checkpoints" / "00000006")
    shutil.rmtree(folder / "final")
    (folder / "summary.json").unlink()
    assert execute(run)["status"] == "finished"
    for name, values in scores(run).items():
        assert np.array_equal(values, whole[name])
    assert [row["step"] for row in read_rows(folder)] == [1, 2, 3, 4, 5, 6]


def test_more_responses_begin_with_the_same(tmp_path, cache):
    few, many = (
        tiny(tmp_path, cache, "apa", f"evaluation.reference_responses={count}", "stage=reference_samples")
        for count in (2, 5)
    )
    for run in (few, many):
        execute(run)
    assert np.array_equal(scores(few)["reward"], scores(many)["reward"][:, :2])


def test_none_are_made_unless_asked_for(tmp_path: Path, cache: Path) -> None:
    assert [run.stage.name for run in input_runs(tiny(tmp_path, cache))] == ["sft", "reward_model"]
    with pytest.raises(ConfigError, match=r"evaluation\.reference_responses"):
        tiny(tmp_path, cache, "apa", "stage=reference_samples")
