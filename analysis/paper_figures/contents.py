"""Runs -> what a figure draws: a row per model, a line per setting, and all that has to be said beside it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compared import ComparedRun, ExcludedRun, SettingSummary
from analysis.labels import label_values
from analysis.load import RunRecord, SweepFolderError, label_runs, load_folders
from analysis.matched import MatchedSettings, matched_settings
from analysis.notes import skipped_notes
from analysis.paper_figures.table import CONTROLLERS, PaperFigure
from analysis.summary import compare

_RUNS_NAMED = 3
_VARIED = {"lambda": "algo.lam", "controller": "algo.kl."}
"""Settings by which lines are meant to differ, as beginnings of dotted keys."""


@dataclass(frozen=True)
class Line:
    """One line of a panel, over its seeds."""

    name: str
    order: tuple[Any, ...]
    """Place in the legend."""
    setting: SettingSummary

    @property
    def runs(self) -> tuple[ComparedRun, ...]:
        return self.setting.runs


@dataclass(frozen=True)
class Row:
    """The panels of one model on one data set."""

    title: str
    lines: tuple[Line, ...]
    mismatch: str = ""
    """Where settings were chosen by KL and their KLs are not alike: by how much."""


@dataclass(frozen=True)
class Contents:
    """What is drawn, and what is said about it, one line each."""

    rows: tuple[Row, ...]
    over: str
    """`samples`, or `step` where samples do not grow."""
    chosen: tuple[str, ...]
    """How settings were chosen."""
    gaps: tuple[str, ...]
    """What the figure of the paper shows and these runs do not."""
    left_out: tuple[str, ...]


def gather(
    figure: PaperFigure, folders: Sequence[Path], target_kl: float | None = None, all_settings: bool = False
) -> Contents:
    """What `figure` shows of the runs of all folders together.

    Args:
        target_kl: nats; None: where the settings lie closest together.

    Raises:
        SweepFolderError: a folder holds no runs, or no run that the figure shows.
    """
    loaded = [record for _, records in load_folders(folders) for record in records if record.stage == figure.stage]
    # A figure shows one stage: nothing is told apart by it.
    loaded = [dataclasses.replace(one, algo=str(one.setting("algo.name", ""))) for one in loaded]
    records, left_out = _once(loaded, lambda record: record.id, "the same run")
    records, others = _of_figure(figure, records)
    left_out += others
    rows: list[Row] = []
    chosen: list[str] = []
    excluded: list[ExcludedRun] = []
    groups = _by_model(figure, records)
    for title, members in groups.items():
        members, twice = _once(label_runs(members), _setting_and_seed, "the same algorithm, settings and seed")
        left_out += twice
        comparison = compare(members)
        excluded += comparison.excluded
        settings, matched = _choose(figure, comparison.settings, target_kl, all_settings)
        if settings:
            rows.append(Row(title, _lines(figure, settings), matched.mismatch if matched else ""))
            chosen += [f"{title}: {matched.text}" if len(groups) > 1 else matched.text] if matched else []
    left_out += _reasons(excluded)
    if not rows:
        stage = "" if figure.stage == "online" else f"{figure.stage} "
        because = f" ({left_out[-1]})" if left_out else ""
        needs = f"figure {figure.number} needs finished {stage}runs of {' or '.join(figure.algos)}"
        raise SweepFolderError(f"{', '.join(map(str, folders))}: {needs}; there is none{because}")
    over = _axis([run for row in rows for line in row.lines for run in line.runs])
    left_out += [note for row in rows for line in row.lines for note in _line_notes(line, over)]
    return Contents(tuple(rows), over, tuple(chosen), tuple(_gaps(figure, rows)), tuple(left_out))


def controller_name(controller: str) -> str:
    return CONTROLLERS.get(controller, controller)


def _once(
    records: Sequence[RunRecord], key: Callable[[RunRecord], Hashable], same: str
) -> tuple[list[RunRecord], list[str]]:
    """The first usable record of each key, in the order of `records`, and a note for each of the others.

    A key of None is nobody else's.
    """
    kept: dict[Hashable, RunRecord] = {}
    notes: list[str] = []
    for record in sorted(records, key=lambda record: record.reason is not None):  # stable: usable ones first
        its_key = key(record)
        first = kept.setdefault(id(record) if its_key is None else its_key, record)
        if first is not record:
            notes.append(f"left out: {_place(record)}: {same} as {_place(first)}")
    chosen = {id(record) for record in kept.values()}
    return [record for record in records if id(record) in chosen], notes


def _place(record: RunRecord) -> str:
    """The run with its sweep's folder: ids of several sweeps may be the same."""
    return f"{record.folder.parent.name}/{record.id}"


