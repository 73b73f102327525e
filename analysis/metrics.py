"""metrics.jsonl -> one array per metric. Most of a report's time goes here, so rows are parsed once and not kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

# A row with one of these is an evaluation, whatever its values are.
_EVALUATION_KEYS = ("eval/reward", "eval/kl")


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
    """One dict per row."""
    columns: dict[str, np.ndarray] = {}
    evaluated = np.zeros(len(rows), dtype=bool)
    # Rows of the same metrics make a matrix at once: ten times faster than value by value.
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(index)
    for names, indices in alike.items():
        matrix = _matrix([list(rows[index].values()) for index in indices])
        for place, name in enumerate(names):
            columns.setdefault(name, np.full(len(rows), np.nan))[indices] = matrix[:, place]
        evaluated[indices] = any(key in names for key in _EVALUATION_KEYS)
    return Metrics(columns, evaluated)


def _matrix(values: list[list[Any]]) -> np.ndarray:
    """(rows, names) float64; null and what is no number is NaN."""
    try:
        matrix = np.array(values, dtype=np.float64)
        if matrix.ndim == 2:
            return matrix
    except (TypeError, ValueError):
        pass
    return np.array([[one if isinstance(one, float | int) else np.nan for one in row] for row in values])


def json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a JSON-lines file, and the numbers (from 1, blank lines not counted) of lines that are none."""
    rows: list[dict[str, Any]] = []
    bad_lines: list[int] = []
    # Split bytes, not text: a cut inside a character must spoil its own line only.
    for number, line in enumerate((line for line in path.read_bytes().split(b"\n") if line.strip()), start=1):
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
    except ValueError:
        return None
