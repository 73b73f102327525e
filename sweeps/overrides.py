"""Command-line overrides read before Hydra composes, so that a typo is one line that names what was meant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config import ALGO_CONFIGS
from rlhf.config.build import ConfigError, no_such_option, option_paths
from sweeps.settings import SWEEPERS, unknown_settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def refuse_unknown(overrides: list[str], conf: Path) -> None:
    """Raise ConfigError for keys that no chosen algorithm has, and for files that no group has.

    Args:
        overrides: as typed, e.g. ["algo=apa,ppo", "+sweep=lambda", "seed=0,1"].
        conf: the folder whose subfolders are the config groups.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in _group_folders(conf)}
    groups["sweep"] = sorted(Path(name).stem for name in ConfigStore.instance().repo.get("sweep", {}))
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            problems.append(f"{text}: not of the form key=value")
    algos = _chosen_algos(parsed) or [_default_algo(conf)]
    for override in parsed:
        key = override.key_or_group
        if key in groups:
            problems += _unknown_choices(override, groups[key])
        elif not _is_hydras(key):
            problems += _unknown_option(key, algos, sorted(groups))
    problems += _unknown_settings(parsed)
    if problems:
        raise ConfigError(problems)


def _group_folders(conf: Path) -> list[Path]:
    return [folder for folder in sorted(conf.iterdir()) if folder.is_dir()]


def _is_hydras(key: str) -> bool:
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def _unknown_settings(overrides: list[Override]) -> list[str]:
    """Keys of `hydra.sweeper` that our sweeper lacks; a foreign one has others."""
    chosen = [override.value() for override in overrides if override.key_or_group == "hydra/sweeper"]
    if any(name not in SWEEPERS for name in chosen):
        return []
    keys = [override.key_or_group.split(".") for override in overrides]
    return unknown_settings(key[2] for key in keys if key[:2] == ["hydra", "sweeper"] and len(key) > 2)


def _chosen_algos(overrides: list[Override]) -> list[str]:
    """The algorithms typed, or all where an experiment or sweep may choose; none: the default stays."""
    typed = [override for override in overrides if override.key_or_group == "algo" and not override.is_delete()]
    if typed:
        return [name for name in _choices(typed[-1]) if name in ALGO_CONFIGS] or list(ALGO_CONFIGS)
    chosen_elsewhere = any(override.key_or_group in ("experiment", "sweep") for override in overrides)
    return list(ALGO_CONFIGS) if chosen_elsewhere else []


def _default_algo(conf: Path) -> str:
    from omegaconf import OmegaConf

    return next(entry["algo"] for entry in OmegaConf.load(conf / "config.yaml").defaults if "algo" in entry)


def _choices(override: Override) -> list[str]:
    """The group options an override names; empty where it names none by itself (a glob, a mapping, null)."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    if override.is_sweep_override():
        listed = isinstance(override.value(), ChoiceSweep | RangeSweep)
        return [str(value) for value in override.sweep_string_iterator()] if listed else []
    value = override.value()
    names = value if isinstance(value, list) else [value]
    return [str(name) for name in names if name is not None and not isinstance(name, dict)]


def _unknown_choices(override: Override, options: list[str]) -> list[str]:
    if override.is_delete():
        return []
    names = [name.removesuffix(".yaml") for name in _choices(override)]
    return [
        f"{override.key_or_group}={name}: no such option; there are {', '.join(options) or 'none'}"
        for name in names
        if name not in options
    ]


def _unknown_option(key: str, algos: list[str], groups: list[str]) -> list[str]:
    path = ".".join(part for part in key.split(".") if not part.isdigit())  # optimization.betas.0
    lacking = [algo for algo in algos if path not in option_paths([algo])]
    if not lacking:
        return []
    if path in option_paths():
        return [f"{key}: no such option of algo={', '.join(lacking)}"]
    near = difflib.get_close_matches(key, groups, n=1)
    if near and "." not in key:
        return [f"{key}: no such option; did you mean {near[0]}?"]
    return [no_such_option(path, option_paths(algos))]
