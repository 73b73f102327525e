"""Values of run files as plain data, and nothing that a damaged or hostile file could do instead."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import visible

# libyaml's loader reads the same language ten times faster; PyYAML is sometimes built without it.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What a file of settings or a summary may be; more is damage, or made to break its reader: libyaml's loader recurses in
# C and ends the process where nesting is deep, and an alias may stand for itself.
_MOST_BYTES, _DEEPEST, _MOST_VALUES = 1_000_000, 50, 100_000
# A nesting of YAML that does not indent costs one of these each.
_NESTING_MARKS = (b"[", b"{", b"-", b"?")
_LARGEST_INTEGER = 2**63


class NotPlainError(ValueError):
    """The message is a predicate: `is nested too deeply`, of the file or the values."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        NotPlainError: it is no YAML, too large, or nested too deeply.
        OSError: it cannot be read.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise NotPlainError(f"is larger than {_MOST_BYTES // 1_000_000} MB")
    content = path.read_bytes()
    try:
        if _nests_too_deeply(content):
            raise NotPlainError("is nested too deeply")
        return yaml.load(content, Loader=_YAML_LOADER)
    except NotPlainError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # among them a date or key that cannot be
        raise NotPlainError("is not readable YAML") from error


def plain(value: Any) -> Any:
    """A copy of dicts with text for keys, lists, text, numbers, booleans and None; a date becomes text, and of text
    what a terminal or page would obey is left out.

    Raises:
        NotPlainError: something else, such as a set; too large a number; too many values, or nested too deeply.
    """
    left = _MOST_VALUES

    def copy(one: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _DEEPEST or left < 0:
            raise NotPlainError("is nested too deeply" if depth > _DEEPEST else "holds too many values")
        if isinstance(one, dict):
            return {visible(str(key)): copy(inner, depth + 1) for key, inner in one.items()}
        if isinstance(one, list | tuple):
            return [copy(inner, depth + 1) for inner in one]
        if isinstance(one, str | datetime.date):
            return visible(str(one))
        if isinstance(one, int) and abs(one) >= _LARGEST_INTEGER:
            raise NotPlainError("holds a whole number that is too large")
        if one is None or isinstance(one, bool | int | float):
            return one
        raise NotPlainError(f"holds a {type(one).__name__}, which is no setting")

    return copy(value, 0)


def whole_text(text: str) -> str:
    """Half characters, which no file can hold, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _nests_too_deeply(content: bytes) -> bool:
    """By libyaml's events, which do not recurse; only where there are marks enough."""
    if sum(content.count(mark) for mark in _NESTING_MARKS) < 10 * _DEEPEST:
        return False
    depth = 0
    for event in yaml.parse(content, Loader=_YAML_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            return True
    return False