def _of_figure(figure: PaperFigure, records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """The runs of the figure's algorithms, on its data set where there are any; and a note on the others."""
    notes = [f"left out: {_place(r)}: {r.reason or 'config.yaml lacks algo.name'}" for r in records if not r.algo]
    others = sorted({record.algo for record in records if record.algo} - set(figure.algos))
    if others:
        notes.append(f"left out: {', '.join(others)}: figure {figure.number} does not show it")
    kept = [record for record in records if record.algo in figure.algos]
    if figure.dataset is None:
        return kept, notes
    right = [record for record in kept if figure.dataset.matches(_name(record, "dataset"))]
    elsewhere = sorted({_name(record, "dataset") for record in kept} - {_name(record, "dataset") for record in right})
    if not right or not elsewhere:
        return kept, notes
    notes.append(f"left out: runs on {', '.join(elsewhere)}: figure {figure.number} shows {figure.dataset.name}")
    return right, notes


def _by_model(figure: PaperFigure, records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """{title of a row: its runs}: the paper's models in its order, then the others by name."""

    def order(record: RunRecord) -> tuple[int, str, str]:
        model = _name(record, "model")
        places = [place for place, expected in enumerate(figure.models) if expected.matches(model)]
        return min(places, default=len(figure.models)), model, _name(record, "dataset")

    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=order):
        groups.setdefault(f"{_name(record, 'model')} on {_name(record, 'dataset')}", []).append(record)
    return groups


def _name(record: RunRecord, group: str) -> str:
    return str(record.setting(f"{group}.name", f"unknown {group}"))


def _setting_and_seed(record: RunRecord) -> tuple[Any, ...] | None:
    return None if record.seed is None else (record.algo, record.label, *record.replicate)


def _choose(
    figure: PaperFigure, settings: list[SettingSummary], target_kl: float | None, all_settings: bool
) -> tuple[Sequence[SettingSummary], MatchedSettings | None]:
    """One setting per algorithm at matched KL where lines are algorithms, and how that was done."""
    if figure.lines != "algorithm" or all_settings or not settings:
        return settings, None
    several = len(settings) > len({setting.algo for setting in settings})
    if not (several or figure.chosen_at_equal_kl or target_kl is not None):
        return settings, None
    matched = matched_settings(settings, target_kl)
    return matched.settings, matched


def _lines(figure: PaperFigure, settings: Sequence[SettingSummary]) -> tuple[Line, ...]:
    """A line per setting, in the order of the legend; no two have the same name."""
    named = [_named(figure, setting) for setting in settings]
    counts = Counter(name for name, _ in named)
    lines = [
        Line(name if counts[name] == 1 else f"{name} ({setting.label})", (*order, setting.label), setting)
        for setting, (name, order) in zip(settings, named, strict=True)
    ]
    return tuple(sorted(lines, key=lambda line: line.order))


def _named(figure: PaperFigure, setting: SettingSummary) -> tuple[str, tuple[Any, ...]]:
    """A line's name and its place in the legend."""
    record = setting.runs[0].record
    if figure.lines == "lambda":
        lam = _number(record, "algo.lam")
        return f"\N{GREEK SMALL LETTER LAMDA} = {lam:g}", (lam,)
    if figure.lines == "controller":
        controller = str(record.setting("algo.kl.controller", "none"))
        start, target = (_number(record, f"algo.kl.{key}") for key in ("init_coef", "target"))
        numbers = {"fixed": f" {start:g}", "adaptive": f" (from {start:g}, target {target:g} nats)"}
        place = [*CONTROLLERS, controller].index(controller)
        return controller_name(controller) + numbers.get(controller, ""), (place, start, target)
    return setting.algo.upper(), (figure.algos.index(setting.algo),)


def _number(record: RunRecord, key: str) -> float:
    """NaN where the run has no such setting."""
    value = record.setting(key, math.nan)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SweepFolderError(f"{record.folder}: {key}={value} is not a number; take the run out to draw the others")
    return float(value)


def _reasons(excluded: Sequence[ExcludedRun]) -> list[str]:
    """One note per algorithm and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in excluded:
        groups.setdefault((item.record.algo, item.reason), []).append(_place(item.record))
    return [
        f"left out: {', '.join(names[:_RUNS_NAMED])}"
        + (f" and {len(names) - _RUNS_NAMED} more" if len(names) > _RUNS_NAMED else "")
        + f": {reason}"
        for (_, reason), names in groups.items()
    ]


def _axis(runs: Sequence[ComparedRun]) -> str:
    samples = [run.evaluations.samples for run in runs]
    grows = all(np.isfinite(one).sum() > 1 and np.ptp(one[np.isfinite(one)]) > 0.0 for one in samples)
    over = "samples" if grows else "step"
    for run in runs:
        if not np.isfinite(getattr(run.evaluations, over)).any():
            raise SweepFolderError(f"{_place(run.record)}: metrics.jsonl has no {over} to draw its evaluations over")
    return over


def _line_notes(line: Line, over: str) -> list[str]:
    """Runs that end before the others of their line, and evaluations that have no number."""
    notes = []
    ends = {_place(run.record): float(np.nanmax(getattr(run.evaluations, over))) for run in line.runs}
    longest = max(ends.values())
    for name, end in ends.items():
        if end < longest:
            notes.append(f"{line.name}: {name} ends at {end:,.0f} of {longest:,.0f}; from there on it is not counted")
    for run in line.runs:
        notes += [f"note: {_place(run.record)} is drawn, but {note}" for note in skipped_notes(run)]
        notes += [f"{_place(run.record)}: {note}" for note in run.record.notes]
    return notes


def _gaps(figure: PaperFigure, rows: Sequence[Row]) -> list[str]:
    """What the figure of the paper shows and the runs at hand do not, one line each."""
    shows = f"figure {figure.number} shows"
    gaps = []
    records = [row.lines[0].runs[0].record for row in rows]
    datasets = sorted({str(record.setting("dataset.name", "")) for record in records})
    if figure.dataset is not None and not any(figure.dataset.matches(name) for name in datasets):
        gaps.append(f"{shows} the data set {figure.dataset.name}; these runs are on {', '.join(datasets)}")
    models = sorted({str(record.setting("model.name", "")) for record in records})
    missing = [model.name for model in figure.models if not any(model.matches(name) for name in models)]
    if missing:
        gaps.append(f"{shows} {' and '.join(missing)}; the model of these runs is {', '.join(models)}")
    for algo in figure.algos:
        without = [row.title for row in rows if all(line.setting.algo != algo for line in row.lines)]
        if len(without) == len(rows):
            gaps.append(f"{shows} {algo}; the folder has no finished run of it")
        elif without:
            gaps.append(f"{shows} {algo}; there is no finished run of it for {', '.join(without)}")
    if figure.lines in _VARIED:
        for row in rows:
            gaps += _line_gaps(figure, [line.runs[0].record for line in row.lines], shows)
    return gaps


def _line_gaps(figure: PaperFigure, records: Sequence[RunRecord], shows: str) -> list[str]:
    """Where what should be varied is not, or is not alone."""
    gaps = []
    if figure.lines == "lambda":
        values = sorted({record.setting("algo.lam", 0.0) for record in records})
        if len(values) < 2:
            gaps.append(f"{shows} several lambdas; the runs of apa have {values[0]:g} alone")
    else:
        there = {str(record.setting("algo.kl.controller", "")) for record in records}
        gaps += [
            f"{shows} ppo with {name}; no finished run has algo.kl.controller={controller}"
            for controller, name in CONTROLLERS.items()
            if controller not in there
        ]
    also = [key for key in label_values([one.config for one in records]) if not key.startswith(_VARIED[figure.lines])]
    if also:
        gaps.append(f"the lines do not differ in {figure.lines} alone, but in {', '.join(also)} too")
    return gaps
