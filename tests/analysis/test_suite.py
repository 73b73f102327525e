"""Measures over several tasks, by hand and against scipy's trimmed mean."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from analysis.__main__ import main
from analysis.suite import aggregate, improvement, interquartile_mean, mean, median, optimality_gap, profile
from tests.analysis.test_verdict import DIFFICULTY, PROMPTS, run

TASKS = [np.array([0.2, 0.4, 0.6, 0.8]), np.array([0.1, 0.3, 0.5, 1.5])]


def test_the_measures_by_hand() -> None:
    # Of 8 runs 2 go at each end: 0.3, 0.4, 0.5, 0.6 remain.
    assert interquartile_mean(TASKS) == pytest.approx(0.45) == trim_mean(np.concatenate(TASKS), 0.25)
    assert median(TASKS) == pytest.approx((0.5 + 0.6) / 2) and mean(TASKS) == pytest.approx(0.55)
    assert optimality_gap(TASKS) == pytest.approx((0.5 + (0.9 + 0.7 + 0.5 + 0.0) / 4) / 2)
    assert profile(TASKS, np.array([0.0, 0.45, 2.0])).tolist() == [1.0, 0.5, 0.0]


def test_the_probability_of_improvement_is_that_of_mann_and_whitney() -> None:
    others = [np.array([0.2, 0.3, 0.6]), np.array([0.0, 0.2])]
    found = improvement(TASKS, others)
    expected = [mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(TASKS, others, strict=True)]
    assert found.value == pytest.approx(np.mean(expected))
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    assert improvement(TASKS, TASKS).value == 0.5


def test_intervals_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.suite.RESAMPLES", 400)
    draw, inside = np.random.default_rng(0), 0
    for _ in range(120):
        found = aggregate([draw.normal(0.5, 0.1, 10) for _ in range(4)], interquartile_mean)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.5 <= found.high
    assert 0.85 <= inside / 120 <= 1.0


@pytest.mark.parametrize("runs", [1, 10])
def test_intervals_hold_for_prompts_too(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all runs of a task share by answering the same prompts does not lessen with more runs."""
    monkeypatch.setattr("analysis.suite.RESAMPLES", 200)
    draw, inside = np.random.default_rng(0), 0
    for _ in range(100):
        tasks = [0.5 + draw.normal(0, 0.3, 40) + draw.normal(0, 0.01, (runs, 1)) + np.zeros((runs, 40)) for _ in "123"]
        found = aggregate(tasks, mean)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.5 <= found.high
    assert inside / 100 >= 0.88  # over runs alone: none with one run, about 20 of 100 with ten


def test_shared_prompts_cancel_where_algorithms_meet() -> None:
    easy = np.random.default_rng(0).normal(0.0, 0.5, 40)
    ours, theirs = ([level + easy + np.zeros((3, 1))] for level in (0.6, 0.5))
    found = improvement(ours, theirs)
    assert (found.low, found.value, found.high) == (None, 1.0, None)  # one of no width would claim certainty


def task(folder: Path, slopes: dict[str, float], seed: int, runs: int = 3) -> Path:
    rewards = DIFFICULTY[:, None] + np.random.default_rng(seed).normal(size=(PROMPTS, 256))
    (folder / "reference_samples").mkdir(parents=True)
    np.savez(folder / "reference_samples" / "ref.npz", reward=rewards)
    for algo, slope in slopes.items():
        for number in range(runs):
            run(folder, algo, number, slope, largest=1.0, reference="ref.npz")
    return folder


def test_the_command_ranks_algorithms_over_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = task(tmp_path / "first", {"apa": 0.9, "ppo": 0.6, "awr": 0.2}, 1)
    second = task(tmp_path / "second", {"apa": 0.7, "ppo": 0.4}, 2)
    assert main(["suite", str(first), str(second), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.index("apa: IQM") < said.index("ppo: IQM") and "awr: IQM" not in said
    assert f"left out: awr, which has no runs in {second}" in said
    assert "P(apa beats ppo): 1.000" in said
    rows = list(csv.DictReader((tmp_path / "out" / "suite.csv").open()))
    assert [row["algo"] for row in rows] == ["apa", "ppo"]
    # Normal rewards: the optimum gains sqrt(2 K).
    assert float(rows[0]["iqm"]) == pytest.approx(0.8 / np.sqrt(2.0), abs=0.08)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"suite.csv", "pairs.csv", "profiles.csv"}


def test_two_runs_of_a_task_speak_for_themselves_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [task(tmp_path / "few", {"apa": 0.9}, 1, runs=2), task(tmp_path / "more", {"apa": 0.6}, 2)]
    assert main(["suite", *map(str, folders)]) == 0
    assert "Intervals of apa are over prompts, for these runs alone" in capsys.readouterr().out


def test_two_runs_are_not_drawn() -> None:
    """Their own spread is none of other runs; without prompts nothing is left to draw."""
    found = aggregate([np.array([0.2, 0.8])], mean)
    assert (found.value, found.low, found.high) == (0.5, None, None)
    prompts = np.random.default_rng(0).normal(size=40)
    apart, near = (aggregate([np.array([[-gap], [gap]]) + prompts], mean) for gap in (1.0, 0.0))
    assert apart.low == pytest.approx(near.low) and apart.high == pytest.approx(near.high)


def test_tasks_that_cannot_be_pooled_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = task(tmp_path / "first", {"apa": 0.9}, 1)
    for arguments, words in (
        ([first], "at least two"),
        ([first, first], "at least two"),
        ([first, task(tmp_path / "other", {"ppo": 0.9}, 2)], "no algorithm"),
    ):
        assert main(["suite", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err
    run(tmp_path / "bare", "apa", 0, 0.5)
    assert main(["suite", str(first), str(tmp_path / "bare")]) == 2
    assert "evaluation.reference_responses" in capsys.readouterr().err
