"""Composed mapping -> RunConfig: all problems at once, strict types, exact round trip."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from rlhf.config import ALGO_CONFIGS, APAConfig
from rlhf.config.build import ConfigError, build_config, config_to_mapping, no_such_option, option_paths
from tests.config.composed import composed


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return composed()


def changed(mapping: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    mapping = copy.deepcopy(mapping)
    *parents, name = path.split(".")
    inner = mapping
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return mapping


def problems(mapping: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        build_config(mapping)
    return error.value.problems


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("seed", "abc", "seed: 'abc' is not an integer"),
        ("seed", True, "seed: True is not an integer"),
        ("seed", 1.5, "seed: 1.5 is not an integer"),
        ("seed", None, "seed: None is not an integer"),
        ("seed", -1, "seed: -1 is below 0"),
        ("seed", "???", "seed: missing"),
        ("overwrite", 1, "overwrite: 1 is not true or false"),
        ("algo.lam", 0, "algo.lam: 0.0 is not above 0"),
        ("algo.lam", "1e-4x", "algo.lam: '1e-4x' is not a number"),
        ("algo.lam", float("nan"), "algo.lam: nan is not a number"),
        ("algo.anchor", "new", "algo.anchor: 'new' is not one of initial, old"),
        ("algo.name", "apo", f"algo.name: 'apo' is not one of {', '.join(sorted(ALGO_CONFIGS))}"),
        ("algo.lamda", 0.1, "algo.lamda: no such option; did you mean algo.lam?"),
        ("optimization.lr", 0.1, "optimization.lr: no such option; did you mean optimization.learning_rate?"),
        ("gae_lambda", 0.1, "gae_lambda: no such option; did you mean advantages.gae_lambda?"),
        ("optimization.betas", 0.9, "optimization.betas: 0.9 is not a list; square brackets make one"),
        ("optimization.betas", [0.9, 1.1], "optimization.betas: 1.1 is above 1"),
        ("advantages.gamma", 1.01, "advantages.gamma: 1.01 is above 1"),
        ("sweep_name", True, "sweep_name: True is not a text; put it into quotes if it is meant as one"),
        ("rollout", 3, "rollout: 3 is not a group of options"),
    ],
)
def test_refuses_with_one_line(default, path, value, problem):
    assert problems(changed(default, path, value)) == [problem]


def test_tells_all_problems_at_once(default):
    mapping = changed(changed(default, "seed", "abc"), "sft.train.mode", "some")
    del mapping["rollout"]["iterations"]
    assert problems(mapping) == [
        "seed: 'abc' is not an integer",
        "sft.train.mode: 'some' is not one of all, last_k, lora",
        "rollout.iterations: missing",
    ]


def test_converts_what_loses_nothing(default):
    assert build_config(changed(default, "algo.lam", 2)).algo == APAConfig(
        name="apa", value_clip=None, lam=2.0, anchor="initial"
    )
    assert build_config(changed(default, "optimization.learning_rate", "1e-4")).optimization.learning_rate == 1e-4
    assert build_config(changed(default, "sweep_name", 2026)).sweep_name == "2026"


def test_an_algorithm_has_its_own_options_alone():
    mapping = composed("algo=ppo")
    mapping["algo"]["lam"] = 1.0
    assert problems(mapping)[0].startswith("algo.lam: no such option")
    assert "algo.kl.target" in option_paths(["ppo"])
    assert "algo.kl.target" not in option_paths(["apa", "awr"])


def test_round_trip_through_yaml_is_exact():
    config = build_config(composed("algo=ppo", "optimization.eps=1e-30", "optimization.learning_rate=0.1"))
    frozen = yaml.safe_load(yaml.safe_dump(config_to_mapping(config)))
    assert build_config(frozen) == config
    assert frozen["tracking"]["wandb"] == "auto"


def test_home_stands_for_itself_in_paths_alone(default, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    mapping = default
    for path in ("output_dir", "cache_dir", "dataset.path", "reward.path", "model.path", "sweep_name"):
        mapping = changed(mapping, path, f"~/{path}")
    built = build_config(mapping)
    found = (built.output_dir, built.cache_dir, built.dataset.path, built.reward.path, built.model.path)
    assert found == tuple(
        f"/home/me/{path}" for path in ("output_dir", "cache_dir", "dataset.path", "reward.path", "model.path")
    )
    assert built.sweep_name == "~/sweep_name"
    assert build_config(changed(default, "model.path", "a/hub~name")).model.path == "a/hub~name"
    assert build_config(config_to_mapping(built)) == built


def test_suggests_nothing_where_nothing_is_near():
    assert no_such_option("algo.zzz", option_paths()) == "algo.zzz: no such option"
    assert no_such_option("optimisation.epochs", option_paths()).endswith("did you mean optimization.epochs?")
