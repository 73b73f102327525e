"""Packages and folders of weights that a config names are looked for before any stage starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rlhf.config.build import ConfigError
from rlhf.config.identity import run_folder
from rlhf.config.inputs import check_inputs
from sweeps.single import run_single
from tests.config.composed import config


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


def test_nothing_is_written_for_a_run_that_is_refused(tmp_path: Path):
    run = config("tracking=none", f"output_dir={tmp_path / 'runs'}", f"reward.path={tmp_path}")
    with pytest.raises(ConfigError, match=r"^reward\.path: .* has no config\.json"):
        run_single(run)
    assert not run_folder(run).parent.exists()
