"""Studies to their end, with a stand-in whose gain is known: best at a learning rate of 1e-3, less for higher seeds."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from analysis.evaluations import evaluations
from analysis.kl_efficiency import GainCurve
from analysis.load import load_run
from rlhf.config.build import ConfigError
from rlhf.runs.lock import process_start
from sweeps.study import OpenTrial
from sweeps.study_storage import only_driver
from tests.sweeps.studies import LR, behave, load, search, spans, states, stored, summary, trials_csv

__all__ = ["search"]

EPOCHS = "optimization.epochs=range(1,4)"


def curve(folder: Path, run: str, until: float = float("inf")) -> GainCurve:
    """Of what a run has after so many responses, by the comparison's own measure."""
    points = evaluations(load_run(folder / "runs/default" / run))
    seen = points.samples <= until
    return GainCurve(points.kl[seen], points.gains[seen])


def gain(of: GainCurve) -> float:
    """Within 5 nats, the first of the data set's budgets, however much of them the run spent."""
    parts = of.gain(min(1.5, of.largest_kl))
    assert parts is not None
    return float(parts.mean())


def test_one_study_for_each_cell_with_seeds_averaged(search, tmp_path):
    code, printed = search("algo=apa,ppo", "seed=0,100", LR, n_trials=3)
    assert code == 0
    assert "default/algo=apa: 3 trials of 2 runs\ndefault/algo=ppo: 3 trials of 2 runs\n" in printed
    for algo in ("apa", "ppo"):
        study = load(tmp_path, f"default/algo={algo}")
        assert states(study) == ["COMPLETE"] * 3
        for trial in study.trials:
            assert list(trial.params) == ["optimization.learning_rate"]
            runs = trial.user_attrs["runs"]
            assert [run.rpartition("-")[0] for run in runs.values()] == [f"{algo}-s0", f"{algo}-s100"]
            values = {seed: gain(curve(tmp_path, run)) for seed, run in runs.items()}
            assert {seed: own["gain"] for seed, own in trial.user_attrs["per_seed"].items()} == values
            assert trial.value == pytest.approx((values["0"] + values["100"]) / 2)
        best = f"default/algo={algo}  3 complete  {study.best_trial.number}     {study.best_value:.3f}"
        assert best in printed
        assert f"optimization.learning_rate={study.best_params['optimization.learning_rate']:.4g}" in printed
    rows, trials = trials_csv(tmp_path), load(tmp_path).trials
    assert [(row["study"], row["number"], row["state"]) for row in rows[:4]] == [
        *[("default/algo=apa", str(number), "COMPLETE") for number in range(3)],
        ("default/algo=ppo", "0", "COMPLETE"),
    ]
    assert rows[0]["runs"] == " ".join(f"{seed}={run}" for seed, run in trials[0].user_attrs["runs"].items())
    assert float(rows[0]["gain"]) == trials[0].value
    assert float(rows[0]["optimization.learning_rate"]) == trials[0].params["optimization.learning_rate"]
    assert printed.splitlines()[-1].endswith("6 complete")


def test_kl_efficiency_at_another_budget_and_a_constraint(search, tmp_path):
    code, _ = search(LR, n_trials=6, sampler_seed=1, objective="kl_efficiency", kl_budget=2, constraint=True)
    study = load(tmp_path)
    assert code == 0
    for trial in study.trials:
        run = curve(tmp_path, trial.user_attrs["runs"]["0"])
        # The stand-in ends at 4 nats per 1e-3 of learning rate. What it did not spend counts as no gain.
        kl = 4.0 * trial.params["optimization.learning_rate"] / 1e-3
        parts = run.efficiency(min(2.0, run.largest_kl))
        assert parts is not None
        assert trial.value == pytest.approx(parts.mean() * math.sqrt(min(2.0, kl) / 2.0))
        assert trial.constraints == {"eval/kl": pytest.approx(kl - 2.0)}
    assert study.best_params["optimization.learning_rate"] <= 5e-4 < max(t.params.popitem()[1] for t in study.trials)


