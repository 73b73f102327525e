"""What a run refuses, and that refusing costs nothing that was already there."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import rlhf.stages.loop as loop
from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.finite import NotFinite
from rlhf.run import RunError, execute
from rlhf.runs.checkpoint import load_checkpoint
from rlhf.runs.lock import RunLock
from tests.config.composed import config

SMALL = """
tracking=none hardware.threads=1 hardware.input_threads=1 model.width=32 model.num_layers=2 dataset.max_new_tokens=8
dataset.num_sft=32 dataset.num_pairs=32 dataset.num_test_pairs=8 dataset.num_eval_prompts=8 dataset.num_prompts=24
sft.steps=2 sft.warmup_steps=0 sft.batch_size=8 sft.micro_batch_size=8
reward_model.steps=2 reward_model.warmup_steps=0 reward_model.batch_size=8 reward_model.micro_batch_size=8
rollout.iterations=2 rollout.num_responses=8 rollout.batch_size=8 checkpoint.checkpoint_every=1
optimization.minibatch_size=8 optimization.micro_batch_size=8
"""

pytestmark = pytest.mark.usefixtures("torchs_switches")


def small(output: Path, cache: Path, *overrides: str) -> RunConfig:
    return config(*SMALL.split(), f"output_dir={output}", f"cache_dir={cache}", *overrides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is not refused here")
def test_overwrite_without_a_gpu_deletes_nothing(tmp_path, cache):
    run = small(tmp_path, cache, "hardware.device=cuda", "overwrite=true", "model.sft=false", f"reward.path={cache}")
    folder = run_folder(run)
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "metrics.jsonl").write_text("rows\n")
    with pytest.raises(RunError, match="no CUDA device"):
        execute(run)
    assert (folder / "metrics.jsonl").read_text() == "rows\n"


def test_a_reward_model_given_by_path_is_no_input_of_sft(tmp_path, cache):
    """An SFT run that stopped under one reward.path goes on under none: both have the same SFT."""
    execute(small(tmp_path, cache))
    inputs = input_runs(small(tmp_path, cache))
    own = tmp_path / "own"
    with_path = small(tmp_path, own, f"reward.path={run_folder(inputs[1]) / 'final'}")
    execute(with_path)
    sft = run_folder(input_runs(with_path)[0])
    state = json.loads(next((sft / "checkpoints").iterdir()).joinpath("state.json").read_text())
    assert state["inputs"] == {}


def test_what_a_damaged_checkpoint_covered_is_never_gone_on_from(tmp_path, cache):
    run = small(tmp_path, cache)
    execute(run)
    parent = run_folder(run) / "checkpoints"
    older, newer = sorted(parent.iterdir())
    whole = (newer / "state.json").read_text()
    (newer / "state.json").write_text(whole[:-20])
    assert load_checkpoint(run_folder(run)) is not None
    assert sorted(path.name.partition("-")[0] for path in parent.iterdir()) == [older.name, "damaged"]


def test_a_signal_is_heard_while_another_process_makes_the_input(tmp_path):
    run = small(tmp_path, tmp_path / "cache")
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
    run = small(tmp_path, cache)
    with pytest.raises(NotFinite, match="eval/gold_reward is nan"):
        execute(run)
    text = (run_folder(run) / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert summary["status"] == "failed" and "eval/gold_reward is nan" in summary["error"]


def test_a_lock_that_a_kill_left_in_a_finished_run_is_harmless(tmp_path, cache):
    """Killed between the summary and the end of the lock."""
    run = small(tmp_path, cache)
    execute(run)
    folder = run_folder(run)
    left = {"host": "elsewhere", "pid": 1, "pid_started": "1", "token": "theirs", "heartbeat": 0.0}
    (folder / "lock.json").write_text(json.dumps(left))
    began = time.monotonic()
    assert execute(run)["status"] == "finished"
    assert time.monotonic() - began < 10  # nobody waits for a lease
