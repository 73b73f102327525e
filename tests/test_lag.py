"""rollout.lag and rollout.precision: responses of another policy than the one that learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import rlhf.stages.loop as loop
from rlhf.algorithms import algorithm_of
from rlhf.algorithms.rloo import leave_one_out
from rlhf.config.build import build_config, config_to_mapping
from rlhf.config.identity import run_folder, run_id
from rlhf.earlier import EarlierPolicies
from rlhf.masked import response_sums
from rlhf.run import execute
from rlhf.runs.state import read_rows
from rlhf.stages.online import Sampled
from rlhf.training_batch import measure_rollouts, training_batch
from tests.config.composed import config, typed
from tests.test_run import assert_same, signal_at, tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")


@pytest.mark.parametrize("lag", [1, 2])
def test_the_policy_of_so_many_iterations_ago_samples_and_is_the_old_one(monkeypatch, tmp_path, cache, lag):
    """Everything is made again by hand: the parameters as iteration i - lag began, and a setup without a lag."""
    run = tiny(tmp_path, cache, "ppo", f"rollout.lag={lag}", "optimization.learning_rate=0.01")
    began: dict[int, dict[str, torch.Tensor]] = {}
    made: dict[int, tuple[Any, Any]] = {}
    setups = []

    def one_iteration(config, setup, responses, progress, now):
        began[now] = {name: x.detach().clone() for name, x in setup.models.policy_parameters.items()}
        setups.append(setup)
        return original(config, setup, responses, progress, now)

    def measuring(config, models, rollouts, iteration, earlier):
        made[iteration] = rollouts, measure_rollouts(config, models, rollouts, iteration, earlier)
        return made[iteration][1]

    original = loop.one_iteration
    monkeypatch.setattr(loop, "one_iteration", one_iteration)
    monkeypatch.setattr(loop, "measure_rollouts", measuring)
    assert execute(run)["status"] == "finished"
    setup = dataclasses.replace(setups[0], earlier=EarlierPolicies({}, 0))
    for iteration, (rollouts, measured) in made.items():
        for by, logprobs in ((max(1, iteration - lag), "old_logprobs"), (iteration, "start_logprobs")):
            with torch.no_grad():
                for name, parameter in setup.models.policy_parameters.items():
                    parameter.copy_(began[by][name])
            if logprobs == "old_logprobs":
                assert torch.equal(Sampled(run, setup, None).rollouts(iteration).response_ids, rollouts.response_ids)
            again = measure_rollouts(run, setup.models, rollouts, iteration).old_logprobs
            assert torch.equal(getattr(measured, logprobs), again)
    # The penalty is of the policy that learns, and the ratio weighs it; not of the one that sampled.
    penalised = training_batch(algorithm_of(config("algo=rloo")), rollouts, measured, torch.zeros(8), kl_coef=1.0)
    kl = response_sums(measured.start_logprobs - measured.reference_logprobs, rollouts.mask)
    torch.testing.assert_close(penalised.advantages, leave_one_out(-kl, 2))
    rows = read_rows(run_folder(run))
    assert rows[1]["train/sampler_kl"] == pytest.approx(0, abs=1e-5)  # the initial policy learns and samples
    assert rows[1]["train/sampler_ess"] == pytest.approx(1, abs=1e-5)
    assert rows[4]["train/sampler_kl"] > 0.01 and rows[4]["train/sampler_ess"] < 0.99
    assert all(row["perf/sampler_logprob_gap"] < 1e-5 for row in rows[1:])


def test_stopped_runs_go_on_with_the_policies_they_had(monkeypatch, tmp_path, cache):
    options = ("rollout.lag=2", "rollout.iterations=5")
    run, whole = tiny(tmp_path / "a", cache, "ppo", *options), tiny(tmp_path / "b", cache, "ppo", *options)
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        assert execute(run)["status"] == "interrupted"
    assert execute(run)["status"] == execute(whole)["status"] == "finished"
    assert_same(run, whole)


def test_a_sampler_that_rounds_otherwise_shows_in_its_own_logprobs_alone(never_stopped, tmp_path, cache):
    """The update's logprobs are of the same weights in float32: the gap is the rounding of bfloat16."""
    run = tiny(tmp_path, cache, "ppo", "rollout.precision=bf16")
    assert execute(run)["status"] == "finished"
    rows, plain = read_rows(run_folder(run)), read_rows(run_folder(never_stopped("ppo")))
    for row, exact in zip(rows[1:], plain[1:], strict=True):
        assert 1e-4 < row["perf/sampler_logprob_gap"] < 0.05 and exact["perf/sampler_logprob_gap"] < 1e-5
        assert row["train/sampler_kl"] != 0.0 and row["train/sampler_ess"] == pytest.approx(1, abs=0.01)
    assert rows[1]["train/kl"] == 0.0  # measured as the reference is, in float32
    evaluated = [{name: x for name, x in row.items() if name.startswith("eval/")} for row in (rows[0], plain[0])]
    assert evaluated[0] == evaluated[1]


def test_no_lag_is_no_part_of_a_run():
    run = config("algo=ppo")
    mapping = config_to_mapping(run)
    del mapping["rollout"]["lag"], mapping["rollout"]["precision"]  # a config from before there was the option
    assert build_config(mapping) == run
    assert run_id(config("algo=ppo", "rollout.lag=0")) == run_id(run) != run_id(config("algo=ppo", "rollout.lag=1"))


def test_a_precision_that_is_the_updates_own_is_refused():
    with pytest.raises(ValueError, match=r"rollout\.precision"):
        typed("rollout.precision=fp32")


@pytest.mark.parametrize("other", ["stage=offline", "stage=sft", "hardware.sharding=fsdp"])
def test_what_samples_by_no_older_policy_refuses_a_lag(other):
    more = ("model.train.mode=all", "hardware.ranks=2") if "fsdp" in other else ()
    with pytest.raises(ValueError, match=r"rollout\.lag"):
        typed(other, "rollout.lag=1", *more)