def test_two_objectives_end_in_their_pareto_front(search, tmp_path):
    code, printed = search(LR, n_trials=8, objective="reward_and_kl")
    study = load(tmp_path)
    assert code == 0 and [one.name for one in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["reward", "kl"]
    points = [(trial.number, *trial.values) for trial in study.trials]
    front = [
        (kl, number)
        for number, reward, kl in points
        if not any(r >= reward and k <= kl and (r, k) != (reward, kl) for _, r, k in points)
    ]
    table = printed.partition("Pareto front of each study:\n")[2].partition("trials: ")[0].splitlines()[1:]
    shown = [line.split("complete")[-1].split() for line in table]
    assert [int(words[0]) for words in shown] == [number for _, number in sorted(front)]
    assert len(front) < 8


def test_a_failed_seed_fails_its_trial_and_the_study_goes_on(search, tmp_path):
    behave(tmp_path, fates={"apa-s100": "raise"})
    typed: dict[str, Any] = {"sampler": "grid", "n_trials": 3}
    code, printed = search("seed=0,100", EPOCHS, **typed)
    study = load(tmp_path)
    assert (code, states(study)) == (1, ["FAIL"] * 3)
    assert study.trials[0].user_attrs["reason"].startswith("1 of 2 runs failed: apa-s100-")
    assert "RuntimeError: the loss is not finite (log: " in study.trials[0].user_attrs["reason"]
    lines = printed.splitlines()
    assert lines[-4].startswith("default/algo=apa trial 0 failed: 1 of 2 runs failed: apa-s100-")
    assert lines[-1].startswith("failed trials count; to try their settings again: python main.py -m ")
    assert lines[-1].endswith(" hydra.sweeper.retry_failed=true")

    behave(tmp_path)
    code, printed = search("seed=0,100", EPOCHS, **typed)
    assert code == 1 and "there: 3 failed (failed trials count)" in printed and "all trials are there" in printed
    begun = len(spans(tmp_path, "begin"))
    code, _ = search("seed=0,100", EPOCHS, **typed, retry_failed=True)
    study = load(tmp_path)
    assert (code, states(study)) == (0, ["FAIL"] * 3 + ["COMPLETE"] * 3)
    assert [trial.user_attrs["retry_of"] for trial in study.trials[3:]] == [0, 1, 2]
    assert [trial.params for trial in study.trials[3:]] == [trial.params for trial in study.trials[:3]]
    assert len(spans(tmp_path, "begin")) == begun + 3  # the seed that had finished is not run again
    assert search("seed=0,100", EPOCHS, **typed, retry_failed=True)[0] == 0


def test_a_failed_input_costs_no_trial(search, tmp_path):
    behave(tmp_path, fates={"reward_model": "raise"})
    code, printed = search("algo=apa,ppo", LR, n_trials=3)
    assert code == 1
    assert states(load(tmp_path)) == states(load(tmp_path, "default/algo=ppo")) == ["RUNNING"]
    assert "failed: reward_model-s0-" in printed and printed.splitlines()[-1].startswith("no trial can run without")
    behave(tmp_path)
    assert search("algo=apa,ppo", LR, n_trials=3)[0] == 0
    assert states(load(tmp_path)) == states(load(tmp_path, "default/algo=ppo")) == ["COMPLETE"] * 3


def test_more_trials_go_on_as_if_never_ended(search, tmp_path):
    typed = (LR, EPOCHS, "hardware.parallel_runs=1")
    search(*typed, n_trials=1, sampler="random")
    code, printed = search(*typed, n_trials=3, sampler="random")
    assert code == 0 and "default/algo=apa: 3 trials of 1 run; there: 1 complete\n" in printed
    search(*typed, "sweep_name=whole", n_trials=3, sampler="random")
    names = ("default/algo=apa", "whole/algo=apa")
    parts, whole = ([trial.params for trial in load(tmp_path, name).trials] for name in names)
    assert parts == whole and len({str(one) for one in whole}) == 3
    begun = len(spans(tmp_path, "begin"))
    code, printed = search(*typed, n_trials=3, sampler="random")
    assert code == 0 and "all trials are there" in printed and len(spans(tmp_path, "begin")) == begun


def test_another_search_under_the_same_name_is_refused(search, tmp_path):
    search(LR, n_trials=1)
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (
            [LR.replace("tag(log,", "")[:-1]],
            {},
            "optimization.learning_rate is 0.0001 to 0.01, log there and 0.0001 to",
        ),
        ([LR, EPOCHS], {}, "optimization.epochs is not there and 1 to 3, integers here"),
        ([LR], {"objective": "kl_efficiency"}, "objective is reward_at_budget there and kl_efficiency here"),
        ([LR], {"kl_budget": 3}, "kl_budget is 1.5 there and 3.0 here"),
        ([LR, "seed=0,1"], {}, "seeds is 0 there and 0,1 here"),
        ([LR, "rollout.iterations=5"], {}, "rollout.iterations is 4 there and 5 here"),
    ]
    for typed, settings, difference in cases:
        with pytest.raises(ConfigError) as error:
            search(*typed, **settings)
        (problem,) = error.value.problems
        assert problem.startswith(f"sweep_name: the study default/algo=apa is another one: {difference}")
        assert problem.endswith("; choose another sweep_name, or overwrite=true starts afresh")
    # What may change: how the settings are chosen, where runs are done.
    assert search(LR, "hardware.parallel_runs=2", n_trials=2, sampler="random", pruner="median")[0] == 0
    search(LR, EPOCHS, "overwrite=true", n_trials=1)
    assert [sorted(trial.params) for trial in load(tmp_path).trials] == [
        ["optimization.epochs", "optimization.learning_rate"]
    ]


