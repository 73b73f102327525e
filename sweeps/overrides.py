"""Command-line overrides read before Hydra composes, so that a typo is one line that names what was meant."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config import ALGO_CONFIGS
from rlhf.config.build import ConfigError, algos_with, cut, no_such_option, option_paths
from sweeps.settings import unknown_settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SWEEP_FILES = sorted(Path(__file__).parent.glob("*.yaml"))
"""The options of `+sweep=`."""

# Groups that a run can do without.
OPTIONAL_GROUPS = ("experiment", "debug")

# What to type where a group has no such option.
REMEDIES = {
    "model": "any model of the hub or a folder: model=hub model.path={hub_name}",
    "dataset": "pairs of your own: dataset=hh dataset.path=pairs.jsonl, or dataset.hub=owner/name",
    "reward": "a reward model of your own: reward.path=owner/name",
    "experiment": "a file of your own: --config-dir FOLDER, with FOLDER/experiment/{name}.yaml",
}


def store_sweep_files(overrides: Sequence[str]) -> None:
    """Make the files of this folder that overrides name known to Hydra, as options of the group `sweep`."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for file in SWEEP_FILES:
        if any(file.stem in text for text in overrides):
            node: Any = OmegaConf.load(file)
            if any(text.startswith("debug=") and text != "debug=null" for text in overrides):
                node.pop("sweep_name", None)  # debug's own: its runs are none of the figure's
            ConfigStore.instance().store(group="sweep", name=file.stem, node=node, package="_global_")


def refuse_unknown(overrides: list[str], folders: Sequence[Path], multirun: bool = True) -> None:
    """Raise ConfigError for keys that no chosen algorithm has, for files that no group has, and for lists without -m.

    Args:
        overrides: as typed, e.g. ["algo=apa,ppo", "+sweep=lambda", "seed=0,1"].
        folders: the folders whose subfolders are the config groups, the project's own first.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    groups = config_groups(folders)
    groups["sweep"] = sorted(file.stem for file in SWEEP_FILES)
    parsed = OverridesParser.create().parse_overrides(overrides)
    algos = _chosen_algos(parsed) or [_default_algo(folders[0])]
    problems = [*_hidden_files(folders)]
    for override in parsed:
        key = override.key_or_group
        if key in groups:
            problems += _unknown_choices(override, groups[key])
        elif not _is_hydras(key):
            problems += _unknown_option(key, algos, groups)
    problems += _unknown_settings(parsed)
    if not multirun:
        problems += [
            f"{override.input_line}: several values need -m, as in python main.py -m "
            + shlex.quote(override.input_line or "")
            for override in parsed
            if override.is_sweep_override()
        ]
    if problems:
        raise ConfigError(problems)


def config_groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """{group: its options} over all folders."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for group in sorted(path for path in folder.iterdir() if path.is_dir()):
            groups.setdefault(group.name, set()).update(file.stem for file in group.glob("*.yaml"))
    return {group: sorted(names) for group, names in groups.items()}


def config_folders(flags: Sequence[str], overrides: Sequence[str], conf: Path) -> list[Path]:
    """The folders that Hydra looks for config files in: the project's own, `--config-dir`, `hydra.searchpath`.

    Raises:
        ConfigError: one of them is no folder.
    """
    typed = [flags[place + 1] for place, flag in enumerate(flags[:-1]) if flag in ("--config-dir", "-cd")]
    typed += [flag.partition("=")[2] for flag in flags if flag.startswith(("--config-dir=", "-cd="))]
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") == "hydra.searchpath":
            typed += [name.strip(" \"'").removeprefix("file://") for name in value.strip("[]").split(",")]
    folders = [Path(name) for name in typed if name and not name.startswith("pkg://")]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise ConfigError([f"--config-dir: {folder} is no folder" for folder in missing])
    return [conf, *folders]


