"""The words of a command line before Hydra reads them: flags in any place, values as typed, a typo in one line."""

from __future__ import annotations

import difflib
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config import ALGO_CONFIGS
from rlhf.config.algo import CUSTOM
from rlhf.config.build import ConfigError, algos_with, cut, no_such_option, option_paths, option_types, shown
from rlhf.config.options import file_values
from sweeps.settings import unknown_settings
from sweeps.sources import is_hydras, option_path

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

SWEEP_FILES = sorted(Path(__file__).parent.glob("*.yaml"))
"""The options of `+sweep=`."""

OPTIONAL_GROUPS = ("experiment", "debug")
"""Groups that a run can do without."""

# Hydra's flags that take a value; the others take none.
WITH_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c")
WITHOUT_VALUE = ("--multirun", "-m", "--run", "-r", "--resolve", "--version", "--hydra-help", "--info", "-i")
WITHOUT_VALUE += ("--shell-completion", "-sc", "--experimental-rerun")
MULTIRUN = ("--multirun", "-m")

# What to type where a group has no such option.
REMEDIES = {
    "model": "any model of the hub or a folder: model=hub model.path={hub_name}",
    "dataset": "pairs of your own: dataset=hh dataset.path=pairs.jsonl, or dataset.hub=owner/name",
    "reward": "a reward model of your own: reward.path=owner/name",
    "experiment": "a file of your own: --config-dir FOLDER, with FOLDER/experiment/{name}.yaml",
}

# A call of Hydra's grammar, as range(3) or choice(a,b).
_CALL = re.compile(r"(choice|range|interval|glob|tag|sort|shuffle|str|int|float|bool|json_str|extend_list)\(.*\)", re.S)
_QUOTED = re.compile(r"(['\"]).*\1", re.S)
_INTERPOLATION = re.compile(r"(?<!\\)\$\{([^}]*)\}")


def flags_first(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, overrides), whatever their order was.

    Raises:
        ConfigError: a flag that there is not, as `--algo ppo`.
    """
    flags, overrides, problems, words = [], [], [], list(arguments)
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif name in (*WITH_VALUE, *WITHOUT_VALUE):
            flags.append(word)
            takes_next = name in WITH_VALUE or (name in ("--info", "-i") and words and "=" not in words[0])
            if takes_next and "=" not in word and words:
                flags.append(words.pop(0))
        else:
            if not value and words and not words[0].startswith("-") and "=" not in words[0]:
                value = words.pop(0)
            meant = f"{name.lstrip('-').replace('-', '_')}={value or '...'}"
            problems.append(f"{name}: no such flag; options are typed without dashes: {shlex.quote(meant)}")
    if any(flag in MULTIRUN for flag in flags) and any(flag in ("--cfg", "-c") for flag in flags):
        problems.append("--cfg: shows one run; leave -m out")
    if problems:
        raise ConfigError(problems)
    return flags, overrides


def config_folders(flags: Sequence[str], overrides: Sequence[str], conf: Path) -> list[Path]:
    """The folders that Hydra looks for config files in: the project's, `--config-dir`, `hydra.searchpath`.

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


def store_sweep_files(overrides: Sequence[str]) -> None:
    """Make the files of this folder that overrides name known to Hydra, as options of the group `sweep`."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for file in SWEEP_FILES:
        if any(file.stem in text for text in overrides):
            node: Any = OmegaConf.load(file)
            if any(text.startswith("debug=") and text != "debug=null" for text in overrides):
                node.pop("sweep_name", None)  # debug's: its runs are none of the figure's
            ConfigStore.instance().store(group="sweep", name=file.stem, node=node, package="_global_")


def without_null_groups(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The overrides, a group's null as Hydra has it: `debug=null` is nothing at all, `tuned=null` two deletions."""
    groups, kept = config_groups(folders), []
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.lstrip("+")
        if group not in groups or value.strip() not in ("null", "") or group not in (*OPTIONAL_GROUPS, "tuned"):
            kept.append(override)  # null of any other group is refused with the other choices
        elif group == "tuned":
            kept += ["~tuned@_global_", "~tuned"]
    return kept


