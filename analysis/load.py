"""Run folders -> `RunRecord`s, one per run.

Nothing is dropped silently: a run that cannot be compared keeps its place in the list with `reason` saying why, and
what was tolerated in a run that can is said in its `notes`. This module is quick to import.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.labels import REPLICATES, label_configs
from analysis.parallel import mapped
from analysis.run_files import Metrics, NotPlainError, json_lines, plain, read_yaml, to_metrics
from rlhf.errors import printable
from rlhf.runs.state import CONFIG, LOCK, METRICS, SAMPLES, SUMMARY

# A folder with any of these is a run's; others in a sweep folder (logs, caches) are not looked at.
_RUN_FILES = (CONFIG, METRICS, SUMMARY, LOCK)

RL_STAGES = ("online", "offline")
"""The stages that train a policy with an algorithm: what comparisons are made of."""

PROMPTS_SHOWN = 3

_MISSING = object()

_TEXTS = ("git_commit", "hostname", "cpu")


class SweepFolderError(AnalysisError):
    """The folder given is not one that holds runs; the message is one line that says what to do."""


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it.

    `status` is that of summary.json, `unfinished` where there is none and `corrupt` where it cannot be read. `label`
    names the settings in which this run differs from others of its algorithm in the same sweep ("" where it does not).
    `reason` is None for a run that can be compared.
    """

    id: str
    folder: Path
    algo: str  # algo.name, with " offline" behind it in a sweep of both RL stages; "" for stages without one
    stage: str
    seed: int | None
    sweep: str
    status: str
    label: str
    config: dict[str, Any]
    metrics: Metrics  # the rows of metrics.jsonl, in order
    summary: dict[str, Any]
    reason: str | None
    notes: tuple[str, ...]

    def column(self, name: str) -> np.ndarray:
        """(rows,) float64: metric `name` of each row, NaN where the row lacks it or holds no number."""
        found = self.metrics.columns.get(name)
        return np.full(len(self.metrics), np.nan) if found is None else found

    @functools.cached_property
    def replicate(self) -> tuple[int | None, ...]:
        """Its sft.seed, reward_model.seed and seed, None where it has none: which repetition of its setting it is."""
        drawn = (self.setting(path) for path in REPLICATES[:-1])
        return (*(seed if isinstance(seed, int) else None for seed in drawn), self.seed)

    def setting(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path of the config, such as `dataset.kl_budgets`."""
        return _look_up(self.config, path, default)


@dataclass(frozen=True)
class SamplePair:
    """One evaluation prompt with its response at the first evaluation and at the last (rows of samples.jsonl)."""

    prompt: str
    before: dict[str, Any]
    after: dict[str, Any]


def load_sweep(sweep_folder: Path) -> list[RunRecord]:
    """Every run of a sweep folder, by id, labelled.

    Raises:
        SweepFolderError: there is no such folder, or it holds no runs.
    """
    sweep_folder = Path(sweep_folder)
    if not sweep_folder.is_dir():
        raise SweepFolderError(f"{sweep_folder}: no such folder; give a sweep's folder, such as runs/default")
    folders = [folder for folder in sorted(sweep_folder.iterdir()) if folder.is_dir() and is_run(folder)]
    if not folders and is_run(sweep_folder):
        raise SweepFolderError(f"{sweep_folder}: this is a single run; give the sweep's folder, {sweep_folder.parent}")
    if not folders:
        raise SweepFolderError(f"{sweep_folder}: holds no run folders; give a sweep's folder, such as runs/default")
    return label_runs(mapped(load_run, folders))


def load_folders(folders: Sequence[Path]) -> list[tuple[Path, list[RunRecord]]]:
    """Folders of sweeps or of single runs, each once and resolved, with their runs: of a run's folder itself alone,
    unlabelled.

    Raises:
        SweepFolderError: there is no such folder, or it holds no runs.
    """
    distinct = dict.fromkeys(Path(folder).resolve() for folder in folders)
    return [(folder, [load_run(folder)] if is_run(folder) else load_sweep(folder)) for folder in distinct]


def load_run(folder: Path) -> RunRecord:
    """One run folder, unlabelled. Damage becomes `reason`; no exception leaves this function for a bad file."""
    problems: list[str] = []
    notes: list[str] = []
    config = _read_config(folder / CONFIG, problems)
    summary = _read_summary(folder / SUMMARY, problems)
    rows = _read_metrics(folder / METRICS, problems, notes)
    return make_record(folder, config, rows, summary, problems, notes)


def make_record(
    folder: Path,
    config: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    problems: Sequence[str],
    notes: Sequence[str],
) -> RunRecord:
    """A run from its parts, wherever they were kept.

    Args:
        rows: one dict per logged step, in order.
        problems: what keeps the run from being compared, besides what its parts tell.
    """
    problems = list(problems)
    summary = _plain_or_problem("summary.json", summary, problems, {"status": "corrupt"})
    problems += [
        f"summary.json: {key} is not text" for key in _TEXTS if not isinstance(summary.get(key, ""), str | None)
    ]
    summary = {key: None if key in _TEXTS and not isinstance(value, str) else value for key, value in summary.items()}
    config = _plain_or_problem("config.yaml", config, problems, {})
    metrics = _metrics_or_problem(rows, problems)
    status = str(summary.get("status", "unfinished"))
    stage = str(_look_up(config, "stage.name", "online"))
    algo = str(_look_up(config, "algo.name", "")) if stage in RL_STAGES else ""
    seed = _look_up(config, "seed", None)
    if config and stage in RL_STAGES and (not algo or not isinstance(seed, int)):
        problems.append("config.yaml lacks algo.name or seed")
    if status not in ("finished", "corrupt"):
        problems.insert(0, _why_not_finished(status, summary))  # explains the rest, such as a missing file
    return RunRecord(
        id=printable(folder.name),
        folder=folder,
        algo=algo,
        stage=stage,
        seed=seed if isinstance(seed, int) else None,
        sweep=str(_look_up(config, "sweep_name", printable(folder.parent.name))),
        status=status,
        label="",
        config=config,
        metrics=metrics,
        summary=summary,
        reason=problems[0] if problems else None,
        notes=tuple(notes),
    )


def label_runs(runs: list[RunRecord]) -> list[RunRecord]:
    """The same runs with `label` naming what differs between those of one algorithm; where some learn online and some
    offline, an algorithm is two."""
    if {run.stage for run in runs} >= {*RL_STAGES}:
        runs = [dataclasses.replace(run, algo=_with_stage(run)) for run in runs]
    labels = [""] * len(runs)
    for algo in {run.algo for run in runs if run.stage in RL_STAGES}:
        places = [i for i, run in enumerate(runs) if run.stage in RL_STAGES and run.algo == algo and run.config]
        for place, text in zip(places, label_configs([runs[i].config for i in places]), strict=True):
            labels[place] = text
    return [dataclasses.replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def _with_stage(run: RunRecord) -> str:
    """`awr offline`; a run that has been told apart, or has no algorithm to tell apart, stays as it is."""
    apart = run.stage != "offline" or not run.algo or run.algo.endswith(" offline")
    return run.algo if apart else f"{run.algo} offline"


def sample_pairs(run: RunRecord) -> list[SamplePair]:
    """The first prompts of samples.jsonl that the first and the last evaluation hold, in the file's order: not chosen
    by how they look. What cannot be read is left out, since samples only illustrate."""
    path = run.folder / SAMPLES
    try:
        rows = [_sample(row) for row in json_lines(path)[0]] if path.is_file() else []
    except OSError:
        return []
    usable = [row for row in rows if isinstance(row.get("prompt"), str) and "step" in row]
    if not usable or usable[0]["step"] == usable[-1]["step"]:
        return []
    before, after = (
        {row["prompt"]: row for row in reversed(usable) if row["step"] == step}
        for step in (usable[0]["step"], usable[-1]["step"])
    )
    shared = [prompt for prompt in reversed(before) if prompt in after]
    return [SamplePair(prompt, before[prompt], after[prompt]) for prompt in shared[:PROMPTS_SHOWN]]


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return plain(row)
    except NotPlainError:
        return {}


def is_run(folder: Path) -> bool:
    """Whether it has a run's files, rather than runs' folders."""
    return any((folder / name).is_file() for name in _RUN_FILES)


def _look_up(config: dict[str, Any], path: str, default: Any) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
    return default if value is _MISSING or value is None else value


def _why_not_finished(status: str, summary: dict[str, Any]) -> str:
    if status == "unfinished":
        return "no summary.json: still running, or killed; type the run's command again to resume it"
    error = str(summary.get("error") or "").strip()
    last_line = error.splitlines()[-1] if error else ""  # of a traceback, the line that says what happened
    return f"{status}: {last_line}" if last_line else status


def _plain_or_problem(
    name: str, values: dict[str, Any], problems: list[str], otherwise: dict[str, Any]
) -> dict[str, Any]:
    try:
        return plain(values)
    except NotPlainError as error:
        problems.append(f"{name} {error}")
        return otherwise


def _metrics_or_problem(rows: Sequence[dict[str, Any]], problems: list[str]) -> Metrics:
    try:
        return to_metrics(rows)
    except OverflowError:
        problems.append("metrics.jsonl holds a whole number that is too large")
        return to_metrics([])


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = read_yaml(path)
    except FileNotFoundError:
        problems.append("config.yaml is missing")
        return {}
    except OSError as error:
        problems.append(f"config.yaml cannot be read: {error.strerror}")
        return {}
    except NotPlainError as error:
        problems.append(f"config.yaml {error}")
        return {}
    if not isinstance(config, dict):
        problems.append("config.yaml is empty")
        return {}
    return config


def _read_summary(path: Path, problems: list[str]) -> dict[str, Any]:
    """{} where there is none: the run counts as unfinished."""
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        problems.append("summary.json is not readable JSON")
        return {"status": "corrupt"}
    return summary


def _read_metrics(path: Path, problems: list[str], notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        problems.append("metrics.jsonl is missing")
        return []
    try:
        rows, bad_lines = json_lines(path)
    except OSError as error:
        problems.append(f"metrics.jsonl cannot be read: {error.strerror}")
        return []
    if not rows:
        problems.append("metrics.jsonl is empty")
    if bad_lines and bad_lines[-1] == len(rows) + len(bad_lines):
        # A process killed while it wrote leaves half a line at the end; the rows before it are whole.
        notes.append("the last line of metrics.jsonl is cut off and was left out")
        bad_lines.pop()
    if bad_lines:
        problems.append(f"line {bad_lines[0]} of metrics.jsonl is not a JSON object")
    return rows
