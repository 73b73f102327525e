"""A composed mapping -> typed `RunConfig`, with all problems in one error; and back, for freezing."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import math
import os.path
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rlhf.config import ALGO_CONFIGS, AlgoConfig, RunConfig
from rlhf.config.custom import algorithm_class, custom_config, defaults_of, own_name, with_defaults
from rlhf.config.reward import BY_MATH_VERIFY
from rlhf.config.user_code import UserCodeError, absolute
from rlhf.errors import UserError, printable
from rlhf.urls import secret_in

T = TypeVar("T")

CONF = Path(__file__).resolve().parents[2] / "conf"

NAMED_AFTER_PATH = "hub"
"""The model's name that gives way to that of `model.path`."""

MOST_ALGOS = 2
"""Algorithms that a message names for an option of theirs."""

LONGEST_VALUE = 100
"""Letters of a value that a message shows."""


class ConfigError(UserError, ValueError):
    """What the user asked for cannot be; `problems` has one line for each reason."""

    label, exit_code = "config error", 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)  # pickling would otherwise hand the joined text to __init__


def shown(value: Any) -> str:
    """`value` as Python writes it, on one line, cut where it is very long; a text that holds a secret is not shown."""
    return "a text with a secret" if isinstance(value, str) and secret_in(value) else cut(repr(value))


