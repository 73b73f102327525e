"""What a study that was killed, shared or begun afresh must not forget, repeat or believe."""

from __future__ import annotations

import threading
import time

import pytest
from optuna.trial import FrozenTrial, TrialState

from rlhf.config.identity import input_runs, run_id
from sweeps import study as studies
from sweeps.study import OpenTrial
from sweeps.trials_report import line_on
from tests.sweeps.studies import LR, behave, load, search, spans, states, stored, summary

__all__ = ["search"]

EPOCHS = "optimization.epochs=range(1,5)"


def test_a_trial_that_was_to_be_pruned_is_so_after_a_kill(search, tmp_path):
    killed = stored(tmp_path, "seed=0,1", LR, n_trials=2)
    decided = killed.ask()
    assert isinstance(decided, OpenTrial)
    first, second = decided.runs
    first.mkdir(parents=True)  # at work; the other waits
    decided.study.prune(decided, decided.runs)  # and here the driver was killed, before it stopped them
    code, _ = search("seed=0,1", LR, n_trials=2, pruner="median")
    assert (code, states(load(tmp_path))) == (0, ["PRUNED", "COMPLETE"])
    assert {note["run"] for note in spans(tmp_path, "begin")}.isdisjoint({first.name, second.name})
    assert summary(tmp_path, first.name)["status"] == "pruned"


def test_a_pruned_trial_of_a_study_begun_afresh_is_forgotten(search, tmp_path):
    old = stored(tmp_path, LR, n_trials=1).ask()
    assert isinstance(old, OpenTrial)
    for folder in old.runs:
        folder.mkdir(parents=True)
    old.study.prune(old, old.runs)
    ((run, config),) = old.runs.items()
    studies.mark_pruned(config)
    assert summary(tmp_path, run.name)["status"] == "pruned"
    stored(tmp_path, LR, "overwrite=true", n_trials=1)  # killed here; from now on without overwrite
    assert search(LR, n_trials=1)[0] == 0
    assert states(load(tmp_path)) == ["COMPLETE"]
    assert [note["run"] for note in spans(tmp_path, "finished")] == [run.name]  # the same values, run this time


def test_a_trial_that_its_driver_had_no_time_to_mark(search, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "MARKED_WITHIN_SECONDS", 0.1)
    storage = f"sqlite:///{tmp_path}/studies.db"
    stored(tmp_path, LR, n_trials=2, storage=storage).study.ask()
    code, printed = search(LR, n_trials=2, storage=storage)
    assert code == 0 and "2 trials of 1 run; there: 1 at work, 1 of them taken up again" in printed
    assert "at work" not in printed.splitlines()[-1] and printed.splitlines()[-1].endswith("2 complete")


def test_qmc_goes_on_after_trials_that_failed(search, tmp_path):
    typed = (LR, "optimization.max_grad_norm=interval(0.5,2)", "hardware.parallel_runs=1")
    behave(tmp_path, fates={"apa": "raise"})
    for n_trials in (1, 2):
        search(*typed, n_trials=n_trials, sampler="qmc")
    behave(tmp_path)
    search(*typed, n_trials=4, sampler="qmc")
    search(*typed, "sweep_name=whole", n_trials=4, sampler="qmc")
    parts, whole = (
        [trial.params for trial in load(tmp_path, name).trials] for name in ("default/algo=apa", "whole/algo=apa")
    )
    assert parts == whole and len({str(one) for one in whole}) == 4


def test_what_a_run_reached_unseen_counts_for_later_trials(search, tmp_path):
    search(LR, n_trials=2, pruner="median", sampler="random")
    for trial in load(tmp_path).trials:  # its runs took no time; an evaluation after each of 4 iterations
        assert list(trial.intermediate_values) == [64, 128, 192, 256]


def test_trials_that_wait_for_inputs_leave_their_slots_to_other_studies(search, tmp_path):
    behave(tmp_path, input_seconds=1.0)
    assert search("model.width=32,64", "seed=0,1", LR, n_trials=1)[0] == 0
    begun = [note["time"] for note in spans(tmp_path, "begin", of=("sft",))]
    ended = [note["time"] for note in spans(tmp_path, "finished", of=("sft",))]
    assert len(begun) == 2 and max(begun) < min(ended)


