"""Faults of single runs never end a sweep; what is finished is not done again; Ctrl-C stops cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder, run_id
from sweeps.experiment import run_experiment
from sweeps.local_launcher import LocalRuns
from sweeps.runs import Stopped
from tests.config.composed import config

TARGET = "tests.sweeps.counting:execute"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_report(monkeypatch):
    """The report takes a second and is no part of what is tested."""
    monkeypatch.setattr("sweeps.experiment.write_report", lambda folder, run, console: None)


def runs(folder: Path, *algos: str, overrides: tuple[str, ...] = ()) -> list[RunConfig]:
    places = (f"output_dir={folder}/runs", f"cache_dir={folder}/cache", "hardware.parallel_runs=2", "tracking=none")
    return [config(f"algo={algo}", "evaluation.reference_responses=0", *places, *overrides) for algo in algos]


def starts(folder: Path) -> list[dict[str, Any]]:
    file = folder / "started.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def started(folder: Path) -> list[str]:
    return [start["run"].partition("-")[0] for start in starts(folder)]


def set_fates(folder: Path, **fates: str) -> None:
    (folder / "fates.json").write_text(json.dumps(fates))


def status(run: RunConfig) -> dict:
    return json.loads((run_folder(run) / "summary.json").read_text())


def test_inputs_first_and_once_then_all_runs(no_report, tmp_path, capsys):
    grid = runs(tmp_path, "apa", "ppo", "awr")
    outcomes = run_experiment(grid, TARGET)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert started(tmp_path)[:2] == ["sft", "reward_model"]
    assert sorted(started(tmp_path)[2:]) == ["apa", "awr", "ppo"]
    assert {start["OMP_NUM_THREADS"] for start in starts(tmp_path)[2:]} == {"1"}
    assert os.getpid() not in {start["pid"] for start in starts(tmp_path)}
    printed = capsys.readouterr().out
    assert "3 runs, after 2 inputs (SFT, reward model); at most 2 at a time (hardware.parallel_runs)" in printed
    assert "3 of 3 runs finished" in printed

    run_experiment(grid, TARGET)
    assert len(started(tmp_path)) == 5
    assert "all 3 runs finished" in capsys.readouterr().out
    run_experiment(runs(tmp_path, "apa", overrides=("overwrite=true",)), TARGET)
    assert started(tmp_path)[5:] == ["apa"]


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("raise", "RuntimeError: the loss is not finite"),
        ("kill", "killed by SIGKILL (out of memory, or kill -9)"),
        ("exit", "exited with code 3 before it had a result"),
    ],
)
def test_a_fault_is_one_failed_row(no_report, tmp_path, capsys, fate, reason):
    set_fates(tmp_path, ppo=fate)
    grid = runs(tmp_path, "ppo", "apa")
    with pytest.raises(Stopped) as stopped:
        run_experiment(grid, TARGET)
    assert stopped.value.exit_code == 1
    assert status(grid[1])["status"] == "finished"
    lines = capsys.readouterr().out.splitlines()
    assert "1 of 2 runs finished" in lines[-3]
    assert lines[-2].startswith(f"failed: {run_id(grid[0])}: {reason} (log: {tmp_path}/runs/default/logs/ppo-s0-")
    assert lines[-1].startswith("rerun just these: python ")
    if fate == "raise":
        log = next((tmp_path / "runs/default/logs").glob("ppo-*"))
        assert "Traceback" in log.read_text()

    set_fates(tmp_path)
    assert [outcome.status for outcome in run_experiment(grid, TARGET)] == ["finished"] * 2
    assert sorted(started(tmp_path)) == ["apa", "ppo", "ppo", "reward_model", "sft"]


def test_runs_without_their_input_are_not_started(tmp_path, capsys):
    set_fates(tmp_path, reward_model="raise")
    grid = runs(tmp_path, "ppo", "apa")
    with pytest.raises(Stopped):
        run_experiment(grid, TARGET)
    assert started(tmp_path) == ["sft", "reward_model"]
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert failed[0].startswith("failed: reward_model-s0-") and "RuntimeError: the loss is not finite" in failed[0]
    assert [line.partition(": its input reward_model-s0-")[0] for line in failed[1:]] == [
        f"failed: {run_id(run)}" for run in grid
    ]


def test_never_more_at_a_time_than_allowed(tmp_path):
    set_fates(tmp_path, apa="slow")
    launcher = LocalRuns(TARGET)
    launcher.open(runs(tmp_path, "apa"))
    for seed in range(3):
        launcher.submit(runs(tmp_path, "apa", overrides=(f"seed={seed}",))[0])
    launcher.poll(0.5)
    assert len(launcher.running) == 2
    launcher.cancel()
    ended = []
    while launcher.busy:
        ended += launcher.poll(0.5)
    assert [outcome.status for outcome in ended] == ["interrupted"] * 3
    assert len(started(tmp_path)) <= 2


def command_line(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    places = (f"output_dir={folder}/runs", f"cache_dir={folder}/cache", "hardware.parallel_runs=2")
    places += ("evaluation.reference_responses=0",)
    command = [
        sys.executable,
        str(ROOT / "tests/sweeps/driver.py"),
        "-m",
        f"hydra.launcher.target={TARGET}",
        *places,
        *overrides,
    ]
    # A session of its own, so that a signal to its group is what Ctrl-C in a terminal is.
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_until_started(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(started(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # the stand-in writes its name just before it is ready for signals


def test_ctrl_c_lets_runs_checkpoint_and_the_same_command_goes_on(tmp_path):
    set_fates(tmp_path, apa="slow", ppo="slow")
    driver = command_line(tmp_path, "algo=apa,ppo,awr")
    wait_until_started(tmp_path, 4)
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert "Traceback" not in output
    assert "interrupted; the same command goes on where it stopped" in output
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "runs/default").glob("*/summary.json")]
    # Told once, by the driver, although the signal went to the whole group.
    assert [(one["status"], one["signals"]) for one in summaries] == [("interrupted", [signal.SIGTERM])] * 2
    assert "awr" not in started(tmp_path)

    set_fates(tmp_path)
    output, _ = command_line(tmp_path, "algo=apa,ppo,awr").communicate(timeout=120)
    assert "3 of 3 runs finished" in output
    assert sorted(started(tmp_path)[4:]) == ["apa", "awr", "ppo"]


def test_second_ctrl_c_kills(tmp_path):
    set_fates(tmp_path, sft="stubborn")
    driver = command_line(tmp_path, "seed=0,1")
    wait_until_started(tmp_path, 1)
    os.killpg(driver.pid, signal.SIGINT)
    time.sleep(0.5)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output


def test_runs_stop_when_their_driver_is_killed(tmp_path):
    set_fates(tmp_path, sft="slow")
    driver = command_line(tmp_path, "seed=0,1")
    wait_until_started(tmp_path, 1)
    driver.kill()
    deadline = time.monotonic() + 10
    while not (summaries := list((tmp_path / "cache/inputs").glob("*/summary.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.1)
    assert json.loads(summaries[0].read_text())["status"] == "interrupted"
