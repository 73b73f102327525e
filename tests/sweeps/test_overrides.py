"""Overrides read before Hydra composes, and the grid they span."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.config import ALGO_CONFIGS
from rlhf.config.build import ConfigError
from sweeps.command_line import refuse_unknown
from sweeps.grid import Groups, cells
from tests.config.composed import CONF


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ("algo.lamda=1", "algo.lamda: no such option; did you mean algo.lam?"),
        ("++algo.lamda=1", "algo.lamda: no such option; did you mean algo.lam?"),
        ("algo=ppo algo.lam=1", "algo.lam: no such option of algo=ppo"),
        ("algo=apa,ppo algo.lam=1,2", "algo.lam: no such option of algo=ppo"),
        ("alg=ppo", "alg: no such option; did you mean algo?"),
        ("model=tiny,smol", "model=smol: no such option; there are"),
        ("+sweep=nothing", "sweep=nothing: no such option; there are"),
        ("hydra/launcher=basic", "hydra/launcher=basic: only this project's own, harness; leave it out"),
        ("hydra.sweeper.ntrials=3", "hydra.sweeper.ntrials: no such option; did you mean hydra.sweeper.n_trials?"),
        ("optimization.lr=1", "optimization.lr: no such option; did you mean optimization.learning_rate?"),
        ("lr=1", "lr: no such option; did you mean optimization.learning_rate or "),
        ("kl_coef=1", "kl_coef: no such option; did you mean algo.kl.init_coef (algo=ppo or "),
        ("algo=ppo kl_coef=1", "kl_coef: no such option; did you mean algo.kl.init_coef?"),
        ("num_epochs=1", "num_epochs: no such option; did you mean optimization.epochs?"),
        ("model_name_or_path=gpt2", "model_name_or_path: no such option; did you mean model.path?"),
        ("output=a", "output: no such option; did you mean output_dir?"),
        ("algo=grpo", f"algo=grpo: no such option; there are {', '.join(sorted(ALGO_CONFIGS))}"),
        ("model=Qwen/Qwen3-0.6B", "model=Qwen/Qwen3-0.6B: no such option; there are"),
        ("dataset=imdb", "dataset=imdb: no such option; there are"),
        ("model=null", "model=null: a run has one; there are"),
        (f"{'a' * 5000}=1", f"{'a' * 97}"),
    ],
)
def test_refuses(overrides, problem):
    with pytest.raises(ConfigError) as error:
        refuse_unknown(overrides.split(), [CONF])
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(problem)


@pytest.mark.parametrize(
    "overrides",
    [
        "algo=apa,awr algo.lam=0.1,1",
        "algo=glob(*) seed=range(3)",
        "algo.kl.target=3 algo=ppo",
        "experiment=null debug=one_step",
        "debug=[one_step,overfit]",
        "hydra.sweeper.params.x=1 hydra/launcher=harness +hydra.job.env_set.A=b",
        "~debug optimization.betas.0=0.8",
        "algo.kl={target:3} algo=ppo",
    ],
)
def test_lets_pass(overrides):
    refuse_unknown(overrides.split(), [CONF])


def grid(*overrides: str) -> list[tuple[str, list[str]]]:
    typed = OverridesParser.create().parse_overrides(list(overrides))
    return [(cell.name, cell.overrides) for cell in cells([], typed, Groups({"algo": ["apa", "ppo"]}, {"algo": "apa"}))]


def test_the_grid_is_the_product_of_all_lists():
    assert grid("algo=apa,ppo", "seed=range(2)", "rollout.iterations=3") == [
        ("algo=apa seed=0", ["algo=apa", "seed=0", "rollout.iterations=3"]),
        ("algo=apa seed=1", ["algo=apa", "seed=1", "rollout.iterations=3"]),
        ("algo=ppo seed=0", ["algo=ppo", "seed=0", "rollout.iterations=3"]),
        ("algo=ppo seed=1", ["algo=ppo", "seed=1", "rollout.iterations=3"]),
    ]


def test_the_last_of_two_wins():
    assert grid("seed=0,1", "seed=5") == [("", ["seed=5"])]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("hardware.threads=1,2", "hardware.threads: no sweep axis"),
        ("+sweep=lambda,tune", "sweep: one file at a time"),
    ],
)
def test_what_is_no_axis(override, problem):
    with pytest.raises(ConfigError) as error:
        grid(override)
    assert error.value.problems[0].startswith(problem)
