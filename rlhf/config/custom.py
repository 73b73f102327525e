"""The config class of an algorithm outside this project, made from the class that `algo.loss` names."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from rlhf.config.algo import ALGO_CONFIGS, CUSTOM, CustomConfig
from rlhf.config.algo_base import AlgoConfig
from rlhf.config.setting import setting
from rlhf.config.user_code import UserCodeError, absolute, load, where_it_failed

OPTION = "algo.loss"
PLAIN = (bool, int, float, str)
BASE = ("rlhf.algorithms.algorithm", "Algorithm")
"""Module and name of the class that the user's one extends; named, since it needs torch."""


def algorithm_class(spec: str) -> type:
    """The class of `file.py:Class`.

    Raises:
        UserCodeError: not there, not runnable, or no algorithm.
    """
    kind, *others = load(spec, OPTION)
    if others:
        raise UserCodeError(f"{OPTION}: {spec} names {1 + len(others)} classes; a run has one")
    names = [(base.__module__, base.__name__) for base in kind.__mro__] if isinstance(kind, type) else []
    if BASE not in names:
        raise UserCodeError(f"{OPTION}: {spec} is no subclass of rlhf.algorithms.Algorithm; docs/algorithms.md has one")
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserCodeError(f"{OPTION}: {spec} lacks {' and '.join(lacking)}; docs/algorithms.md has an example")
    return kind


def custom_config(spec: str) -> type[AlgoConfig]:
    """The dataclass of the class's settings, which its annotation `config` names, and of `loss`.

    A setting has the default that the dataclass gives; where it gives none, null if it may be null.

    Raises:
        UserCodeError: as `algorithm_class`, or settings of types that a command line cannot have.
    """
    kind = algorithm_class(absolute(spec))
    declared = _declared_config(kind, spec)
    made = kind.__dict__.get("_config_class")
    if made is None:
        made = _made(kind, declared, spec)
        kind._config_class = made  # type: ignore[attr-defined]  # one class for one content of the file
    return made


def defaults_of(kind: type) -> dict[str, Any]:
    """The defaults of a config class as plain values; those of this project's own have none."""
    values = {}
    for field in dataclasses.fields(kind):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is not dataclasses.MISSING:
            values[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore
    return values


def with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, and what they lack from `defaults`, group by group."""
    merged = {**defaults, **values}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(values.get(name), dict):
            merged[name] = with_defaults(values[name], default)
    return merged


def own_group_size(algo: Mapping[str, Any]) -> int | None:
    """How many responses to one prompt the class of `algo.loss` has by default, where these are several and `algo`
    does not say; None elsewhere, and where the class cannot be read, which building the config says."""
    spec = algo.get("loss")
    if not isinstance(spec, str) or spec == "???" or "${" in spec or "group_size" in algo:
        return None
    try:
        kind = custom_config(absolute(spec))
    except UserCodeError:
        return None
    size = defaults_of(kind).get("group_size", getattr(kind, "group_size", None))
    return size if isinstance(size, int) and size > 1 else None


def _declared_config(kind: type, spec: str) -> type[AlgoConfig]:
    for base in kind.__mro__:
        annotation = inspect.get_annotations(base).get("config")
        if annotation is None:
            continue
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, vars(sys.modules[base.__module__]))
            except Exception as error:
                raise where_it_failed(error, spec, f"{OPTION}: the annotation config of {base.__name__}") from error
        if isinstance(annotation, type) and issubclass(annotation, AlgoConfig) and dataclasses.is_dataclass(annotation):
            return annotation
        break
    raise UserCodeError(
        f"{OPTION}: the annotation config of {kind.__name__} is no dataclass of settings that extends "
        "rlhf.config.AlgoConfig or CriticAlgoConfig; docs/algorithms.md has an example"
    )


def _made(kind: type, declared: type[AlgoConfig], spec: str) -> type[AlgoConfig]:
    try:
        hints = typing.get_type_hints(declared)
    except Exception as error:
        raise where_it_failed(error, spec, f"{OPTION}: the settings of {kind.__name__}") from error
    (place,) = (field for field in dataclasses.fields(CustomConfig) if field.name == "loss")
    fields: list[Any] = [(place.name, str, dataclasses.field(metadata=place.metadata))]
    for field in dataclasses.fields(declared):
        hint = hints[field.name]
        if field.name == place.name:
            raise UserCodeError(f"{OPTION}: {kind.__name__} has a setting loss, which is where it stands; rename it")
        if not _typable(hint):
            raise UserCodeError(
                f"{OPTION}: the setting {field.name} of {kind.__name__} has type {field.type}; there are bool, int, "
                "float, str, lists of one of these, each | None, and rlhf.config.KLControlConfig"
            )
        metadata = field.metadata or setting(f"setting {field.name} of {kind.__name__}").metadata
        given: dict[str, Any] = {"default": field.default, "default_factory": field.default_factory}
        given = {name: value for name, value in given.items() if value is not dataclasses.MISSING}
        if not given and type(None) in typing.get_args(hint):
            given = {"default": None}
        fields.append((field.name, hint, dataclasses.field(metadata=metadata, **given)))
    made = dataclasses.make_dataclass(declared.__name__, fields, bases=(declared,), kw_only=True)
    names = [field.name for field in dataclasses.fields(made)]
    made.__reduce__ = lambda config: (_again, ({name: getattr(config, name) for name in names},))  # type: ignore
    return made


def _typable(hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return len(inner) == 1 and len(typing.get_args(hint)) == 2 and _typable(inner[0])
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0] in PLAIN
    return hint in PLAIN or (dataclasses.is_dataclass(hint) and hint.__module__ == AlgoConfig.__module__)


def _again(values: dict[str, Any]) -> AlgoConfig:
    """The config in another process, which loads the class anew."""
    return custom_config(values["loss"])(**values)


def own_name(kind: type) -> str:
    """What runs and reports call the algorithm."""
    return f"{CUSTOM}-{kind.__name__}" if kind.__name__ in ALGO_CONFIGS else kind.__name__