def test_values_that_cannot_be_together_are_not_tried_again(search, tmp_path):
    sizes = [f"optimization.{name}=tag(search,choice(8,16))" for name in ("minibatch_size", "micro_batch_size")]
    code, printed = search(*sizes, sampler="grid", n_trials=4)
    (bad,) = [trial for trial in load(tmp_path).trials if trial.state == TrialState.FAIL]
    assert code == 1 and tuple(bad.params.values()) == (8, 16) and "retry_failed" not in printed
    assert bad.user_attrs["reason"].startswith("optimization.micro_batch_size: 16 does not divide")
    behave(tmp_path, fates={"apa": "raise"})
    assert search(*sizes, "sweep_name=other", sampler="grid", n_trials=4)[0] == 1
    behave(tmp_path)
    code, _ = search(*sizes, "sweep_name=other", sampler="grid", n_trials=4, retry_failed=True)
    retried = states(load(tmp_path, "other/algo=apa"))
    assert code == 1 and retried == ["FAIL"] * 4 + ["COMPLETE"] * 3


def test_a_search_over_inputs_own_settings_goes_on_without_the_one_that_failed(search, tmp_path):
    rates = "reward_model.learning_rate=tag(search,choice(1e-4,1e-3,1e-2))"
    spec = stored(tmp_path, rates, sampler="grid", n_trials=3).spec
    assert not spec.shares_inputs and stored(tmp_path, LR, "sweep_name=b", n_trials=1).spec.shares_inputs
    bad = input_runs(spec.runs({"reward_model.learning_rate": 1e-3})[0])[-1]
    behave(tmp_path, fates={run_id(bad): "raise"}, input_seconds=1.0)
    code, printed = search(rates, sampler="grid", n_trials=3)
    assert (code, states(load(tmp_path))) == (1, ["COMPLETE", "FAIL", "COMPLETE"])
    assert f"its input {run_id(bad)} failed" in load(tmp_path).trials[1].user_attrs["reason"] and "retry" in printed
    begun = [note["time"] for note in spans(tmp_path, "begin", of=("reward_model",))]
    assert len(begun) == 3 and begun[1] - begun[0] < 0.9  # side by side: each takes two of the four threads


def test_a_trial_that_another_process_told_is_left_alone(search, tmp_path):
    behave(tmp_path, seconds=0.3)

    def tell() -> None:
        deadline = time.monotonic() + 30
        while not spans(tmp_path, "begin") and time.monotonic() < deadline:
            time.sleep(0.02)
        load(tmp_path).tell(0, state=TrialState.FAIL)

    thread = threading.Thread(target=tell)
    thread.start()
    _, printed = search(LR, n_trials=2, pruner="median")
    thread.join()
    assert states(load(tmp_path)) == ["FAIL", "COMPLETE"] and "trial 0: told by another process" in printed


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_pruner_reads_both_seeds(search, tmp_path, pruner):
    behave(tmp_path, seconds=0.05)
    assert search("seed=0,1", LR, n_trials=2, pruner=pruner)[0] == 0
    for trial in load(tmp_path).trials:
        assert set(trial.intermediate_values) <= {64, 128, 192, 256} and trial.intermediate_values


def test_drivers_that_share_a_grid_take_different_points_and_no_trial_too_many(tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    here, there = (
        stored(tmp_path, EPOCHS, sampler="grid", n_trials=4, storage=storage, owner=owner) for owner in ("a", "b")
    )
    asked = [one.study.ask() for one in (here, there, here, there)]  # all, before one has its values
    for one, trial in zip((here, there, here, there), asked, strict=True):
        one.begin(trial)
    assert [trial.params["optimization.epochs"] for trial in asked] == [1, 2, 3, 4]
    surplus = here.ask()  # as a driver would that saw three
    assert isinstance(surplus, FrozenTrial) and surplus.state == TrialState.PRUNED
    assert line_on(here, surplus).endswith("trial 4 not run: the grid has no point left")