def without_null_groups(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The overrides, a group's null as Hydra has it: `debug=null` is nothing at all, `tuned=null` a deletion."""
    groups, kept = config_groups(folders), []
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.lstrip("+")
        if group not in groups or value.strip() not in ("null", ""):
            kept.append(override)
        elif group == "tuned":
            kept.append("~tuned")
        elif group not in OPTIONAL_GROUPS:
            kept.append(override)  # refused with the other choices
    return kept


def typed_paths(overrides: Sequence[str]) -> list[str]:
    """Dotted paths of the options that overrides set; a group that they choose, by its name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from rlhf.config.options import flat

    paths = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not _is_hydras(override.key_or_group) and not override.is_delete():
            paths += [path for path, _ in flat(_plain(override.value()), _path(override.key_or_group))]
    return paths


def _path(key: str) -> str:
    """Of the option that a key sets, as optimization.betas of optimization.betas.0."""
    return ".".join(part for part in key.split(".") if not part.isdigit())


def _plain(value: Any) -> Any:
    """Hydra's parsed dict with texts for keys."""
    return {str(key): _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def composition_problem(error: Exception, overrides: Sequence[str] = ()) -> str:
    """One line for what Hydra says when files and overrides cannot be composed."""
    said = " ".join(str(error).split())
    known = option_paths()
    for override in overrides:
        path = override.partition("=")[0].lstrip("+~")
        if f"'{path}'" in said and path in known:
            if path.startswith("hardware.slurm."):
                return f"{path}: hardware=cpu or gpu does not read it; leave it out, or use hardware=slurm"
            return f"{path}: nothing of this combination has it ({said})"
    return said


def _is_hydras(key: str) -> bool:
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def _hidden_files(folders: Sequence[Path]) -> list[str]:
    """Files that Hydra would not open, for an earlier folder has one of the same name."""
    first, *others = folders
    return [
        f"{file}: {first.name}/{file.relative_to(folder)} is found before it; give it another name"
        for folder in others
        for file in sorted(folder.rglob("*.yaml"))
        if (first / file.relative_to(folder)).is_file()
    ]


def _unknown_settings(overrides: list[Override]) -> list[str]:
    """Sweepers and launchers that are not this project's, and keys of `hydra.sweeper` that ours lacks."""
    problems = [
        f"{override.input_line}: only this project's own, harness; leave it out"
        for override in overrides
        if override.key_or_group in ("hydra/sweeper", "hydra/launcher") and override.value() != "harness"
    ]
    keys = [override.key_or_group.split(".") for override in overrides]
    return problems + unknown_settings(key[2] for key in keys if key[:2] == ["hydra", "sweeper"] and len(key) > 2)


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
    return ["null" if name is None else str(name) for name in names if not isinstance(name, dict)]


def _unknown_choices(override: Override, options: list[str]) -> list[str]:
    if override.is_delete():
        return []
    group = override.key_or_group
    names = [name.removesuffix(".yaml") for name in _choices(override)]
    listed = f"there are {', '.join(options) or 'none'}"
    lines = []
    for name in names:
        if name == "null":
            lines += [] if group in (*OPTIONAL_GROUPS, "tuned") else [f"{group}=null: a run has one; {listed}"]
        elif name not in options:
            remedy = REMEDIES.get(group, "").format(name=name, hub_name=name if "/" in name else f"owner/{name}")
            near = _nearest(name, options)
            there = f"did you mean {' or '.join(near)}? There{listed.removeprefix('there')}" if near else listed
            lines.append(f"{group}={cut(name)}: no such option; {there}" + (f"; {remedy}" if remedy else ""))
    return lines


def _nearest(name: str, options: list[str]) -> list[str]:
    """The option most like `name`, or several that are equally so; none where all are quite different."""
    near = difflib.get_close_matches(name, options)
    likeness = {option: difflib.SequenceMatcher(None, option, name).ratio() for option in near}
    return sorted(option for option in near if likeness[option] == max(likeness.values()))


def _unknown_option(key: str, algos: list[str], groups: Mapping[str, list[str]]) -> list[str]:
    path = _path(key)
    lacking = [algo for algo in algos if path not in option_paths([algo])]
    if not lacking:
        return []
    if path in option_paths():
        return [f"{key}: no such option of algo={', '.join(lacking)}; leave it out, or use {algos_with(path)}"]
    near = difflib.get_close_matches(key, sorted(groups), n=1)
    if near and "." not in key:
        return [f"{key}: no such option; did you mean {near[0]}?"]
    return [no_such_option(path, option_paths(algos))]