# --- values as typed ------------------------------------------------------------------------------------


def as_typed(overrides: Sequence[str], parser: OverridesParser, multirun: bool) -> list[str]:
    """The overrides, texts put into Hydra's quotes where its grammar would alter or refuse them.

    Raises:
        ConfigError: where it cannot be told what was meant; the line has the form to type.
    """
    done, problems = [], []
    for override in overrides:
        try:
            done.append(_as_typed(override, parser, multirun))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return done


def _as_typed(override: str, parser: OverridesParser, multirun: bool) -> str:
    from hydra.errors import HydraException

    key, sign, raw = override.partition("=")
    known = option_paths() | {"algo.name"}  # which no one sets, and the config has
    for name in _INTERPOLATION.findall(raw):
        if ":" not in name and not name.startswith(("hydra.", ".")) and name not in known:
            line = f"{key}: ${{{name}}} stands for an option {name}, and there is none; write ${name}, or \\${{{name}}}"
            raise ConfigError([line])
    try:
        parsed = parser.parse_override(override)
    except HydraException:
        parsed = None
    if sign and raw and not key.startswith("~") and "\n" not in key:
        option = key.lstrip("+").strip()
        kind = option_types().get(option, str if option == "hydra.sweeper.storage" else None)
        parts = (kind, *typing.get_args(kind))
        if any(typing.get_origin(part) is list and str in typing.get_args(part) for part in parts):
            return f"{key}={_list(key, raw, parsed)}"
        if str in parts:
            return f"{key}={_text(key, raw, parsed, multirun)}"
    if parsed is None:
        form = shlex.quote(f"{key}={quoted(raw)}")
        cannot = f"{key}: Hydra cannot read {shown(raw)}; as one text it is typed {form}"
        raise ConfigError([cannot if sign else f"{cut(override)}: not of the form key=value"])
    return override


def _text(key: str, raw: str, parsed: Override | None, multirun: bool) -> str:
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    if parsed is not None and (
        _CALL.fullmatch(raw) or (not parsed.is_sweep_override() and _QUOTED.fullmatch(raw.strip()))
    ):
        return raw
    if "," in raw:
        if not multirun:
            several = shlex.quote(f"{key}={quoted(raw)}")
            raise ConfigError([f"{key}: several values need -m; one text with commas is typed {several}"])
        parts = raw.split(",")
        if parsed is None or not isinstance(sweep := parsed.value(), ChoiceSweep):
            return ",".join(map(quoted, parts))
        if len(parts) != len(sweep.list):  # quoted commas
            return raw
        return ",".join(
            part if isinstance(value, QuotedString) or value is None or value == part.strip() else quoted(part)
            for part, value in zip(parts, sweep.list, strict=True)
        )
    value = quoted(raw) if parsed is None else parsed.value()
    if parsed is not None and isinstance(value, str) and value != raw and "\\" in raw:
        forms = [shlex.quote(f"{key}={quoted(text)}") for text in (value, raw)]
        raise ConfigError([f"{key}: Hydra takes backslashes out; type {forms[0]}, or {forms[1]} to keep them"])
    return raw if value is None or value == raw else quoted(raw)


def _list(key: str, raw: str, parsed: Override | None) -> str:
    """A list of texts; what is one text alone is left to the check of types."""
    inner = raw.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        return quoted(raw) if parsed is None else raw
    values = parsed.value() if parsed is not None else None
    if isinstance(values, list) and all(isinstance(value, str) and value in inner for value in values):
        return raw
    if any(mark in inner for mark in "\"'\\") or any(mark in inner[1:-1] for mark in "[]{}"):
        form = shlex.quote(f'{key}=["first","second"]')
        raise ConfigError([f"{key}: {shown(raw)} is not read as a list of texts; put each into quotes, as in {form}"])
    return f"[{','.join(quoted(part.strip()) for part in inner[1:-1].split(','))}]"


