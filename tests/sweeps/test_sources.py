"""What files and the command line set: said, kept in the config, refused with the source where nobody reads it."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from rlhf.config import APAConfig, PPOConfig, RunConfig
from rlhf.config.build import ConfigError
from sweeps.sources import composed_run, with_settings_of_algo
from tests.config.composed import CONF, register


def run_of(*overrides: str) -> RunConfig:
    """The checked run of a command line, `hydra.searchpath` included."""
    register()
    old = hydra.__version__.startswith("1.3")
    with hydra.initialize_config_dir(str(CONF), **({"version_base": "1.3"} if old else {})):
        config = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
        node = config.hydra
        OmegaConf.set_struct(config, False)
        return composed_run(config, node)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own folder of config files."""
    files = {
        "experiment/mine.yaml": "# @package _global_\nsft: {steps: 30}\n"
        "algos: {apa: {lam: 0.7}, ppo: {kl: {target: 4.0}}}\n",
        "experiment/old.yaml": "# @package _global_\nalgo: {lam: 0.7}\n",
        "experiment/unread.yaml": "# @package _global_\nmodel: {path: owner/name}\n",
        "model/small.yaml": "# @package _global_\ndefaults: [tiny, _self_]\nmodel: {name: small, width: 32}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_files_that_set_values_are_named_with_what_they_set():
    of_all = "conf/tuned/tiny-letters.yaml sets reward.missing_eos_score=-2.0"
    assert run_of("algo=ppo").settings_from == [
        of_all,
        "conf/tuned/tiny-letters-ppo.yaml sets algo.kl.init_coef=0.8, algo.kl.target=5.0, algo.kl.horizon=192.0, "
        "optimization.learning_rate=0.0005",
    ]
    assert run_of("algo=rloo").settings_from == [
        "conf/tuned/tiny-letters.yaml sets optimization.learning_rate=0.0005, reward.missing_eos_score=-2.0"
    ]
    typed = run_of("algo=ppo", "algo.kl.controller=fixed", "optimization.learning_rate=1e-3").settings_from
    assert typed == [
        of_all,
        "conf/tuned/tiny-letters-ppo.yaml sets algo.kl.init_coef=0.8 (not read here: algo.kl.target, algo.kl.horizon)",
    ]


def test_a_file_of_ours_of_which_nothing_is_read_is_not_named():
    assert run_of("stage=sft", "algo=rloo").settings_from == []


def test_an_experiment_of_ones_own_has_settings_by_algorithm(mine):
    search = f"hydra.searchpath=[{mine}]"
    apa, ppo = run_of(search, "experiment=mine"), run_of(search, "experiment=mine", "algo=ppo")
    assert isinstance(apa.algo, APAConfig) and isinstance(ppo.algo, PPOConfig)
    assert (apa.algo.lam, ppo.algo.kl.target, apa.sft.steps) == (0.7, 4.0, 30)
    assert f"{mine}/experiment/mine.yaml sets sft.steps=30, algo.lam=0.7" in apa.settings_from
    typed = run_of(search, "experiment=mine", "algo.lam=3").algo
    assert isinstance(typed, APAConfig) and typed.lam == 3


@pytest.mark.parametrize("algo", ["apa", "ppo", "awr"])
def test_the_experiment_on_collected_pairs_runs_with_every_algorithm(algo):
    assert run_of("experiment=hh_on_cpu", f"algo={algo}").algo.name == algo


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "experiment").glob("*.yaml")))
def test_nothing_that_an_experiment_of_ours_sets_goes_unread(name):
    assert "not read here" not in "".join(run_of(f"experiment={name}").settings_from)


def test_a_model_of_ones_own_lies_outside_the_clone(mine):
    run = run_of(f"hydra.searchpath=[{mine}]", "model=small")
    assert (run.model.name, run.model.width) == ("small", 32)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["experiment=old", "algo=ppo"],
            "algo.lam: no such option of this algorithm; leave it out, or use algo=apa or algo=awr "
            "({}/experiment/old.yaml sets it; there, what is one",
        ),
        (["experiment=unread"], "model.path: model.source=random does not read it ({}/experiment/unread.yaml sets it)"),
    ],
)
def test_a_problem_says_which_file_set_the_option(mine, words, line):
    with pytest.raises(ConfigError) as error:
        run_of(f"hydra.searchpath=[{mine}]", *words)
    assert [problem for problem in error.value.problems if problem.startswith(line.format(mine))]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("{apaa: {lam: 3}}", "algos.apaa: no such option; did you mean algos.apa?"),
        ("{ppo: {ratio_clp: .3}}", "algos.ppo.ratio_clp: no such option; did you mean algos.ppo.ratio_clip?"),
        ("{apa: 3}", "algos.apa: 3 is no group of options"),
        ("[1]", "algos: [1] is no table of settings by algorithm"),
    ],
)
def test_a_table_by_algorithm_is_checked_whole(table: str, line: str):
    mapping = {"algo": {"name": "apa", "lam": 1.0}, "algos": yaml.safe_load(table)}
    with pytest.raises(ConfigError) as error:
        with_settings_of_algo(mapping, [])
    assert error.value.problems[0].startswith(line)


def test_a_model_with_other_weights_than_its_own_is_said():
    lines = run_of("model=pythia_125m", "dataset=hh", "model.path=owner/mine").settings_from
    assert any("is made for" in line and "model=hub" in line for line in lines)
    assert not any("is made for" in line for line in run_of("model=pythia_125m", "dataset=hh").settings_from)
