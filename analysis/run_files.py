"""A run's files as plain data: YAML, JSON lines and metrics, and nothing that a damaged or hostile file could do
instead. Most of a report's time goes here: rows are parsed once and not kept.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from rlhf.errors import visible

# A row with one of these is an evaluation, whatever its values are.
_EVALUATION_KEYS = ("eval/reward", "eval/kl")
_NUMBERS = frozenset((float, int, bool))
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


@dataclass(frozen=True)
class Metrics:
    """The logged rows of a run, in order."""

    columns: dict[str, np.ndarray]
    """(rows,) float64 by metric name; NaN where a row lacks it or holds no number."""
    evaluated: np.ndarray
    """(rows,) bool: whether the row is an evaluation, be its numbers usable or not."""

    def __len__(self) -> int:
        return len(self.evaluated)


def to_metrics(rows: Sequence[dict[str, Any]]) -> Metrics:
    """One dict per row.

    Raises:
        OverflowError: a whole number is larger than any float.
    """
    # Rows of the same metrics make a matrix at once: ten times faster than value by value.
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(index)
    places = {name: place for place, name in enumerate(dict.fromkeys(chain.from_iterable(alike)))}
    values = np.full((len(places), len(rows)), np.nan)
    evaluated = np.zeros(len(rows), dtype=bool)
    for names, indices in alike.items():
        matrix = _matrix([rows[index] for index in indices], len(names))
        values[np.ix_([places[name] for name in names], indices)] = matrix.T
        evaluated[indices] = any(key in names for key in _EVALUATION_KEYS)
    return Metrics(dict(zip(places, values, strict=True)), evaluated)


def _matrix(rows: Sequence[dict[str, Any]], width: int) -> np.ndarray:
    """(rows, width) float64 of rows with the same names; null and what is no number is NaN, text always."""
    values = list(chain.from_iterable(row.values() for row in rows))
    if not _NUMBERS.issuperset(map(type, values)):  # NumPy would read text such as "1.5" as a number
        values = [one if isinstance(one, float | int) else np.nan for one in values]
    return np.fromiter(values, dtype=np.float64, count=len(rows) * width).reshape(len(rows), width)


def json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a JSON-lines file, and the numbers (from 1, blank lines not counted) of lines that are none."""
    # Bytes, not text: a cut inside a character must spoil its own line only.
    content = path.read_bytes().strip()
    try:
        whole = orjson.loads(b"[" + content.replace(b"\n", b",") + b"]")  # a JSON string holds no newline
        if all(type(row) is dict for row in whole):
            return whole, []
    except ValueError:
        pass  # line by line, then
    rows: list[dict[str, Any]] = []
    bad_lines: list[int] = []
    for number, line in enumerate((line for line in content.split(b"\n") if line.strip()), start=1):
        row = _parsed(line)
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad_lines.append(number)
    return rows, bad_lines


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:  # among them NaN and Infinity, which are no JSON and which Python writes
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
