"""metrics.jsonl -> one array per metric. Most of a report's time goes here, so rows are parsed once and not kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson

# A row with one of these is an evaluation, whatever its values are.
_EVALUATION_KEYS = ("eval/reward", "eval/kl")
_NUMBERS = frozenset((float, int, bool))


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
    columns: dict[str, np.ndarray] = {}
    evaluated = np.zeros(len(rows), dtype=bool)
    # Rows of the same metrics make a matrix at once: ten times faster than value by value.
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(index)
    for names, indices in alike.items():
        matrix = _matrix([rows[index] for index in indices], len(names))
        for place, name in enumerate(names):
            columns.setdefault(name, np.full(len(rows), np.nan))[indices] = matrix[:, place]
        evaluated[indices] = any(key in names for key in _EVALUATION_KEYS)
    return Metrics(columns, evaluated)


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
