"""Code of the user's own by its place: where it is found, what a fault in it says, and what tells its runs apart."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rlhf.config.build import ConfigError, build_config, config_to_mapping
from rlhf.config.identity import code_has_changed, fingerprint, run_id
from rlhf.config.user_code import UserCodeError, absolute, load, source_file
from sweeps.command_line import chosen_algos, refuse_unknown, with_own_settings
from tests.config.composed import CONF, checked, composed, config, typed

TASKS = ("dataset=sums", "reward=python")
ALGORITHM = """
from dataclasses import dataclass
from rlhf.algorithms import Algorithm
from rlhf.batches import LossOutput, Signal
from rlhf.config import AlgoConfig, KLControlConfig, setting

@dataclass(kw_only=True)
class Settings(AlgoConfig):
    stages = ("online",)
    beta: float = setting("weight of the distance", above=0, default=0.5)
    name_of_it: str = "x"
    clip: float | None

class Mine(Algorithm):
    config: Settings
    def signal(self, rewards, values, mask):
        return Signal(advantages=rewards)
    def loss(self, batch, logprobs, totals):
        return LossOutput(-logprobs.sum(), {})
"""


@pytest.fixture
def algorithm(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(ALGORITHM)
    return f"algo.loss={tmp_path / 'mine.py'}:Mine"


def test_a_file_may_have_neighbours_and_several_names(tmp_path: Path):
    (tmp_path / "neighbour_of_mine.py").write_text("BASE = 40\n")
    (tmp_path / "mine.py").write_text("import neighbour_of_mine as n\ndef a(): return n.BASE + 2\ndef b(): return 0\n")
    first, second = load(f"{tmp_path}/mine.py:a+b", "reward.path")
    assert (first(), second()) == (42, 0)


def test_a_module_is_found_by_its_name():
    (convert,) = load("colorsys:rgb_to_yiq", "reward.path")
    assert convert(0, 0, 0) == (0, 0, 0)
    assert source_file("colorsys:rgb_to_yiq") == Path(load("colorsys:__file__", "x")[0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def score(:\n", r"mine\.py, line 1: SyntaxError"),
        ("x = 1\ny = x / 0\n", r"mine\.py, line 2: ZeroDivisionError: division by zero$"),
        ("def f():\n    return nothing\n\nf()\n", r"mine\.py, line 2: NameError"),
        ("import not_there_at_all\n", r"mine\.py, line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", r"ends the program"),
        ("def other(): pass\n", r"has no score; it has other$"),
    ],
)
def test_a_fault_is_one_line_with_file_and_line(tmp_path: Path, source: str, message: str):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(UserCodeError, match=message) as error:
        load(f"{tmp_path}/mine.py:score", "reward.path")
    assert str(error.value).startswith(f"reward.path: {tmp_path}/mine.py") and "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["score", "mine.py", "mine.py:", ":score", "mine.py:two words"])
def test_another_form_is_refused(spec: str):
    with pytest.raises(UserCodeError, match=r"not of the form|cannot be read"):
        load(spec, "reward.path")


def test_what_the_file_holds_is_in_the_run_id_and_where_it_lies_is_not(tmp_path: Path):
    here, there = tmp_path / "here.py", tmp_path / "there.py"
    for file in (here, there):
        file.write_text("def score(completions, **columns): return [0.0] * len(completions)\n")
    run = config(*TASKS, f"reward.path={here}:score")
    assert run_id(config(*TASKS, f"reward.path={there}:score")) == run_id(run)
    assert pickle.loads(pickle.dumps(run)).reward == run.reward
    assert code_has_changed(run) == ""
    here.write_text("def score(completions, **columns): return [1.0] * len(completions)\n")
    assert "changed since" in code_has_changed(run) and str(here) in code_has_changed(run)
    assert run_id(config(*TASKS, f"reward.path={here}:score")) != run_id(run)


def test_a_path_is_kept_whole(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text("def score(completions, **columns): return [0.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    assert config(*TASKS, "reward.path=mine.py:score").reward.path == f"{tmp_path}/mine.py:score"
    assert absolute("module.inner:name") == "module.inner:name"
    assert fingerprint("mine.py:score") == fingerprint(f"{tmp_path}/mine.py:score") != fingerprint("mine.py:other")


def test_an_algorithm_brings_its_settings_their_types_and_what_it_needs(algorithm: str):
    run = typed("algo=custom", algorithm, "algo.beta=2")
    assert run.algo.name == "Mine" and run_id(run).startswith("Mine-s0-")
    settings = config_to_mapping(run)["algo"]
    assert {name: settings[name] for name in ("beta", "name_of_it", "clip")} == {
        "beta": 2.0,
        "name_of_it": "x",
        "clip": None,
    }
    assert build_config(config_to_mapping(run)) == run == pickle.loads(pickle.dumps(run))
    assert (
        run_id(typed("algo=custom", algorithm))
        != run_id(run)
        == run_id(typed("algo=custom", algorithm, "algo.beta=2.0"))
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo.betta=2", "algo.betta: no such option; did you mean algo.beta?"),
        ("algo.beta=x", "algo.beta: 'x' is not a number"),
        ("algo.beta=0", "algo.beta: 0.0 is not above 0"),
        ("value.coef=2", "value.coef: algo=Mine does not read it"),
        ("stage=offline", "stage.name: Mine cannot learn by stage=offline"),
    ],
)
def test_its_settings_are_checked_as_any_others(algorithm: str, override: str, message: str):
    with pytest.raises(ConfigError) as error:
        typed("algo=custom", algorithm, override)
    assert any(line.startswith(message) for line in error.value.problems), error.value.problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("class Mine(Algorithm)", "class Mine"), "is no subclass of rlhf.algorithms.Algorithm"),
        (("def loss", "def lost"), "lacks loss"),
        (("beta: float =", "beta: complex ="), "the setting beta of Mine has type complex"),
        (("config: Settings", "config: Setings"), "NameError"),
        (("class Settings(AlgoConfig)", "class Settings"), "is no dataclass of settings"),
    ],
)
def test_what_is_no_algorithm_is_refused_in_one_line(tmp_path: Path, change: tuple[str, str], message: str):
    (tmp_path / "mine.py").write_text(ALGORITHM.replace(*change))
    with pytest.raises(ConfigError) as error:
        config("algo=custom", f"algo.loss={tmp_path}/mine.py:Mine")
    (line,) = error.value.problems
    assert line.startswith("algo.loss: ") and message in line


@pytest.mark.parametrize("debug", ["one_step", "overfit"])
@pytest.mark.parametrize("size", ["group_size = 4", 'group_size: int = setting("responses", low=2, default=4)'])
def test_every_debug_config_fits_the_group_that_a_class_asks_for(tmp_path: Path, debug: str, size: str):
    (tmp_path / "mine.py").write_text(ALGORITHM.replace('name_of_it: str = "x"', size))
    run = checked(composed("algo=custom", f"algo.loss={tmp_path}/mine.py:Mine", f"debug={debug}"), {})
    assert run.algo.group_size == 4 and run.rollout.num_responses % 4 == 0


@pytest.mark.parametrize("chosen", ["experiment=own", "algo=own"])
def test_its_settings_are_typed_beside_a_file_that_names_it(tmp_path: Path, algorithm: str, chosen: str):
    group, loss = chosen.partition("=")[0], algorithm.partition("=")[2]
    written = {
        "experiment": f"# @package _global_\ndefaults: [override /algo: custom]\nalgo: {{loss: '{loss}'}}\n",
        "algo": f"name: custom\nloss: '{loss}'\n",
    }
    (tmp_path / group).mkdir()
    (tmp_path / group / "own.yaml").write_text(written[group])
    folders = [CONF, tmp_path]
    assert chosen_algos([chosen], folders) == [loss]
    refuse_unknown([chosen, "algo.beta=0.3"], folders)
    assert with_own_settings([chosen, "algo.beta=0.3", "seed=1"], folders) == [chosen, "++algo.beta=0.3", "seed=1"]
    with pytest.raises(ConfigError, match=r"algo\.betta: no such option; did you mean algo\.beta\?"):
        refuse_unknown([chosen, "algo.betta=0.3"], folders)


def test_without_a_place_it_is_missing():
    with pytest.raises(ConfigError, match=r"algo.loss: missing"):
        config("algo=custom")
    with pytest.raises(ConfigError, match=r"reward.path: missing"):
        config(*TASKS)
