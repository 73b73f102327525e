"""A composed config -> a checked run: which file or override set what, and settings that a file keeps by algorithm."""

from __future__ import annotations

import copy
import dataclasses
import os.path
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config import ALGO_CONFIGS, RunConfig
from rlhf.config.build import (
    CONF,
    NAMED_AFTER_PATH,
    ConfigError,
    build_config,
    last_name,
    no_such_option,
    option_paths,
    shown,
)
from rlhf.config.check import COMMAND_LINE, check
from rlhf.config.custom import own_group_size
from rlhf.config.identity import input_runs
from rlhf.config.model_size import in_words, parameters_at, settings_by_size
from rlhf.config.options import file_values, flat, options

if TYPE_CHECKING:
    from omegaconf import DictConfig

SIZE = "size"
"""In place of the group of settings that follow the size of a model."""
ALGOS = "algos"
"""Key of a file under which settings stand by algorithm: `algos: {apa: {lam: 0.3}}`."""

# Groups whose files set options of several sections, in the order in which later ones win.
ACROSS_SECTIONS = ("tuned@_global_", "tuned", "experiment", "debug")


@dataclass(frozen=True)
class SettingsFile:
    label: str
    group: str
    values: dict[str, Any]
    is_ours: bool
    """The project's; the user's are outside conf/."""


def composed_run(config: DictConfig, hydra: Any) -> RunConfig:
    """The run of what Hydra composed.

    Args:
        hydra: Hydra's settings of this composition.

    Raises:
        ConfigError: with all problems, one a line, each with the file that set the option where one did.
    """
    overrides = [str(text) for text in hydra.overrides.task]
    mapping = with_settings_of_algo(run_mapping(config), overrides)
    return checked_run(mapping, settings_files(hydra), overrides)


def checked_run(
    mapping: dict[str, Any],
    files: Sequence[SettingsFile],
    overrides: Sequence[str],
    searched: Collection[str] = (),
) -> RunConfig:
    """`composed_run` of parts.

    Args:
        mapping: the composed values, interpolations resolved, without Hydra's and without tables by algorithm.
        files: beyond the defaults, in the order in which later ones win.
        overrides: of the command line or of the cell of a grid.
        searched: options that a study gives values.
    """
    typed = typed_paths(overrides)
    mapping, files = _with_settings_by_size(mapping, files, {*typed, *searched})
    try:
        run = build_config(mapping)
        judged = [file for file in files if not (file.is_ours and file.group in ("tuned", "debug", SIZE))]
        sources = {path: file.label for file in judged for path in file.values}
        if problems := check(run, sources | dict.fromkeys(typed, COMMAND_LINE)):
            raise ConfigError(problems)
    except ConfigError as error:
        known = {path: file.label for file in files for path in file.values}
        raise ConfigError([_with_source(line, known, typed) for line in error.problems]) from None
    return dataclasses.replace(run, settings_from=[*_for_another_model(run), *_what_files_set(run, files, typed)])


