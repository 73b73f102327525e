"""Studies from the command to their tables, with a stand-in whose gain is known: best at a learning rate of 1e-3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from analysis.evaluations import evaluations
from analysis.kl_efficiency import gain_curve
from analysis.load import load_run
from rlhf.config.build import ConfigError
from rlhf.config.check import checked_config
from sweeps.experiment import run_mapping
from sweeps.storage import only_driver
from tests.sweeps import tuned
from tests.sweeps.studies import LR, behave, load, search, spans, states, summary, trials_csv

__all__ = ["search"]


def curve(folder, run):
    points = evaluations(load_run(folder / "runs/default" / run))
    return gain_curve(points.kl, points.reward_even, points.reward_odd)


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
            assert [(seed, run.rpartition("-")[0]) for seed, run in runs.items()] == [
                ("0", f"{algo}-s0"),
                ("100", f"{algo}-s100"),
            ]
            values = {seed: float(curve(tmp_path, run).gain(5.0)) for seed, run in runs.items()}
            assert {seed: own["gain"] for seed, own in trial.user_attrs["per_seed"].items()} == values
            assert trial.value == pytest.approx(sum(values.values()) / 2)
        best = f"default/algo={algo}  3 complete  {study.best_trial.number}     {study.best_value:.3f}"
        assert (
            best in printed
            and f"optimization.learning_rate={study.best_params['optimization.learning_rate']:.4g}" in printed
        )
    rows = trials_csv(tmp_path)
    assert [(row["study"], row["number"], row["state"]) for row in rows[:4]] == [
        *[("default/algo=apa", str(number), "COMPLETE") for number in range(3)],
        ("default/algo=ppo", "0", "COMPLETE"),
    ]
    assert rows[0]["runs"] == " ".join(
        f"{seed}={run}" for seed, run in load(tmp_path).trials[0].user_attrs["runs"].items()
    )
    assert float(rows[0]["gain"]) == load(tmp_path).trials[0].value
    assert printed.splitlines()[-1].endswith("6 complete")


def test_kl_efficiency_at_another_budget_and_a_constraint(search, tmp_path):
    code, _ = search(
        LR,
        n_trials=8,
        objective="kl_efficiency",
        kl_budget=2,
        constraint=True,
    )
    study = load(tmp_path)
    assert code == 0
    for trial in study.trials:
        run = curve(tmp_path, trial.user_attrs["runs"]["0"])
        assert trial.value == pytest.approx(run.efficiency(2.0))
        # The stand-in ends at 4 nats per 1e-3 of learning rate.
        kl = 4.0 * trial.params["optimization.learning_rate"] / 1e-3
        assert trial.constraints == {"eval/kl": pytest.approx(kl - 2.0)}
    assert study.best_params["optimization.learning_rate"] <= 5e-4
    assert max(study.trials, key=lambda trial: trial.value) != study.best_trial or len(study.trials) == 8


def test_two_objectives_end_in_their_pareto_front(search, tmp_path):
    code, printed = search(LR, n_trials=8, objective="reward_and_kl")
    study = load(tmp_path)
    assert code == 0 and [one.name for one in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    points = [(trial.number, *trial.values) for trial in study.trials]
    front = [
        (number, reward, kl)
        for number, reward, kl in points
        if not any(r >= reward and k <= kl and (r, k) != (reward, kl) for _, r, k in points)
    ]
    table = printed.partition("Pareto front of each study:\n")[2].partition("trials: ")[0].splitlines()[1:]
    shown = [line.split("complete")[-1].split() for line in table]
    assert [int(words[0]) for words in shown] == [number for number, _, _ in sorted(front, key=lambda one: one[2])]
    assert len(front) < 8


def test_a_failed_seed_fails_its_trial_and_the_study_goes_on(search, tmp_path):
    typed = ("seed=0,100", "optimization.epochs=range(1,4)", sampler="grid", n_trials=3)
    behave(tmp_path, fates={"apa-s100": "raise"})
    code, printed = search(*typed)
    study = load(tmp_path)
    assert (code, states(study)) == (1, ["FAIL"] * 3)
    assert study.trials[0].user_attrs["reason"].startswith("1 of 2 runs failed: apa-s100-")
    assert "RuntimeError: the loss is not finite (log: " in study.trials[0].user_attrs["reason"]
    lines = printed.splitlines()
    assert lines[-4].startswith("default/algo=apa trial 0 failed: 1 of 2 runs failed: apa-s100-")
    assert lines[-1].startswith("failed trials count; to try their settings again: python main.py -m ")
    assert lines[-1].endswith(" hydra.sweeper.retry_failed=true")

    behave(tmp_path, fates={"apa-s0": "nan"})
    code, printed = search(*typed)
    assert code == 1 and "there: 3 failed (failed trials count)" in printed and "all trials are there" in printed
    again = len(spans(tmp_path, "begin"))

    behave(tmp_path)
    code, printed = search(*typed, retry_failed=True)
    study = load(tmp_path)
    assert (code, states(study)) == (0, ["FAIL"] * 3 + ["COMPLETE"] * 3)
    assert [trial.user_attrs["retry_of"] for trial in study.trials[3:]] == [0, 1, 2]
    assert [trial.params for trial in study.trials[3:]] == [trial.params for trial in study.trials[:3]]
    assert len(spans(tmp_path, "begin")) == again + 3  # the seed that had finished is not run again
    assert search(*typed, retry_failed=True)[0] == 0


def test_a_reward_that_is_no_number_fails_the_trial(search, tmp_path):
    behave(tmp_path, fates={"apa": "nan"})
    assert search(LR, n_trials=1)[0] == 1
    assert load(tmp_path).trials[0].user_attrs["reason"].endswith("no usable evaluation after the initial one")


def test_values_that_cannot_be_together_fail_their_trial_alone(search, tmp_path):
    sizes = [f"optimization.{name}=tag(search,choice(8,16,32))" for name in ("minibatch_size", "micro_batch_size")]
    code, _ = search(*sizes, sampler="grid", n_trials=9)
    trials = load(tmp_path).trials
    bad = [trial for trial in trials if trial.state.name == "FAIL"]
    assert code == 1 and len(trials) == 9
    assert [tuple(trial.params.values()) for trial in bad] == [(8, 16), (8, 32), (16, 32)]
    assert bad[0].user_attrs["reason"].startswith("optimization.micro_batch_size: 16 does not divide")


def test_a_failed_input_costs_no_trial(search, tmp_path):
    behave(tmp_path, fates={"reward_model": "raise"})
    code, printed = search("algo=apa,ppo", LR, n_trials=4)
    assert code == 1
    assert set(states(load(tmp_path))) <= {"RUNNING"} and len(load(tmp_path).trials) < 4
    assert "failed: reward_model-s0-" in printed and printed.splitlines()[-1].startswith("no trial can run without")
    behave(tmp_path)
    assert search("algo=apa,ppo", LR, n_trials=4)[0] == 0
    assert states(load(tmp_path)) == states(load(tmp_path, "default/algo=ppo")) == ["COMPLETE"] * 4


def test_more_trials_go_on_as_if_never_ended(search, tmp_path):
    typed = (LR, "optimization.epochs=range(1,5)", sampler="random", "hardware.parallel_runs=1")
    search(*typed, n_trials=2)
    code, printed = search(*typed, n_trials=5)
    assert code == 0 and "default/algo=apa: 5 trials of 1 run; there: 2 complete\n" in printed
    search(*typed, n_trials=5, "sweep_name=whole")
    params = [
        [trial.params for trial in load(tmp_path, name).trials] for name in ("default/algo=apa", "whole/algo=apa")
    ]
    assert params[0] == params[1] and len({str(one) for one in params[0]}) == 5
    count = len(spans(tmp_path, "begin"))
    code, printed = search(*typed, n_trials=5)
    assert code == 0 and "all trials are there" in printed and len(spans(tmp_path, "begin")) == count


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            ["optimization.learning_rate=interval(1e-4,1e-2)"],
            "optimization.learning_rate is 0.0001 to 0.01, log there and 0.0001 to 0.01 here",
        ),
        (["optimization.epochs=range(1,3)"], "optimization.epochs is not there and 1 to 2, integers here"),
        ([objective="kl_efficiency"], "objective is reward_at_budget there and kl_efficiency here"),
        ([kl_budget=3], "kl_budget is 5.0 there and 3.0 here"),
        (["seed=0,1"], "seeds is 0 there and 0,1 here"),
        (["rollout.iterations=5"], "rollout.iterations is 4 there and 5 here"),
    ],
)
def test_another_search_under_the_same_name_is_refused(search, changed, difference):
    typed = [LR, n_trials=1]
    search(*typed)
    with pytest.raises(ConfigError) as error:
        search(*typed, *changed)
    (problem,) = error.value.problems
    assert problem.startswith(f"sweep_name: the study default/algo=apa is another one: {difference}")
    assert problem.endswith("; choose another sweep_name, or overwrite=true starts afresh")


def test_overwrite_starts_the_study_afresh(search, tmp_path):
    search(LR, n_trials=2)
    search(LR, "optimization.epochs=range(1,3)", n_trials=1, "overwrite=true")
    assert [sorted(trial.params) for trial in load(tmp_path).trials] == [
        ["optimization.epochs", "optimization.learning_rate"]
    ]


def test_the_worst_trials_are_pruned_with_all_their_seeds_and_stay_so(search, tmp_path):
    # Learning rates far from 1e-3 gain less: of 16 in a fixed order the last ones are the worst.
    behave(tmp_path, seconds=0.15)
    rates = "optimization.learning_rate=tag(search,choice(1e-3,1.1e-3,1.2e-3,0.9e-3,1e-2))"
    typed = ("seed=0,1", rates, sampler="grid", pruner="median", "hardware.parallel_runs=2")
    code, printed = search(*typed, n_trials=5)
    study = load(tmp_path)
    assert (code, states(study)) == (0, ["COMPLETE"] * 4 + ["PRUNED"])
    pruned = study.trials[4]
    assert "default/algo=apa trial 4 pruned after 64 samples" in printed
    # Of 64 responses an iteration; the mean over both seeds at the same samples.
    values = [curve_at(tmp_path, run, 64) for run in pruned.user_attrs["runs"].values()]
    assert pruned.intermediate_values == {64: pytest.approx(sum(values) / 2)}
    for run in pruned.user_attrs["runs"].values():
        assert summary(tmp_path, run) == {"status": "pruned", "kept": "yes", "run_id": run}
    count = len(spans(tmp_path, "begin"))
    assert search(*typed, n_trials=5)[0] == 0
    assert search("seed=0,1", "optimization.learning_rate=1e-2", "hydra/sweeper=optuna")[0] == 0
    assert len(spans(tmp_path, "begin")) == count


def curve_at(folder, run, samples):
    points = evaluations(load_run(folder / "runs/default" / run))
    seen = points.samples <= samples
    return float(gain_curve(points.kl[seen], points.reward_even[seen], points.reward_odd[seen]).gain(5.0))


class Foreign(Launcher):
    """Does its runs at once, one after another."""

    batches: list[list[Sequence[str]]]

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config, self.batches = hydra_context, config, []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.batches.append(list(job_overrides))
        returns = []
        for overrides in job_overrides:
            run = checked_config(
                run_mapping(self.context.config_loader.load_sweep_config(self.config, list(overrides)))
            )
            result = JobReturn(status=JobStatus.COMPLETED)
            try:
                result.return_value = tuned.do(run, [])
            except RuntimeError as error:
                result.status, result.return_value = JobStatus.FAILED, error
            returns.append(result)
        return returns


def test_a_foreign_launcher_gets_batches(search, tmp_path, monkeypatch):
    foreign = Foreign()

    def instantiate(self: Plugins, **given: Any) -> Launcher:
        foreign.setup(**given)
        return foreign

    monkeypatch.setattr(Plugins, "instantiate_launcher", instantiate)
    behave(tmp_path, fates={"ppo-s1": "raise"})
    code, printed = search("algo=apa,ppo", "seed=0,1", LR, n_trials=3, pruner="median")
    assert code == 1
    assert printed.count("Foreign is not this project's: trials go in batches of 2, without pruning") == 1
    assert [len(batch) for batch in foreign.batches] == [4, 4, 4]
    assert states(load(tmp_path)) == ["COMPLETE"] * 3
    failed = load(tmp_path, "default/algo=ppo").trials
    assert [trial.state.name for trial in failed] == ["FAIL"] * 3
    assert "RuntimeError: the loss is not finite" in failed[0].user_attrs["reason"]


def test_a_database_and_two_sweeps_of_one_study(search, tmp_path):
    typed = (LR, n_trials=2, f"hydra.sweeper.storage=sqlite:///{tmp_path}/studies.db")
    assert search(*typed)[0] == 0
    study = optuna.load_study(study_name="default/algo=apa", storage=f"sqlite:///{tmp_path}/studies.db")
    assert states(study) == ["COMPLETE"] * 2 and not (tmp_path / "runs/default/study.journal").exists()
    # A trial that another folder's driver has at work is left to it, and counts.
    study.ask().set_user_attr("owner", "another")
    code, printed = search(*typed[:1], n_trials=4, *typed[2:])
    assert code == 0 and "there: 2 complete, 1 at work\n" in printed
    study = optuna.load_study(study_name="default/algo=apa", storage=f"sqlite:///{tmp_path}/studies.db")
    assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE"]


def test_half_a_line_at_the_journals_end_is_dropped(search, tmp_path):
    search(LR, n_trials=1)
    journal = tmp_path / "runs/default/study.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    search(LR, n_trials=2)
    assert states(load(tmp_path)) == ["COMPLETE"] * 2


def test_a_second_command_at_work_on_the_study_is_refused(search, tmp_path):
    with only_driver(tmp_path / "runs/default"), pytest.raises(ConfigError) as error:
        search(LR)
    assert error.value.problems[0].startswith("sweep_name: another command is at work on the studies of ")


@pytest.mark.parametrize(
    ("typed", "problems"),
    [
        (["algo.lam=interval(-1,1)"], ["algo.lam: -1.0 is not above 0", "algo.lam: 0.0 is not above 0"]),
        (
            ["+hydra.sweeper.spaces.apa={algo.lamda:'interval(0.1,1)'}"],
            ["algo.lamda: no such option; did you mean algo.lam?"],
        ),
        (["+hydra.sweeper.params={algo.lamda:'1,2'}"], ["algo.lamda: no such option; did you mean algo.lam?"]),
        (
            ["tracking.init_timeout=interval(1,3)"],
            ["tracking.init_timeout: changes no result, so that there is nothing to search"],
        ),
        (["stage=sft", LR], ["stage=sft: a search compares RL runs; stage=online"]),
        (
            [LR, sampler="grid"],
            ["hydra.sweeper.sampler: grid needs steps; optimization.learning_rate has none"],
        ),
        (["optimization.epochs=interval(1,3)"], ["optimization.epochs: 2.0 is not an integer"]),
        ([LR, "hydra.sweeper.storage=nosuch://x"], ["hydra.sweeper.storage: Can't load plugin"]),
    ],
)
def test_what_cannot_be_is_told_before_a_launch(search, tmp_path, typed, problems):
    with pytest.raises(ConfigError) as error:
        search(*typed)
    told = error.value.problems
    assert any(problem.startswith(start) for start in problems for problem in told) and math.isclose(
        len(told), 1, abs_tol=1
    )
    assert not (tmp_path / "spans.jsonl").exists()
