"""What a study that was killed, shared or begun afresh must not forget, repeat or believe."""

from __future__ import annotations

import pytest

from sweeps.studies import study as studies
from tests.sweeps.studies import LR, behave, load, search, spans, states, stored, summary

__all__ = ["search"]

EPOCHS = "optimization.epochs=range(1,5)"


def test_a_trial_that_was_to_be_pruned_is_so_after_a_kill(search, tmp_path):
    killed = stored(tmp_path, "seed=0,1", LR, n_trials=2)
    decided = killed.ask()
    assert decided is not None
    first, second = decided.runs
    first.mkdir(parents=True)  # at work; the other waits
    decided.stop(frozenset(decided.runs))  # and here the driver was killed, before it stopped them
    code, _ = search("seed=0,1", LR, n_trials=2, pruner="median")
    assert (code, states(load(tmp_path))) == (0, ["PRUNED", "COMPLETE"])
    assert {note["run"] for note in spans(tmp_path, "begin")}.isdisjoint({first.name, second.name})
    assert summary(tmp_path, first.name)["status"] == "pruned"


def test_a_pruned_trial_of_a_study_begun_afresh_is_forgotten(search, tmp_path):
    old = stored(tmp_path, LR, n_trials=1).ask()
    assert old is not None
    for folder in old.runs:
        folder.mkdir(parents=True)
    old.stop(frozenset(old.runs))
    old.study.settle(old, [])
    (run,) = old.runs
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


def test_drivers_that_share_a_grid_take_different_points(tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    here, there = (
        stored(tmp_path, EPOCHS, sampler="grid", n_trials=4, storage=storage, owner=owner) for owner in ("a", "b")
    )
    asked = [one.study.ask() for one in (here, there, here, there)]  # all, before one has its values
    for one, trial in zip((here, there, here, there), asked, strict=True):
        one.begin(trial)
    assert [trial.params["optimization.epochs"] for trial in asked] == [1, 2, 3, 4]


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


def test_a_trial_whose_runs_ended_without_a_value_is_not_tried_again(search, tmp_path):
    behave(tmp_path, fates={"apa": "nan"})
    code, printed = search(LR, n_trials=1)
    assert code == 1 and "retry_failed" not in printed
    assert search(LR, n_trials=1, retry_failed=True)[0] == 1
    assert states(load(tmp_path)) == ["FAIL"]


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


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_pruner_reads_both_seeds(search, tmp_path, pruner):
    behave(tmp_path, seconds=0.05)
    assert search("seed=0,1", LR, n_trials=2, pruner=pruner)[0] == 0
    for trial in load(tmp_path).trials:
        assert set(trial.intermediate_values) <= {64, 128, 192, 256} and trial.intermediate_values
