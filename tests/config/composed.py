"""The default config and variants of it, composed as main.py composes them."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError, build_config
from rlhf.config.check import COMMAND_LINE, Sources, check
from sweeps.command_line import SWEEP_FILES, store_sweep_files
from sweeps.sources import run_mapping, with_settings_of_algo

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"

sys.path.append(str(ROOT / "sweeps" / "plugin"))  # as main.py does


@functools.cache
def register() -> None:
    store_sweep_files([file.stem for file in SWEEP_FILES])


@functools.cache
def _compose(overrides: tuple[str, ...]) -> dict[str, Any]:
    register()
    old = hydra.__version__.startswith("1.3")
    with hydra.initialize_config_dir(str(CONF), **({"version_base": "1.3"} if old else {})):
        return with_settings_of_algo(run_mapping(hydra.compose("config", overrides=list(overrides))), overrides)


def composed(*overrides: str) -> dict[str, Any]:
    """The plain mapping of `python main.py <overrides>`."""
    return copy.deepcopy(_compose(overrides))


def checked(mapping: dict[str, Any], sources: Sources) -> RunConfig:
    """The run of a mapping, refused as main.py refuses it."""
    run = build_config(mapping)
    if problems := check(run, sources):
        raise ConfigError(problems)
    return run


def config(*overrides: str) -> RunConfig:
    """Checked, but options that nothing reads may be set: tests share settings. Hydra composes the groups alone, once
    each, since it takes its time, and the values are put on top."""
    return checked(with_values(overrides)[0], {})


def typed(*overrides: str) -> RunConfig:
    """Checked as what was typed: every option that is set must be read."""
    mapping, paths = with_values(overrides)
    return checked(mapping, dict.fromkeys(paths, COMMAND_LINE))


def with_values(overrides: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """The mapping, and the paths of the single values. Merged as plain values: OmegaConf takes 50 ms for it."""
    groups = tuple(text for text in overrides if (CONF / text.partition("=")[0]).is_dir())
    values = [text for text in overrides if text not in groups]
    mapping = composed(*groups)
    for text in values:
        _merge(mapping, copy.deepcopy(_value(text)))
    return mapping, [text.partition("=")[0] for text in values]


@functools.cache
def _value(text: str) -> Any:
    """{section: {option: value}} of an override."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([text]))


def _merge(target: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
