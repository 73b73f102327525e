"""Studies whose trials are SLURM jobs: a driver that dies costs no trial, and what is pruned leaves the queue."""

from __future__ import annotations

import signal
from pathlib import Path

from rlhf.runs.state import read_summary
from tests.slurm.cluster import Cluster
from tests.slurm.driving import Sweep
from tests.sweeps.studies import LR, behave, load, spans, states

TUNED = "tests.sweeps.tuned:execute"
PLACES = ("rollout.iterations=4", "hardware.parallel_runs=4", "seed=0,1")


def test_a_driver_killed_twice(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, target=TUNED)
    behave(tmp_path, seconds=0.4)
    typed = (*PLACES, LR, "hydra.sweeper.n_trials=5")
    for ended in (1, 5):
        driver = sweep.start(*typed)
        cluster.wait_until(lambda ended=ended: len(spans(tmp_path, "finished")) >= ended, 120)
        driver.send_signal(signal.SIGKILL)
        sweep.finish(driver)
    code, output = sweep.run(*typed)
    assert code == 0, output
    assert states(load(tmp_path)) == ["COMPLETE"] * 5
    begun = [note["run"] for note in spans(tmp_path, "begin")]
    assert len(begun) == len(set(begun)) == 10
    events = [(note["time"], 1) for note in spans(tmp_path, "begin")]
    events += [(note["time"], -1) for note in spans(tmp_path, "finished")]
    at_once = [sum(step for _, step in sorted(events)[: index + 1]) for index in range(len(events))]
    assert max(at_once) <= 4


def test_a_pruned_trial_leaves_the_queue(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, target=TUNED)
    # The last trial is the worst.
    rates = "optimization.learning_rate=tag(search,choice(1e-3,1.1e-3,1.2e-3,0.9e-3,1e-2))"
    behave(tmp_path, seconds=2.0)
    study = ("hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=5", "hydra.sweeper.pruner=median")
    code, output = sweep.run(*PLACES, rates, *study, seconds=240)
    assert code == 0, output
    assert states(load(tmp_path)) == ["COMPLETE"] * 4 + ["PRUNED"]
    for run in load(tmp_path).trials[4].user_attrs["runs"].values():
        assert read_summary(tmp_path / "runs/default" / run)["status"] == "pruned"
    cluster.wait_until(lambda: not cluster.squeue(), 30)


def test_a_trial_that_was_to_be_pruned_when_its_driver_died(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, target=TUNED)
    behave(tmp_path, seconds=60.0)
    typed = (*PLACES, LR, "hydra.sweeper.n_trials=1")
    driver = sweep.start(*typed)
    cluster.wait_until(lambda: len(spans(tmp_path, "begin")) == 2, 120)
    driver.send_signal(signal.SIGKILL)
    sweep.finish(driver)
    study = load(tmp_path)
    (trial,) = study.get_trials(deepcopy=False)
    study._storage.set_trial_user_attr(trial._trial_id, "stopped", sorted(trial.user_attrs["runs"].values()))
    behave(tmp_path, seconds=0.1)
    code, output = sweep.run(*typed, seconds=180)
    assert code == 0, output
    assert states(load(tmp_path)) == ["PRUNED"] and len(spans(tmp_path, "begin")) == 2
    cluster.wait_until(lambda: not cluster.squeue(), 30)


def test_inputs_are_shown_and_go_on_when_the_sweep_is_cancelled(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, target=TUNED)
    behave(tmp_path, input_seconds=4.0)
    code, output = sweep.run("model.sft=true", "reward.path=null", "hardware.slurm.wait=false")
    assert code == 0, output
    cluster.wait_until(lambda: "running" in sweep.tool("status")[1])
    shown = sweep.tool("status")[1]
    assert [line.split("-")[0] for line in shown.splitlines()[1:4]] == ["sft", "reward_model", "apa"], shown
    said = sweep.tool("cancel")[1]
    assert said.startswith("told to stop: 1 jobs") and "python -m sweeps cancel" in said, said
    cluster.wait_until(lambda: not cluster.squeue(), 60)
    shown = sweep.tool("status")[1]
    assert "sft" not in shown and "apa-s0" in shown, shown


def test_cancel_stops_the_study_and_not_its_runs_alone(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, target=TUNED)
    behave(tmp_path, seconds=1.0)
    driver = sweep.start(
        "rollout.iterations=20", "hardware.parallel_runs=2", "seed=0,1", LR, "hydra.sweeper.n_trials=3"
    )
    cluster.wait_until(lambda: len(spans(tmp_path, "begin")) == 2, 120)
    code, said = sweep.tool("cancel")
    assert code == 0 and said.startswith("told to stop: 2 jobs;"), said
    output = sweep.finish(driver)
    assert driver.returncode == 130, output
    cluster.wait_until(lambda: not cluster.squeue(), 60)
    assert states(load(tmp_path)) == ["RUNNING"] and len(spans(tmp_path, "begin")) == 2