def quoted(text: str) -> str:
    """`text` as Hydra reads it back letter by letter."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=text, quote=Quote.double).with_quotes()


# --- names that are not there -----------------------------------------------------------------------------


def refuse_unknown(
    overrides: list[str], folders: Sequence[Path], multirun: bool = True, shows_config: bool = False
) -> None:
    """Raise ConfigError for keys that no chosen algorithm has, for files that no group has, and for lists without -m.

    Args:
        overrides: as typed, e.g. ["algo=apa,ppo", "+sweep=lambda", "seed=0,1"].
        folders: the folders whose subfolders are the config groups, the project's first.
        shows_config: nothing runs, so that settings of sweeps may stand without -m.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    groups = config_groups(folders) | {"sweep": sorted(file.stem for file in SWEEP_FILES)}
    parsed = OverridesParser.create().parse_overrides(overrides)
    defaults: Any = OmegaConf.to_container(OmegaConf.load(folders[0] / "config.yaml").defaults)
    algos = chosen_algos(overrides, folders)
    has_one = {group for entry in defaults if isinstance(entry, dict) for group in entry if " " not in str(group)}
    problems = [
        f"{file}: {folders[0].name}/{file.relative_to(folder)} is found before it; give it another name"
        for folder in folders[1:]
        for file in sorted(folder.rglob("*.yaml"))
        if (folders[0] / file.relative_to(folder)).is_file()  # Hydra would never open the other one
    ]
    for override in parsed:
        key = override.key_or_group
        if key in has_one and (override.is_add() or override.is_force_add()):
            problems.append(f"{override.input_line}: type {str(override.input_line).lstrip('+')}")
        elif key in has_one and override.is_delete() and key not in OPTIONAL_GROUPS:
            problems.append(f"{override.input_line}: a run has one; type {key}=NAME")
        elif key in groups:
            problems += _unknown_choices(override, groups[key])
        elif not is_hydras(key):
            problems += _unknown_option(key, algos, groups)
        elif key in ("hydra/sweeper", "hydra/launcher") and override.value() != "harness":
            problems.append(f"{override.input_line}: only this project's own, harness; leave it out")
        elif key.startswith("hydra.sweeper."):
            problems += unknown_settings([key.split(".")[2]])
        for_sweeps = "a sweep's file needs" if key == "sweep" else "a setting of sweeps needs"
        several = "several values need" if override.is_sweep_override() else for_sweeps
        of_sweeps = (key == "sweep" or key.startswith("hydra.sweeper.")) and not shows_config
        if not multirun and (override.is_sweep_override() or of_sweeps):
            line, form = override.input_line, shlex.quote(override.input_line or "")
            problems.append(f"{line}: {several} -m, as in python main.py -m {form}")
    if problems:
        raise ConfigError(problems)