def cut(text: str) -> str:
    """On one line, and not very long."""
    text = printable(text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def build_config(mapping: dict[str, Any]) -> RunConfig:
    """The typed config of a composed mapping (`OmegaConf.to_container(config, resolve=True)`).

    Raises:
        ConfigError: unknown keys, missing values, wrong types, values out of range; all of them at once.
    """
    config = build_group(RunConfig, mapping)
    if config.model.name == NAMED_AFTER_PATH and config.model.path:
        config.model.name = last_name(config.model.path)
    if config.reward.name == "python" and config.reward.path:
        config.reward.path = absolute(config.reward.path)
    if config.reward.name == "verifiable" and config.reward.compare == "auto":
        config.reward.compare = BY_MATH_VERIFY if importlib.util.find_spec(BY_MATH_VERIFY) else "plain"
    return config


def build_group(kind: type[T], mapping: dict[str, Any], name: str = "") -> T:
    """The dataclass `kind` of a mapping, checked as the options of a run are.

    Args:
        name: what the problems call it, as "hydra.sweeper".

    Raises:
        ConfigError: with all problems.
    """
    problems: list[str] = []
    group = _build(kind, mapping, f"{name}.".lstrip("."), problems)
    if problems:
        raise ConfigError(problems)
    return group


def last_name(path: str) -> str:
    """Of a folder or hub name; of a run's final/, the run's."""
    parts = [part for part in Path(path).absolute().parts if part != "final"]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", parts[-1]).strip("-.") or NAMED_AFTER_PATH
    ours = (CONF / "model" / f"{name}.yaml").exists()
    return f"{NAMED_AFTER_PATH}-{name}" if ours else name


def config_to_mapping(config: RunConfig) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers; `build_config` makes the same config of it again."""
    return dataclasses.asdict(config)


def group_of(kind: Any) -> type | None:
    """The dataclass of a field that is a group of options, or may be (X | None)."""
    candidates = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((part for part in candidates if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


@functools.cache
def types_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return typing.get_type_hints(kind)


def option_fields(kind: type, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(dotted path, type, field) of every option and group below a dataclass that a user can set."""
    for field in dataclasses.fields(kind):
        inner = types_of(kind)[field.name]
        if not field.metadata["filled_in"]:
            yield prefix + field.name, inner, field
        if group := group_of(inner):
            yield from option_fields(group, f"{prefix}{field.name}.")


@functools.cache
def _all_fields(algo: str | None = None) -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """`option_fields` of a run by path; `algo.*` are those of one algorithm (a name or the place of a class), or
    without one of all in this project."""
    fields = [field for field in option_fields(RunConfig) if not field[0].startswith("algo.")]
    for kind in ALGO_CONFIGS.values() if algo is None else [ALGO_CONFIGS.get(algo) or custom_config(algo)]:
        fields += option_fields(kind, "algo.")
    return {path: (kind, field) for path, kind, field in fields}


def option_paths(algos: Iterable[str] = ALGO_CONFIGS) -> set[str]:
    """Dotted paths of all options and groups of options, `algo.*` being those that one of `algos` has."""
    shared = {path for path in _all_fields() if not path.startswith("algo.")}
    return shared.union(*(_all_fields(algo) for algo in algos))


@functools.cache
def option_types() -> dict[str, Any]:
    """{dotted path: type} of all options of all algorithms, groups of options left out."""
    return {path: kind for path, (kind, _) in _all_fields().items() if group_of(kind) is None}


def paths_without_effect() -> set[str]:
    """Dotted paths of the options that can change no result, and of the groups that hold nothing else."""
    with_effect = {path for path in option_types() if _all_fields()[path][1].metadata["identity"] is not False}
    return {path for path in _all_fields() if not any(f"{other}.".startswith(f"{path}.") for other in with_effect)}


def off_values() -> dict[str, Any]:
    """{dotted path: the value that a config without the option has}."""
    stated = {path: _off(field, None) for path, (_, field) in _all_fields().items()}
    return {path: value for path, value in stated.items() if value is not None}


def _off(field: dataclasses.Field[Any], otherwise: Any) -> Any:
    off = field.metadata["off"]
    return otherwise if off is dataclasses.MISSING else off


def kl_knobs(algo: str) -> set[str]:
    """Dotted paths of the options that set how far an algorithm goes from the initial policy; of one that is not ours,
    none."""
    fields = _all_fields(algo) if algo in ALGO_CONFIGS else {}
    return {path for path, (_, field) in fields.items() if field.metadata["kl_knob"]}


def no_such_option(path: str, known: Iterable[str]) -> str:
    """The line that refuses `path`, with the nearest of the `known` paths, or what goes by that name elsewhere."""
    known = sorted(known)
    if path in option_types() and path not in known and (algos := algos_with(path)):
        return f"{path}: no such option of this algorithm; leave it out, or use {algos}"
    if path == "algo.name":
        return f"{path}: typed as algo=NAME"
    parent, _, name = path.rpartition(".")
    siblings = {p.rpartition(".")[2]: p for p in known if p.rpartition(".")[0] == parent}
    elsewhere = [p for p in known if p.rpartition(".")[2] == name]
    near = [siblings[match] for match in difflib.get_close_matches(name, siblings, n=1)]
    initials = [p for sibling, p in siblings.items() if name == "".join(word[0] for word in sibling.split("_"))]
    misspelt_parent = [] if parent in known else difflib.get_close_matches(path, known, n=1)
    also = [p for p, (_, field) in _all_fields().items() if name in field.metadata["also_called"]]
    before_rl = ("sft.", "reward_model.")
    also = [p for p in also if p.startswith(f"{parent}.")] or sorted(also, key=lambda p: p.startswith(before_rl))
    meant = initials or also or near or elsewhere or misspelt_parent
    names = [p if p in known or p not in option_types() else f"{p} ({algos_with(p)})" for p in meant[:3]]
    return f"{cut(path)}: no such option" + (f"; did you mean {' or '.join(names)}?" if names else "")


def algos_with(path: str) -> str:
    """What to type for an option of `algo`: the first algorithms that have it."""
    having = [name for name in ALGO_CONFIGS if path in _all_fields(name)]
    return " or ".join(f"algo={name}" for name in having[:MOST_ALGOS])


def _build(kind: type, mapping: Any, prefix: str, problems: list[str]) -> Any:
    """An object of the dataclass `kind`, or None once there is a problem."""
    if not isinstance(mapping, dict):
        problems.append(f"{prefix.rstrip('.')}: {shown(mapping)} is not a group of options")
        return None
    if kind is AlgoConfig:
        try:
            kind, mapping = _algorithm(mapping)
        except UserCodeError as error:
            problems.append(str(error))
            return None
        if kind is AlgoConfig:
            problems.append(f"algo.name: {mapping.get('name')!r} is not one of {', '.join(sorted(ALGO_CONFIGS))}")
            return None
    known = types_of(kind)
    if unknown := [f"{prefix}{key}" for key in mapping if key not in known]:
        paths = {prefix + name for name in known} | option_paths(())
        problems += [no_such_option(path, paths) for path in unknown]
    before = len(problems)
    values = {}
    for field in dataclasses.fields(kind):
        value = mapping.get(field.name, [] if field.metadata["filled_in"] else _off(field, "???"))
        if value == "???":  # OmegaConf's mark of a value that must be given
            problems.append(f"{prefix}{field.name}: missing")
        elif value is None and type(None) in typing.get_args(known[field.name]):
            values[field.name] = None
        elif group := group_of(known[field.name]):
            values[field.name] = _build(group, value, f"{prefix}{field.name}.", problems)
        else:
            values[field.name] = _checked(value, known[field.name], prefix, field, problems)
    return kind(**values) if len(problems) == before else None


def _algorithm(mapping: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    """The config class of `algo`, and its values with the defaults that an algorithm outside this project has."""
    spec = mapping.get("loss")
    if not isinstance(spec, str) or spec == "???":
        return ALGO_CONFIGS.get(mapping.get("name", ""), AlgoConfig), mapping
    spec = absolute(spec)
    kind = custom_config(spec)
    return kind, {**with_defaults(mapping, defaults_of(kind)), "loss": spec, "name": own_name(algorithm_class(spec))}


def _checked(value: Any, kind: Any, prefix: str, field: dataclasses.Field[Any], problems: list[str]) -> Any:
    """`value` as the field's type and within its range; of a path, the one that ~ stands for."""
    word = "on" if value is True else "off" if value is False else None
    if word in (field.metadata["choices"] or ()):
        value = word  # YAML 1.1 and Hydra read the bare words as true and false
    try:
        converted = _convert(value, kind)
        if isinstance(converted, str) and field.metadata["path"]:
            converted = os.path.expanduser(converted)  # here, so that identity, checks and use see one path
        for item in converted if isinstance(converted, list) else [converted]:
            _check_range(item, field.metadata)
        return converted
    except ValueError as error:
        meaning = f"; it is the {field.metadata['meaning']}" if isinstance(value, str) and ":" in value else ""
        problems.append(f"{prefix}{field.name}: {error}{meaning}")
        return None


def _convert(value: Any, kind: Any) -> Any:
    """`value` as `kind`, where that loses nothing; the error says what it is not."""
    if isinstance(kind, types.UnionType):  # X | None is the only union in the dataclasses
        return None if value is None else _convert(value, typing.get_args(kind)[0])
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError(f"{shown(value)} is not a list; square brackets make one")
        return [_convert(item, typing.get_args(kind)[0]) for item in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and (number or isinstance(value, str)):  # YAML 1.1 reads 1e-4 as a text
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(result := float(value)):
                return result
    elif kind is str and number and isinstance(value, int):
        return str(value)  # sweep_name=2026 comes as an integer
    elif kind is not float and type(value) is kind:
        return value
    text = "a text; put it into quotes if it is meant as one"
    what = {bool: "true or false", int: "an integer", float: "a number", str: text}[kind]
    raise ValueError(f"{shown(value)} is not {what}")


def _check_range(value: Any, bounds: typing.Mapping[str, Any]) -> None:
    choices, low, above, high = (bounds[name] for name in ("choices", "low", "above", "high"))
    if value is None:
        return
    if choices is not None and value not in choices:
        raise ValueError(f"{shown(value)} is not one of {', '.join(choices)}")
    if low is not None and value < low:
        raise ValueError(f"{shown(value)} is below {low}")
    if above is not None and value <= above:
        raise ValueError(f"{shown(value)} is not above {above}")
    if high is not None and value > high:
        raise ValueError(f"{shown(value)} is above {high}")
