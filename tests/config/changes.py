"""A config with another value of an option, whatever its type."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.build import option_types
from rlhf.config.options import Option


def changed(run: RunConfig, option: Option) -> RunConfig:
    """The run with another value of the option."""

    def replaced(section: Any, path: str) -> Any:
        name, _, rest = path.partition(".")
        value = replaced(getattr(section, name), rest) if rest else another(option)
        return dataclasses.replace(section, **{name: value})

    return replaced(run, option.path)


def another(option: Option) -> Any:
    kinds = typing.get_args(kind) if isinstance(kind := option_types()[option.path], types.UnionType) else (kind,)
    value, choices = option.value, option.stated["choices"]
    if choices is not None:
        return next(choice for choice in choices if choice != value)
    if typing.get_origin(kinds[0]) is list:
        return [] if value else [1.0] if float in typing.get_args(kinds[0]) else ["x"]
    made = {bool: not value, int: (value or 0) + 1, float: (value or 0.2) / 2} if not isinstance(value, str) else {}
    return made.get(kinds[0], f"{value}x")