def run_mapping(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A composed config as plain values, without Hydra's settings; with the interpolations as they are written where
    `resolve` is false."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    if resolve:
        plain = resolved(plain)
    return {str(key): value for key, value in plain.items()}


def resolved(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """The mapping with its interpolations replaced; they see how many responses to one prompt a class outside this
    project asks for, which no file in conf/ says."""
    from omegaconf import OmegaConf

    algo = mapping.get("algo")
    size = own_group_size(algo) if isinstance(algo, dict) else None
    seen = mapping if size is None else {**mapping, "algo": {**algo, "group_size": size}}  # type: ignore[dict-item]
    plain = OmegaConf.to_container(OmegaConf.create(seen), resolve=True)
    assert isinstance(plain, dict)
    if size is not None:
        del plain["algo"]["group_size"]
    return plain


def typed_paths(overrides: Sequence[str]) -> list[str]:
    """Dotted paths of the options that overrides set; a group that they choose, by its name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    paths = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not is_hydras(override.key_or_group) and not override.is_delete():
            paths += [path for path, _ in flat(override.value(), option_path(override.key_or_group))]
    return paths


def is_hydras(key: str) -> bool:
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def option_path(key: str) -> str:
    """Of the option that a key sets, as optimization.betas of optimization.betas.0."""
    return ".".join(part for part in key.split(".") if not part.isdigit())


def composition_problem(error: Exception, overrides: Sequence[str] = ()) -> str:
    """One line for what Hydra says when files and overrides cannot be composed."""
    said = " ".join(str(error).split())
    for override in overrides:
        path = override.partition("=")[0].lstrip("+~")
        if f"'{path}'" in said and path in option_paths():
            if path.startswith("hardware.slurm."):
                return f"{path}: hardware=cpu or gpu does not read it; leave it out, or use hardware=slurm"
            return f"{path}: nothing of this combination has it ({said})"
    return said


def settings_files(hydra: Any) -> list[SettingsFile]:
    """The files beside the project's groups that had a part in a composed config, with what they set."""
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    choices = {str(group): choice for group, choice in hydra.runtime.choices.items()}
    groups = sorted(group for group in choices if group not in ACROSS_SECTIONS and not is_hydras(group))
    start = f"{ALGOS}.{choices.get('algo')}."
    files = []
    for group in (*groups, *ACROSS_SECTIONS):
        chosen = choices.get(group) or []
        for name in [chosen] if isinstance(chosen, str) else map(str, chosen):
            for file in _files(group.partition("@")[0], name, folders):
                if group in ACROSS_SECTIONS or not file.is_ours:
                    # Those for the chosen algorithm stand in the place of the table by algorithm.
                    values = {path: v for path, v in file.values.items() if not path.startswith(f"{ALGOS}.")}
                    for path, value in file.values.items():
                        if path.startswith(start):
                            values[f"algo.{path.removeprefix(start)}"] = value
                    files.append(dataclasses.replace(file, values=values))
    for file in files:
        named, chosen = file.values.get("algo.name"), choices.get("algo")
        if file.group in ACROSS_SECTIONS and named in ALGO_CONFIGS and chosen in ALGO_CONFIGS and named != chosen:
            in_file = f"`defaults: [override /algo: {named}]` in its place"
            raise ConfigError(
                [f"algo.name: {file.label} sets {named}, which chooses none; write {in_file}, or type algo={named}"]
            )
    return files


def _files(group: str, name: str, folders: Sequence[Path]) -> Iterator[SettingsFile]:
    """The group's file of that name, after those of its group that it begins from."""
    import yaml

    file = next(
        (f for folder in folders if (f := folder / group / f"{name.removesuffix('.yaml')}.yaml").is_file()), None
    )
    if file is None:
        return
    for entry in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            yield from _files(group, entry, folders)
    conf = file.parent.parent
    is_ours = conf.resolve() == CONF
    label = file.relative_to(conf.parent) if is_ours else file
    yield SettingsFile(label.as_posix(), group, dict(file_values(file, group)), is_ours)


def with_settings_of_algo(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping with a file's settings for the chosen algorithm in `algo`; the overrides win.

    Raises:
        ConfigError: an algorithm or an option of one that is not there, of whichever algorithm.
    """
    if ALGOS not in mapping:
        return mapping
    typed = typed_paths(overrides)
    mapping = copy.deepcopy(mapping)
    tables = mapping.pop(ALGOS)
    if problems := list(_wrong_tables(tables)):
        raise ConfigError(problems)
    for path, value in flat((tables or {}).get(mapping["algo"].get("name")) or {}):
        if f"algo.{path}" not in typed:
            *parents, name = path.split(".")
            section = mapping["algo"]
            for parent in parents:
                section = section.setdefault(parent, {})
            section[name] = value
    return mapping


def _with_settings_by_size(
    mapping: dict[str, Any], files: Sequence[SettingsFile], typed: Collection[str]
) -> tuple[dict[str, Any], Sequence[SettingsFile]]:
    """Of model=hub: with what suits a model of that size, where neither a file nor what was typed sets it."""
    chosen = dict(flat(mapping))
    path = chosen.get("model.path")
    if chosen.get("model.name") != NAMED_AFTER_PATH or not isinstance(path, str):
        return mapping, files
    path = os.path.expanduser(path)
    taken = {*typed, *(option for file in files for option in file.values)}
    count = parameters_at(path)
    try:
        by_size = settings_by_size(
            count or 0, {p: v for p, v in chosen.items() if p in taken or not p.endswith(".train.mode")}
        )
    except (KeyError, TypeError, ValueError):  # what is no number is refused with everything else
        return mapping, files
    label = f"{last_name(path)} ({in_words(count)})" if count else f"conf/model/hub.yaml, not knowing {path}'s size,"
    values = {option: v if count else chosen[option] for option, v in by_size.items() if option not in taken}
    mapping = copy.deepcopy(mapping)
    for option, value in values.items():
        *parents, name = option.split(".")
        section = mapping
        for parent in parents:
            section = section[parent]
        section[name] = value
    return mapping, [SettingsFile(label, SIZE, values, True), *files]


def _wrong_tables(tables: Any) -> Iterator[str]:
    """A line for whatever cannot be under `algos`."""
    example = f"{ALGOS}: {{apa: {{lam: 0.3}}}}"
    if not isinstance(tables, dict | None):
        yield f"{ALGOS}: {shown(tables)} is no table of settings by algorithm, as {example}"
        return
    for algo, table in (tables or {}).items():
        if algo not in ALGO_CONFIGS:
            yield no_such_option(f"{ALGOS}.{algo}", [f"{ALGOS}.{name}" for name in ALGO_CONFIGS])
        elif not isinstance(table, dict | None):
            yield f"{ALGOS}.{algo}: {shown(table)} is no group of options, as {example}"
        else:
            start = f"{ALGOS}.{algo}."
            known = {start + path.removeprefix("algo.") for path in option_paths([algo]) if path.startswith("algo.")}
            paths = [start + path for path, _ in flat(table or {})]
            yield from (no_such_option(path, known) for path in paths if path not in known)


def _for_another_model(run: RunConfig) -> Iterator[str]:
    """A line where the settings of a model in conf/ are used for other weights than its own."""
    model = run.model
    file = CONF / "model" / f"{model.name}.yaml"
    path = dict(file_values(file, "model")).get("model.path") if file.is_file() else None
    if path and model.source == "pretrained" and model.path != path:
        yield f"model={model.name} is made for {path} and used for {model.path}; model=hub has settings for any model"


def _with_source(line: str, known: dict[str, str], typed: Sequence[str]) -> str:
    """The line with the file that set its option, where it was not typed."""
    path, _, rest = line.partition(":")
    if path not in known or path in typed or known[path] in line:
        return line
    remedy = ""
    if path.startswith("algo.") and "no such option" in rest:
        remedy = f"; there, what is one algorithm's stands under {ALGOS}: {{NAME: {{{path.partition('.')[2]}: ...}}}}"
    return f"{line} ({known[path]} sets it{remedy})"


def _what_files_set(run: RunConfig, files: Sequence[SettingsFile], typed: Sequence[str]) -> Iterator[str]:
    """One line for each file: what it set that is in force and read, and what nothing reads here."""
    runs = [run, *input_runs(run)]
    table = {option.path: option for option in options(run)}
    last = {path: file for file in files for path in file.values}
    for file in files:
        paths = [path for path in file.values if path in table and last[path] is file and path not in typed]
        unread = [path for path in paths if table[path].unread_by(runs) is not None]
        values = [f"{path}={_text(table[path].value)}" for path in paths if path not in unread]
        if values or not file.is_ours:
            text = f"{file.label} sets {', '.join(values) or 'nothing that this run reads'}"
            yield text + (f" (not read here: {', '.join(unread)})" if unread and file.group != SIZE else "")


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) and value else shown(value)