def test_the_worst_trial_is_pruned_with_all_its_seeds_and_stays_so(search, tmp_path):
    behave(tmp_path, seconds=0.15)
    rates = "optimization.learning_rate=tag(search,choice(1e-3,1.1e-3,1.2e-3,0.9e-3,1e-2))"
    typed: dict[str, Any] = {"sampler": "grid", "n_trials": 5, "pruner": "median"}
    code, printed = search("seed=0,1", rates, "hardware.parallel_runs=2", **typed)
    study = load(tmp_path)
    assert (code, states(study)) == (0, ["COMPLETE"] * 4 + ["PRUNED"])
    pruned = study.trials[4]
    (samples,) = pruned.intermediate_values  # of 64 responses an iteration
    assert f"default/algo=apa trial 4 pruned after {samples} samples" in printed and samples < 4 * 64
    values = [gain(curve(tmp_path, run, samples)) for run in pruned.user_attrs["runs"].values()]
    assert pruned.intermediate_values == {samples: pytest.approx(sum(values) / 2)}
    for run in pruned.user_attrs["runs"].values():
        assert summary(tmp_path, run) == {"status": "pruned", "kept": "yes", "run_id": run}
    begun = len(spans(tmp_path, "begin"))
    assert search("seed=0,1", rates, **typed)[0] == 0
    assert len(spans(tmp_path, "begin")) == begun


