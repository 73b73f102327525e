"""What a run refuses, and that refusing costs nothing that was already there."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
import torch

import rlhf.stages.loop as loop
from rlhf.config.identity import input_runs, run_folder
from rlhf.finite import NotFinite
from rlhf.run import RunError, execute
from rlhf.runs.lock import RunLock
from tests.test_run import tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is not refused here")
def test_overwrite_without_a_gpu_deletes_nothing(tmp_path, cache):
    run = tiny(
        tmp_path, cache, "apa", "hardware.device=cuda", "overwrite=true", "model.sft=false", f"reward.path={cache}"
    )
    folder = run_folder(run)
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "metrics.jsonl").write_text("rows\n")
    with pytest.raises(RunError, match="no CUDA device"):
        execute(run)
    assert (folder / "metrics.jsonl").read_text() == "rows\n"


def test_a_reward_model_given_by_path_is_no_input_of_sft(tmp_path, cache):
    """An SFT run that stopped under one reward.path goes on under none: both have the same SFT."""
    execute(tiny(tmp_path, cache))
    inputs = input_runs(tiny(tmp_path, cache))
    own = tmp_path / "own"
    with_path = tiny(tmp_path, own, "apa", f"reward.path={run_folder(inputs[1]) / 'final'}")
    execute(with_path)
    sft = run_folder(input_runs(with_path)[0])
    state = json.loads(next((sft / "checkpoints").iterdir()).joinpath("state.json").read_text())
    assert state["inputs"] == {}


def test_a_signal_is_heard_while_another_process_makes_the_input(tmp_path):
    run = tiny(tmp_path, tmp_path / "cache")
    folder = run_folder(input_runs(run)[0])
    folder.mkdir(parents=True)
    with RunLock(folder):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        assert execute(run)["status"] == "interrupted"
    assert time.monotonic() - began < 10
    assert not run_folder(run).exists()


def test_an_evaluation_that_is_no_number_is_no_result(monkeypatch, tmp_path, cache):
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *given: evaluate(*given) | {"eval/gold_reward": float("nan")})
    run = tiny(tmp_path, cache)
    with pytest.raises(NotFinite, match="eval/gold_reward is nan"):
        execute(run)
    text = (run_folder(run) / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert summary["status"] == "failed" and "eval/gold_reward is nan" in summary["error"]


def test_a_lock_that_a_kill_left_in_a_finished_run_is_harmless(tmp_path, cache):
    """Killed between the summary and the end of the lock."""
    run = tiny(tmp_path, cache)
    execute(run)
    folder = run_folder(run)
    left = {"host": "elsewhere", "pid": 1, "pid_started": "1", "token": "theirs", "heartbeat": 0.0}
    (folder / "lock.json").write_text(json.dumps(left))
    began = time.monotonic()
    assert execute(run)["status"] == "finished"
    assert time.monotonic() - began < 10  # nobody waits for a lease
