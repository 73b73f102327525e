"""The sweep's own W&B run: the averaged curves, once for each set of finished runs, found by the documented pattern."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.load import load_sweep
from analysis.summary import compare
from analysis.wandb_run import over_kl, over_samples
from rlhf.config import RunConfig
from sweeps.experiment import run_experiment
from tests.config.composed import config

COUNTING = "tests.sweeps.counting:execute"


def runs(folder: Path, *overrides: str) -> list[RunConfig]:
    (folder / "reward").touch()
    places = (f"output_dir={folder}/runs", f"cache_dir={folder}/cache", f"reward.path={folder}/reward")
    fixed = ("model.sft=false", "rollout.iterations=4", "tracking.wandb=offline", *places)
    return [config(f"algo={algo}", f"seed={seed}", *fixed, *overrides) for algo in ("apa", "ppo") for seed in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished sweep of two algorithms and two seeds, typed twice."""
    folder = tmp_path_factory.mktemp("sweep")
    for _ in range(2):
        run_experiment(runs(folder), COUNTING)
    return folder


def rows_of(run: RunConfig) -> list[dict]:
    from rlhf.config.identity import run_folder

    return [json.loads(line) for line in (run_folder(run) / "metrics.jsonl").read_text().splitlines()]


def test_over_samples_is_mean_and_range_of_the_seeds(folder):
    curves = over_samples(compare(load_sweep(folder / "runs/default")))
    assert [row["samples"] for row in curves] == [0, 64, 128, 192, 256]
    first, second = (rows_of(run)[3]["eval/reward"] for run in runs(folder)[:2])
    assert curves[3]["over_samples/apa/reward_mean"] == pytest.approx((first + second) / 2)
    assert curves[3]["over_samples/apa/reward_min"] == min(first, second)
    assert curves[3]["over_samples/ppo/kl_max"] == max(rows_of(run)[3]["eval/kl"] for run in runs(folder)[2:])


def test_over_kl_ends_where_no_seed_has_spent_as_much(folder):
    curves = over_kl(compare(load_sweep(folder / "runs/default")))
    assert curves[0] == {"kl": 0.0} | {
        f"over_kl/{algo}/reward_gain_{kind}": 0.0 for algo in ("apa", "ppo") for kind in ("mean", "min", "max")
    }
    largest = max(row["eval/kl"] for run in runs(folder) for row in rows_of(run))
    assert curves[-1]["kl"] <= largest
    assert all(earlier["kl"] < later["kl"] for earlier, later in itertools.pairwise(curves))


def test_one_wandb_run_for_each_set_of_finished_runs(folder):
    def found() -> list[Path]:
        return sorted((folder / "runs/default").glob("*/wandb/offline-run-*"))

    assert len(found()) == 1
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(found()[0])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "over_kl/apa/reward_gain_mean" in done.stdout and "over_samples/ppo/kl_max" in done.stdout
    assert "over_kl/apa/seeds" in done.stdout  # and no interval: two seeds carry none
    assert "over_kl/apa/reward_gain_low" not in done.stdout
    assert "kl_efficiency/apa" in done.stdout and '"sweep"' in done.stdout
    run_experiment([*runs(folder), *runs(folder, "algo=awr")], COUNTING)
    assert len(found()) == 2


def test_nothing_is_logged_without_tracking(tmp_path):
    run_experiment(runs(tmp_path, "tracking.wandb=off"), COUNTING)
    assert not (tmp_path / "runs/default/curves").exists()