def test_a_shared_database_and_trials_of_another_driver(search, tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    assert search(LR, n_trials=2, storage=storage)[0] == 0
    study = optuna.load_study(study_name="default/algo=apa", storage=storage)
    assert states(study) == ["COMPLETE"] * 2 and not (tmp_path / "runs/default/study.journal").exists()
    # What another folder's driver has at work is left to it, and counts.
    study.ask().set_user_attr("owner", "another")
    code, printed = search(LR, n_trials=4, storage=storage)
    assert code == 0 and "there: 2 complete, 1 at work\n" in printed
    assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE"]
    with pytest.raises(ConfigError, match="overwrite: true would delete a study that others may share"):
        search(LR, "overwrite=true", storage=storage)


def test_trials_of_a_killed_driver_wait_for_its_last_runs(search, tmp_path):
    left = stored(tmp_path, LR, n_trials=3)
    opened = left.ask()
    assert isinstance(opened, OpenTrial)
    (run,) = opened.runs  # killed at work
    left.study.ask()  # killed while it was asked
    run.mkdir()
    child = subprocess.Popen(["sleep", "60"])
    holder = {"host": socket.gethostname(), "pid": child.pid, "pid_started": process_start(child.pid)}
    (run / "lock.json").write_text(json.dumps({**holder, "token": "another", "heartbeat": 0}))

    def end_after_the_others() -> None:
        deadline = time.monotonic() + 30
        while len(spans(tmp_path, "finished")) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.kill()
        child.wait()

    thread = threading.Thread(target=end_after_the_others)
    thread.start()
    code, printed = search(LR, n_trials=3)
    thread.join()
    assert code == 0 and "; there: 2 at work, 2 of them taken up again\n" in printed
    assert states(load(tmp_path)) == ["COMPLETE"] * 3
    assert [note["run"] for note in spans(tmp_path, "begin")].index(run.name) == 2


def test_a_run_that_another_process_has_is_no_failure(search, tmp_path):
    behave(tmp_path, fates={"apa": "locked"})
    assert search(LR, "hardware.parallel_runs=1", n_trials=1)[0] == 130
    assert states(load(tmp_path)) == ["RUNNING"]
    behave(tmp_path)
    assert search(LR, "hardware.parallel_runs=1", n_trials=1)[0] == 0


def test_half_a_line_at_the_journals_end_is_dropped(search, tmp_path):
    search(LR, n_trials=1)
    with (tmp_path / "runs/default/study.journal").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    search(LR, n_trials=2)
    assert states(load(tmp_path)) == ["COMPLETE"] * 2


def test_a_second_command_at_work_on_the_study_is_refused(search, tmp_path):
    with only_driver(tmp_path / "runs/default"), pytest.raises(ConfigError) as error:
        search(LR)
    assert error.value.problems[0].startswith("sweep_name: another command is at work on the studies of ")


@pytest.mark.parametrize(
    ("typed", "settings", "problem"),
    [
        (LR, {"sampler": "grid"}, "hydra.sweeper.sampler: grid needs steps; optimization.learning_rate has none"),
        (
            "optimization.epochs=tag(search,choice(1,2))",
            {"sampler": "qmc"},
            "hydra.sweeper.sampler: qmc spreads numbers",
        ),
        (LR, {"storage": "nosuch://x"}, "hydra.sweeper.storage: "),
        (LR, {"storage": "misspelt/there/study.journal"}, "hydra.sweeper.storage: "),
    ],
)
def test_samplers_and_storages_that_cannot_be(search, tmp_path, typed, settings, problem):
    with pytest.raises(ConfigError) as error:
        search(typed, **settings)
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(problem)
    assert not (tmp_path / "spans.jsonl").exists()


def test_a_reward_that_is_no_number_fails_the_trial_for_good(search, tmp_path):
    behave(tmp_path, fates={"apa": "nan"})
    for retry_failed in (False, True):
        code, printed = search(LR, n_trials=1, retry_failed=retry_failed)
        (trial,) = load(tmp_path).trials
        assert code == 1 and "retry_failed" not in printed
        assert trial.user_attrs["reason"].endswith("no usable evaluation after the initial one")


def test_no_slot_waits_beside_long_and_short_trials(search, tmp_path):
    seconds, count = 5.0, 9  # of 1 and 3 epochs, which come first and third; the others take 1 s
    behave(tmp_path, seconds=1.0, long={"1": seconds, "3": seconds})
    code, _ = search(
        f"optimization.epochs=range(1,{count + 1})", "rollout.iterations=1", sampler="grid", n_trials=count
    )
    assert (code, states(load(tmp_path))) == (0, ["COMPLETE"] * count)
    begun = [note["time"] for note in spans(tmp_path, "begin")]
    ended = [note["time"] for note in spans(tmp_path, "finished")]
    # Slots are alike: the i-th to become free is taken by the i-th start after the first four.
    idle = [start - end for end, start in zip(ended, begun[4:], strict=False)]
    assert len(idle) == count - 4 and min(idle) >= 0 and max(idle) < 2.0
    assert ended[-1] - begun[0] < seconds + 4.0


def test_studies_take_turns(search, tmp_path):
    search("algo=apa,ppo,awr", "optimization.epochs=range(1,4)", "hardware.parallel_runs=1", sampler="grid", n_trials=3)
    algos = [note["run"].partition("-")[0] for note in spans(tmp_path, "begin")]
    assert [sorted(algos[i : i + 3]) for i in range(0, 9, 3)] == [["apa", "awr", "ppo"]] * 3
