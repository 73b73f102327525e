"""What each evaluation keeps of every prompt, and when evaluations are made."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder, run_id
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests.test_run import tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")


def evaluations(run: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder(run) / "evaluations.jsonl").read_text().splitlines()]


def finished(output: Path, cache: Path, *settings: str) -> RunConfig:
    run = tiny(output, cache, "apa", *settings)
    assert execute(run)["status"] == "finished"
    return run


def test_the_numbers_of_the_prompts_have_the_metrics_as_means(tmp_path, cache):
    run = finished(tmp_path, cache, "evaluation.responses_per_prompt=3")
    logged = [row for row in read_rows(run_folder(run)) if "eval/kl" in row]
    kept = evaluations(run)
    assert [(row["iteration"], row["step"], row["samples"]) for row in kept] == [
        (row["iteration"], row["step"], row["samples"]) for row in logged
    ]
    for found, row in zip(kept, logged, strict=True):
        for name in ("reward", "kl", "gold_reward"):
            assert len(found[name]) == 8
            assert np.mean(found[name]) == pytest.approx(row[f"eval/{name}"], abs=1e-6)
        assert np.mean(found["reward"][0::2]) == pytest.approx(row["eval/reward_even"])
        assert np.mean(found["reward"][1::2]) == pytest.approx(row["eval/reward_odd"])
    assert kept[0]["kl"] == [0.0] * 8 and min(kept[-1]["kl"]) > 0.0
    # A sample is the first response to its prompt.
    samples = [json.loads(line) for line in (run_folder(run) / "samples.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in samples}) == 2


def test_more_responses_to_a_prompt_measure_it_more_closely(tmp_path, cache):
    """Of the same policy, the initial one: its spread between draws falls as one over the root of their number."""
    spread = {}
    for each in (1, 16):
        means = []
        for seed in range(6):
            settings = (f"evaluation.responses_per_prompt={each}", f"evaluation.seed={seed}", "stage=evaluate")
            means.append(np.mean(evaluations(finished(tmp_path, cache, *settings))[0]["reward"]))
        spread[each] = np.std(means, ddof=1)
    assert spread[16] < 0.7 * spread[1]


def test_another_seed_of_evaluations_leaves_training_as_it_is(tmp_path, cache):
    """To the bit, from the same SFT policy and reward model; what is evaluated is drawn anew."""
    runs = [finished(tmp_path, cache, f"evaluation.seed={seed}", "evaluation.reference_responses=4") for seed in (0, 1)]
    first, second = ([run_id(need) for need in input_runs(run)] for run in runs)
    assert first[:2] == second[:2] and first[2] != second[2]  # the reference samples are evaluation's
    ours, theirs = (read_rows(run_folder(run)) for run in runs)
    assert any(row.get("eval/reward") != other.get("eval/reward") for row, other in zip(ours, theirs, strict=True))
    changing = ("eval/", "perf/", "seconds")
    kept = [[{key: row[key] for key in row if not key.startswith(changing)} for row in rows] for rows in (ours, theirs)]
    assert kept[0] == kept[1] and any("train/reward" in row for row in kept[0])


def test_evaluations_come_where_the_root_of_the_kl_has_moved(tmp_path, cache):
    every, step = "evaluation.eval_every=100", 0.02
    run = finished(tmp_path, cache, every, f"evaluation.kl_step={step}", "optimization.learning_rate=0.01")
    rows = read_rows(run_folder(run))
    expected, last = [0], 0.0
    for row in rows[1:]:
        root = math.sqrt(max(row["train/kl"], 0.0))
        if abs(root - last) >= step or row is rows[-1]:
            expected.append(row["iteration"])
            last = root
    made = [row["iteration"] for row in rows if "eval/kl" in row]
    assert made == expected and len(made) > 2
    seldom = finished(tmp_path, cache, every, "evaluation.kl_step=null", "optimization.learning_rate=0.01")
    assert [row["iteration"] for row in evaluations(seldom)] == [0, 4]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_run_that_goes_on_makes_the_same_evaluations(tmp_path, cache, place):
    """From the checkpoint of iteration 2, which knows the KL of the last evaluation; later rows are made again."""
    settings = ("evaluation.eval_every=100", "evaluation.kl_step=0.02", "optimization.learning_rate=0.01")
    run = finished(tmp_path, cache, *settings)
    folder = run_folder(run)
    whole = (folder / "evaluations.jsonl").read_text()
    shutil.rmtree(folder / "checkpoints" / "00000016")
    (folder / "summary.json").unlink()
    if place == "after":  # killed amid a row
        with (folder / "evaluations.jsonl").open("a") as file:
            file.write('{"step": 16, "rew')
    assert execute(run)["status"] == "finished"
    assert (folder / "evaluations.jsonl").read_text() == whole
