"""The loss scale of float16: by hand, in an optimizer step, and in whole runs that overflow."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import rlhf.stages.loop as loop
from rlhf.algorithms import algorithm_of
from rlhf.algorithms.ilql_heads import ILQLHeads
from rlhf.batches import TrainingBatch
from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.optimization import NotFinite, clip_and_step
from rlhf.precision import LossScaler, autocast
from rlhf.run import _set_up_torch, execute
from rlhf.sampling.fast import Graphs, Running
from rlhf.stages.online import EarlyScores
from rlhf.update import update
from tests.config.composed import config
from tests.helpers import VOCAB, WIDTH, policy_models, random_rollouts, tiny_model
from tests.test_run import tiny, without_time

pytestmark = pytest.mark.usefixtures("torchs_switches")


def test_the_factor_halves_on_overflow_and_doubles_after_2000_good_steps():
    scaler = LossScaler("fp16")
    assert scaler.factor == 65536.0
    scaler.stepped(overflow=True)
    assert scaler.factor == 32768.0
    for _ in range(1999):
        scaler.stepped(overflow=False)
    assert scaler.factor == 32768.0
    scaler.stepped(overflow=False)
    assert (scaler.factor, scaler.good_steps) == (65536.0, 0)
    for _ in range(1999):
        scaler.stepped(overflow=False)
    scaler.stepped(overflow=True)  # the count starts again
    scaler.stepped(overflow=False)
    assert (scaler.factor, scaler.good_steps) == (32768.0, 1)
    again = LossScaler("fp16")
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict() == scaler.state_dict() == {"factor": 32768.0, "good_steps": 1}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_are_left_alone(precision):
    scaler, loss = LossScaler(precision), torch.ones(())
    scaler.stepped(overflow=True)
    assert scaler.scaled(loss) is loss and scaler.factor == 1.0 and not scaler.forgives(float("inf"))


def test_a_scaled_step_is_the_plain_step():
    stepped = []
    for scaler in (LossScaler("fp16"), LossScaler("fp32")):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        scaler.scaled((parameter**2).sum()).backward()
        norms = clip_and_step(optimizer, {"policy": [parameter]}, 1.0, 0, scaler)
        assert norms["policy"] == pytest.approx(20**0.5)  # the gradient is [2, -4]
        stepped.append(parameter.detach())
    torch.testing.assert_close(*stepped)


def test_an_overflow_costs_the_step_until_the_factor_is_1():
    parameter, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([parameter, other], lr=0.1), LossScaler("fp16")
    scaler.factor = 2.0
    for factor in (2.0, 1.0):
        assert scaler.factor == factor
        parameter.grad, other.grad = torch.ones(2), torch.tensor([1.0, float("inf")])
        if factor == 1.0:
            with pytest.raises(NotFinite, match="the value gradient is"):
                clip_and_step(optimizer, {"policy": [parameter], "value": [other]}, 1.0, 7, scaler)
        else:
            assert clip_and_step(optimizer, {"policy": [parameter], "value": [other]}, 1.0, 7, scaler) == {}
            assert parameter.grad is None and other.grad is None
        assert torch.equal(parameter, torch.ones(2)) and torch.equal(other, torch.ones(2))


def test_autocast_computes_in_what_the_precision_says():
    left = torch.ones(2, 2)
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        with autocast(torch.device("cpu"), precision):
            assert (left @ left).dtype == dtype


def rows(run: RunConfig) -> list[dict]:
    return [json.loads(line) for line in (run_folder(run) / "metrics.jsonl").read_text().splitlines()]


def test_runs_in_float16_go_past_overflows_and_go_on_where_they_stopped(tmp_path, cache, monkeypatch):
    """A factor of 2^30 overflows float16 at first; 2^16, the usual one, never does here."""
    monkeypatch.setattr(LossScaler, "START", 2.0**30)
    run = tiny(tmp_path / "whole", cache, "apa", "hardware.precision=fp16", "optimization.epochs=8")
    assert execute(run)["status"] == "finished"
    trained = rows(run)[1:]
    assert all("train/skipped_steps" in row for row in trained)
    assert sum(row["train/skipped_steps"] for row in trained) > 0
    assert trained[-1]["train/skipped_steps"] == 0 and trained[-1]["train/grad_norm"] > 0
    for needed in input_runs(run):
        assert all("train/skipped_steps" in row for row in rows(needed)[1:]), needed.stage.name

    class Killed(Exception):
        pass

    stopped, plain = tiny(tmp_path / "stopped", cache, "apa", "hardware.precision=fp16", "optimization.epochs=8"), []

    def iteration(*inputs):
        plain.append(None)
        if len(plain) == 3:
            raise Killed
        return original(*inputs)

    original = loop.one_iteration
    monkeypatch.setattr(loop, "one_iteration", iteration)
    with pytest.raises(Killed):
        execute(stopped)
    execute(stopped)
    assert [without_time(row) for row in rows(stopped)] == [without_time(row) for row in rows(run)]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_on_a_gpu(precision, tmp_path: Path, cache, capfd, monkeypatch):
    """With captured steps, rows retired, and responses scored while others are sampled."""
    happened = Counter[str]()
    for where, name in ((Graphs, "run"), (Running, "keep"), (EarlyScores, "ask")):
        original = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, _o=original, _n=name, **k: (happened.update([_n]), _o(*a, **k))[1])
    several = "rollout.batch_size=4", "dataset.max_new_tokens=24"
    run = tiny(tmp_path, cache, "apa", "hardware.device=cuda", f"hardware.precision={precision}", *several)
    assert execute(run)["status"] == "finished"
    assert "CUDA graph" not in capfd.readouterr().err
    assert set(happened) == {"run", "keep", "ask"}


def test_a_run_computes_without_cudnns_attention():
    torch.backends.cuda.enable_cudnn_sdp(True)
    _set_up_torch(config())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("overflow", [False, True])
def test_an_overflow_does_not_sync_ilqls_target_heads(overflow, monkeypatch):
    run, rollouts = config("algo=ilql", "stage=offline", "optimization.epochs=1"), random_rollouts([3, 2], [2, 4])
    settings = dataclasses.replace(run.optimization, minibatch_size=2, micro_batch_size=2)
    run = dataclasses.replace(run, optimization=settings, algo=dataclasses.replace(run.algo, sync_every=1, polyak=1.0))
    models, algorithm = policy_models(tiny_model(), "all", precision="fp16", critic=False), algorithm_of(run)
    heads = ILQLHeads(WIDTH, VOCAB, two_qs=False, init_std=0.1, device=models.device)
    with torch.no_grad():
        heads.v[2].weight.add_(1.0), heads.q[0][2].weight.add_(0.5)
    algorithm.heads, syncs = heads, []
    monkeypatch.setattr(heads, "sync", syncs.append)
    models.scaler.factor = 2.0**60 if overflow else 2.0
    nothing, rewards = torch.zeros(rollouts.mask.shape), torch.where(rollouts.mask, 1.0, 0.0)
    batch = TrainingBatch(torch.arange(2), rollouts.mask, nothing, nothing, rewards=rewards)
    trained = [*models.policy_parameters.values(), *heads.trained_parameters()]
    optimizer = torch.optim.SGD([{"params": trained, "initial_lr": 0.01}], lr=0.01)
    features = models.features(rollouts)
    metrics, step = update(run, algorithm, models, optimizer, batch, features, iteration=1, step=0)
    assert step == 1 and metrics["skipped_steps"] == float(overflow)
    assert syncs == ([] if overflow else [1.0])