def config_groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """{group: its options} over all folders."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for group in sorted(path for path in folder.iterdir() if path.is_dir()):
            groups.setdefault(group.name, set()).update(file.stem for file in group.glob("*.yaml"))
    return {group: sorted(names) for group, names in groups.items()}


def chosen_algos(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The algorithms that were typed, or that the typed experiments choose, or the default; of a class outside this
    project its place; all where a sweep may choose."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    default = [next(entry["algo"] for entry in OmegaConf.load(folders[0] / "config.yaml").defaults if "algo" in entry)]
    names: dict[str, list[str]] = {"algo": [], "experiment": []}
    classes = [place for override in parsed if override.key_or_group == "algo.loss" for place in _choices(override)]
    in_files: list[str] = []
    for override in parsed:
        group = override.key_or_group
        if group in names and not override.is_delete():
            choices = _choices(override)
            names[group] = list(ALGO_CONFIGS) if group == "algo" and not choices else []  # a glob
            for name in choices:
                chosen, places = _algos_of_file(group, name, folders)
                names[group] += chosen or default
                in_files += places
    if not names["algo"] and any(override.key_or_group == "sweep" for override in parsed):
        return list(ALGO_CONFIGS)
    chosen = [name for name in names["algo"] or names["experiment"] if name in ALGO_CONFIGS] or default
    own = classes or in_files
    return [name for name in dict.fromkeys(chosen) if name != CUSTOM] + own if CUSTOM in chosen and own else chosen


def _algos_of_file(group: str, name: str, folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """(algorithms, classes outside this project) that a file of `algo` or `experiment` chooses."""
    import yaml

    if group == "algo" and name in ALGO_CONFIGS:
        return [name], []
    places = (folder / group / f"{name.removesuffix('.yaml')}.yaml" for folder in folders)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return [], []
    try:
        values = dict(file_values(file, group))
        defaults = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", [])
    except (yaml.YAMLError, ValueError, AttributeError):  # Hydra says what is wrong with it
        return [], []
    algos, classes = [values["algo.name"]] if group == "algo" and "algo.name" in values else [], []
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":
            inherited = _algos_of_file(group, entry, folders)
        elif isinstance(entry, dict) and "override /algo" in entry:
            inherited = _algos_of_file("algo", str(entry["override /algo"]), folders)
        else:
            continue
        algos, classes = inherited[0] or algos, inherited[1] or classes
    return algos, [values["algo.loss"]] if isinstance(values.get("algo.loss"), str) else classes


def with_own_settings(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The overrides, those of a class outside this project as additions: Hydra's config lacks its settings, and
    `refuse_unknown` has let them through."""
    if all(name in ALGO_CONFIGS for name in chosen_algos(overrides, folders)):
        return list(overrides)
    keys = [override.partition("=")[0] for override in overrides]
    pairs = zip(keys, overrides, strict=True)
    return [f"++{text}" if key.startswith("algo.") and key != "algo.loss" else text for key, text in pairs]


def _choices(override: Override) -> list[str]:
    """The group options an override names; empty where it names none by itself (a glob, a mapping)."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    value = override.value()
    if override.is_sweep_override():
        listed = isinstance(value, ChoiceSweep | RangeSweep)
        return [str(value) for value in override.sweep_string_iterator()] if listed else []
    names = value if isinstance(value, list) else [value]
    return ["null" if name is None else str(name) for name in names if not isinstance(name, dict)]


def _unknown_choices(override: Override, options: list[str]) -> list[str]:
    group, lines = override.key_or_group, []
    listed = f"there are {', '.join(options) or 'none'}"
    for name in [] if override.is_delete() else [name.removesuffix(".yaml") for name in _choices(override)]:
        if name == "null":
            lines += [] if group in (*OPTIONAL_GROUPS, "tuned") else [f"{group}=null: a run has one; {listed}"]
        elif name not in options:
            remedy = REMEDIES.get(group, "").format(name=name, hub_name=name if "/" in name else f"owner/{name}")
            likeness = {
                option: difflib.SequenceMatcher(None, option, name).ratio()
                for option in difflib.get_close_matches(name, options, n=len(options) or 1)
            }
            near = sorted(option for option in likeness if likeness[option] == max(likeness.values()))
            there = f"did you mean {' or '.join(near)}? There{listed.removeprefix('there')}" if near else listed
            lines.append(f"{group}={cut(name)}: no such option; {there}" + (f"; {remedy}" if remedy else ""))
    return lines


def _unknown_option(key: str, algos: list[str], groups: Mapping[str, list[str]]) -> list[str]:
    path = option_path(key)
    lacking = [algo for algo in algos if path not in option_paths([algo])]
    if not lacking:
        return []
    if path in option_paths():
        having = ",".join(algo for algo in algos if algo not in lacking)
        apart = f"run algo={having} in a command of its own, with the same sweep_name"
        remedy = apart if having else f"use {algos_with(path)}"
        return [f"{key}: no such option of algo={', '.join(lacking)}; leave it out, or {remedy}"]
    near = difflib.get_close_matches(key, sorted(groups), n=1)
    if near and "." not in key:
        return [f"{key}: no such option; did you mean {near[0]}?"]
    return [no_such_option(path, option_paths(algos))]
