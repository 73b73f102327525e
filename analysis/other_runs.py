"""Logs of other trainers -> runs that `compare` takes: CSV, JSON lines, transformers' trainer_state.json, and the CSV
that W&B's charts export, whose columns are `RUN - METRIC`.

W&B exports a chart at a time, so that reward and KL of a run come in two files: they are joined by run and by the first
column. In every file rows of one step are joined, since some trainers log evaluations in rows of their own.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.load import RunRecord, make_record
from analysis.run_files import json_lines
from analysis.summary import common_budget

FORMATS = (".csv", ".json", ".jsonl")
UNITS = {"nats/response": 1.0, "nats/token": 1.0, "bits/response": math.log(2.0), "bits/token": math.log(2.0)}
"""Nats in a unit of KL."""
_STEPS = ("step", "_step", "Step", "global_step", "train/global_step", "iteration")
_MOST_BYTES, _KEYS_NAMED = 500_000_000, 20
_OF_RUN = " - "
# Files that do not name the run: their folder does.
_UNNAMED = ("trainer_state", "wandb-history", "history", "metrics", "log", "progress")
_SEED = re.compile(r"[-_. ](?:seed[-_=]?|s)(\d+)$", re.IGNORECASE)
_HALVES = ("eval/reward_even", "eval/reward_odd")
# A run has about so many points, and at most so many: its curve costs their square.
_POINTS, _MOST_POINTS = 30, 2000
# Of the largest KL: further below 0 is no noise of an estimate; further above it a first row is not the initial policy.
_NOISE, _AT_START = 0.1, 0.01


@dataclass(frozen=True)
class Keys:
    """What the columns are called."""

    wanted: dict[str, str]  # of `reward`, `kl` and, where the KL is per token, `length`: the tokens of a response
    kl_unit: str  # of UNITS
    step: str | None = None  # None: the first of _STEPS that is there, or else the order of the rows


@dataclass
class OtherRun:
    """One run as its log tells it."""

    algo: str
    title: str
    file: Path
    parts: list[Any] = field(default_factory=list)  # data frames of `step` and what is wanted, as they were found
    notes: list[str] = field(default_factory=list)
    rows: Any = None  # data frame of `step`, `kl` (nats per response) and `reward`, in the order of training


def read_other_runs(files: Sequence[tuple[str, Path]], keys: Keys) -> list[OtherRun]:
    """The runs of (algorithm, file) pairs.

    Args:
        files: where the algorithm is "" it is the name of the file, or of the run in W&B's export, less a seed at its
            end, as in ppo-s0 or ppo_seed3.

    Raises:
        AnalysisError: a file cannot be read, lacks a key, or holds something else than numbers; it names the file.
    """
    runs: dict[tuple[str, str], OtherRun] = {}
    for algo, path in files:
        found, notes = read_table(path)
        for name, part in _parts(path, found, keys).items():
            title = name or (path.resolve().parent.name if path.stem in _UNNAMED else path.stem)
            run = runs.setdefault((algo, name or str(path)), OtherRun(algo or _SEED.sub("", title), title, path))
            run.parts.append(part)
            run.notes += notes
    for run in runs.values():
        _join(run, keys)
    return list(runs.values())


def read_table(path: Path) -> tuple[Any, list[str]]:
    """A data frame with the file's columns, nested ones with dots in their names, and what was tolerated.

    Raises:
        AnalysisError: it is of no known format, too large, damaged or empty.
    """
    if not path.is_file() or path.suffix.lower() not in FORMATS:
        raise AnalysisError(f"{path}: is no file that ends in {', '.join(FORMATS)}; export the run as one of these")
    if path.stat().st_size > _MOST_BYTES:
        raise AnalysisError(f"{path}: is larger than {_MOST_BYTES // 10**6} MB; keep step, reward and KL alone")
    notes: list[str] = []
    found = _csv(path) if path.suffix.lower() == ".csv" else _json(path, notes)
    if found.empty:
        raise AnalysisError(f"{path}: has no rows")
    return found, notes


def _csv(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of rows longer than the header
            first: Any = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            names = first.iloc[0].tolist()  # pandas would rename the second of two columns of one name
            return pd.read_csv(path, header=0, names=names, index_col=False, low_memory=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (ValueError, Warning) as error:
        raise AnalysisError(f"{path}: is no table in CSV ({' '.join(str(error).split())})") from None


def _json(path: Path, notes: list[str]) -> Any:
    try:
        whole = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        whole = None  # one object a line, then
    rows = whole.get("log_history") if isinstance(whole, dict) else whole
    if not isinstance(rows, list):
        rows, bad_lines = json_lines(path)
        if rows and bad_lines == [len(rows) + 1]:
            notes.append(f"the last line of {path.name} is cut off and was left out")
        elif bad_lines:
            raise AnalysisError(f"{path}: line {bad_lines[0]} is no JSON object; give one a line, or a list of them")
    if not all(isinstance(row, dict) for row in rows):
        raise AnalysisError(f"{path}: holds a list of something else than objects; give one for each step")
    try:
        return pd.json_normalize(rows)
    except RecursionError:
        raise AnalysisError(f"{path}: is nested too deeply") from None


def _parts(path: Path, found: Any, keys: Keys) -> dict[str, Any]:
    """By name of the run, "" where the file is one: `step`, and of what is wanted the columns that it has."""
    columns = list(map(str, found.columns))
    by_run: dict[str, dict[str, str]] = {}
    for name, key in keys.wanted.items():
        for column in columns:
            if column == key or column.endswith(_OF_RUN + key):
                by_run.setdefault(column[: -len(_OF_RUN + key)], {})[name] = column
    exported = by_run and "" not in by_run
    own = keys.wanted if exported else by_run.get("", {})
    missing = [key for name, key in keys.wanted.items() if name not in own]
    missing += [] if keys.step is None or keys.step in columns else [keys.step]
    if missing:
        names = list(dict.fromkeys(column.rpartition(_OF_RUN)[2] for column in columns))
        near = difflib.get_close_matches(missing[0], names, n=2)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise AnalysisError(f"{path}: has no {missing[0]}{meant}; it has {listed(names)}")
    first = columns[0] if exported and _OF_RUN not in columns[0] else None
    step = keys.step or next((name for name in _STEPS if name in columns), first)
    order = np.arange(len(found), dtype=np.float64) if step is None else _numbers(found[step], path)
    return {
        run: pd.DataFrame({"step": order} | {name: _numbers(found[column], path) for name, column in own.items()})
        for run, own in (by_run.items() if exported else [("", own)])
    }


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - _KEYS_NAMED} more" if len(names) > _KEYS_NAMED else ""
    return ", ".join(names[:_KEYS_NAMED]) + more


def _numbers(column: Any, path: Path) -> Any:
    """Floats, NaN where there is none."""
    try:
        numbers: Any = pd.to_numeric(column, errors="coerce")
        made = numbers.astype(np.float64)
    except OverflowError:
        raise AnalysisError(f"{path}: {column.name} holds a whole number that is too large") from None
    bad = np.flatnonzero(made.isna() & column.notna() & (column.astype(str).str.lower() != "nan"))
    if len(bad):
        said = str(column.iloc[bad[0]])[:40]
        raise AnalysisError(f"{path}: {column.name} of row {bad[0] + 1} is no number: {said}")
    return made


def _join(run: OtherRun, keys: Keys) -> None:
    """A row for each step, with the KL in nats per response."""
    place, reward = f"{run.file}: {run.title}", keys.wanted["reward"]
    logged = [part[part.drop(columns="step").notna().any(axis=1)] for part in run.parts]
    if missing := [key for name, key in keys.wanted.items() if not any(name in part for part in run.parts)]:
        raise AnalysisError(f"{place} has no {missing[0]}; give the export of its chart, too")
    rows: Any = pd.concat(logged, ignore_index=True)
    if rows["step"].isna().any():
        raise AnalysisError(f"{place} has rows without a step; --step-key names a column that all have")
    if not all(part["step"].is_monotonic_increasing for part in logged):
        run.notes.append("its steps are not in order and were sorted")
    if twice := int(rows.loc[rows["reward"].notna(), "step"].duplicated().sum()):
        run.notes.append(f"{twice} rows are of a step that came before: the last of a step counts")
    made = rows.groupby("step", as_index=False).last()
    made["kl"] *= UNITS[keys.kl_unit]
    if "length" in made:
        if (made["length"] <= 0.0).any():
            raise AnalysisError(f"{place}: {keys.wanted['length']} is not above 0; it is the tokens of a response")
        made["kl"] *= made["length"]
    run.rows = made[np.isfinite(made[["kl", "reward"]]).all(axis=1)][["step", "kl", "reward"]]
    left = len(made) - len(run.rows)
    if len(run.rows) < 2:
        raise AnalysisError(f"{place}: a curve needs two steps with both {reward} and {keys.wanted['kl']}")
    if left:
        run.notes.append(f"{left} of {len(made)} steps have no finite reward and KL and no point")


def rows_of_a_point(run: OtherRun, average: int | None) -> int:
    """As asked, or so many that the run has about _POINTS.

    Raises:
        AnalysisError: the run would have fewer than two points, or more than can be drawn.
    """
    count = len(run.rows)
    size = average or max(1, count // _POINTS)
    if not 2 <= count // size <= _MOST_POINTS:
        least = -(-count // _MOST_POINTS)
        raise AnalysisError(
            f"--average: {size} does not fit the {count} steps of {run.file}; give {least} to {count // 2}"
        )
    return size


def to_records(runs: Sequence[OtherRun], average: int | None, initial_reward: float | None) -> list[RunRecord]:
    """Runs whose points are means over rows in a row, with every second row for one half: the best point is then chosen
    on other rows than it is scored on.

    Args:
        initial_reward: the initial policy's; None: the first point stands for it.

    Raises:
        AnalysisError: a KL is below 0 by more than noise.
    """
    points = [_points(run, rows_of_a_point(run, average), initial_reward) for run in runs]
    largest = [max(row["eval/kl"] for row in rows) for rows in points]
    budget = common_budget([kl for kl in largest if kl > 0.0] or [1.0])
    records = []
    for run, rows in zip(runs, points, strict=True):
        seed = sum(record.algo == run.algo for record in records)
        config = {"seed": seed, "algo": {"name": run.algo}, "dataset": {"kl_budgets": [budget]}}
        records.append(make_record(run.file / run.title, config, rows, {"status": "finished"}, [], run.notes))
    return records


def _points(run: OtherRun, size: int, initial_reward: float | None) -> list[dict[str, float]]:
    place = np.minimum(np.arange(len(run.rows)) // size, len(run.rows) // size - 1)  # the last takes what is left
    made = run.rows.groupby(place).mean().rename(columns={"kl": "eval/kl", "reward": "eval/reward"})
    for half, name in enumerate(_HALVES):
        chosen = slice(half, None, 2) if size > 1 else slice(None)
        made[name] = run.rows["reward"].iloc[chosen].groupby(place[chosen]).mean()
    least, largest = float(made["eval/kl"].min()), float(made["eval/kl"].max())
    if least < -_NOISE * max(largest, 0.0):
        raise AnalysisError(
            f"{run.file}: {run.title} has a KL of {least:.3g}, and none is below 0: its sign is turned, it is noise "
            "(--average takes means), or it is no KL (python -m analysis kl-check)"
        )
    if least < -_AT_START * largest:
        run.notes.append(f"its KL goes down to {least:.2g}, noise of an estimate: below 0 it was taken as 0")
    rows = made.to_dict("records")
    if initial_reward is not None:
        rows.insert(0, {"step": 0.0, "eval/kl": 0.0, **dict.fromkeys(("eval/reward", *_HALVES), initial_reward)})
    elif (first := rows[0]["eval/kl"]) > _AT_START * largest:
        run.notes.append(
            f"its gains are counted from its first point, at {first:.2g} nats, not from the initial policy; "
            "--initial-reward says what that scored"
        )
    return [row | {"iteration": number} for number, row in enumerate(rows)]
