"""Runs -> what a figure draws: a row per model, a line per setting, and all that has to be said beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.load import RunRecord, SweepFolderError, label_runs
from analysis.matched import MatchedSettings, matched_settings
from analysis.paper_figures.folders import once, place, read_folders
from analysis.paper_figures.gaps import line_gaps, missing_algos, missing_inputs
from analysis.paper_figures.lines import Line, lines_of
from analysis.paper_figures.table import PaperFigure
from analysis.summary import ComparedRun, ExcludedRun, SettingSummary, compare, skipped_notes

_NAMED = 3
"""Runs that are named where several are left out for the same reason."""


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


@dataclass(frozen=True)
class Choice:
    """What the user asked for."""

    target_kl: float | None = None
    """Nats; None: where the settings lie closest together."""
    all_settings: bool = False


def gather(figure: PaperFigure, folders: Sequence[Path], choice: Choice) -> Contents:
    """What `figure` shows of the runs of all folders together.

    Raises:
        SweepFolderError: a folder holds no runs, or no run that the figure shows.
    """
    records, left_out = read_folders(folders, figure.stage)
    records, others = _of_figure(figure, records)
    left_out += others
    rows: list[Row] = []
    chosen: list[str] = []
    excluded: list[ExcludedRun] = []
    groups = _by_model(figure, records)
    for title, members in groups.items():
        members, twice = once(label_runs(members), _setting_and_seed, "the same algorithm, settings and seed")
        left_out += twice
        comparison = compare(members)
        excluded += comparison.excluded
        settings, matched = _choose(figure, comparison.settings, choice)
        if settings:
            rows.append(Row(title, lines_of(figure, settings), matched.mismatch if matched else ""))
            chosen += [f"{title}: {matched.text}" if len(groups) > 1 else matched.text] if matched else []
    left_out += _reasons(excluded)
    if not rows:
        raise SweepFolderError(_nothing(figure, folders, left_out))
    runs = [run for row in rows for line in row.lines for run in line.runs]
    over = _axis(runs)
    for run in runs:
        if not np.isfinite(getattr(run.evaluations, over)).any():
            raise SweepFolderError(f"{place(run.record)}: metrics.jsonl has no {over} to draw its evaluations over")
    gaps = missing_inputs(figure, [row.lines[0].runs[0].record for row in rows])
    gaps += missing_algos(figure, {row.title: row.lines for row in rows})
    gaps += [gap for row in rows for gap in line_gaps(figure, row.lines)]
    left_out += [note for row in rows for line in row.lines for note in _cut_short(line, over)]
    return Contents(tuple(rows), over, tuple(chosen), tuple(gaps), tuple(left_out))


def _of_figure(figure: PaperFigure, records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """The runs of the figure's algorithms, on its data set where there are any; and a note on the others."""
    notes = [f"left out: {place(r)}: {r.reason or 'config.yaml lacks algo.name'}" for r in records if not r.algo]
    known = [record for record in records if record.algo]
    others = sorted({record.algo for record in known} - set(figure.algos))
    if others:
        notes.append(f"left out: {', '.join(others)}: figure {figure.number} does not show it")
    kept = [record for record in known if record.algo in figure.algos]
    if figure.dataset is not None:
        right = [record for record in kept if figure.dataset.matches(_name(record, "dataset"))]
        elsewhere = sorted(
            {_name(record, "dataset") for record in kept} - {_name(record, "dataset") for record in right}
        )
        if right and elsewhere:
            notes.append(
                f"left out: runs on {', '.join(elsewhere)}: figure {figure.number} shows {figure.dataset.name}"
            )
            kept = right
    return kept, notes


def _by_model(figure: PaperFigure, records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """{title of a row: its runs}: the paper's models in its order, then the others by name."""
    groups: dict[str, list[RunRecord]] = {}

    def order(record: RunRecord) -> tuple[int, str, str]:
        model = _name(record, "model")
        places = [place for place, expected in enumerate(figure.models) if expected.matches(model)]
        return min(places, default=len(figure.models)), model, _name(record, "dataset")

    for record in sorted(records, key=order):
        groups.setdefault(f"{_name(record, 'model')} on {_name(record, 'dataset')}", []).append(record)
    return groups


def _name(record: RunRecord, group: str) -> str:
    return str(record.setting(f"{group}.name", f"unknown {group}"))


def _setting_and_seed(record: RunRecord) -> tuple[str, str, int] | None:
    return None if record.seed is None else (record.algo, record.label, record.seed)


def _choose(
    figure: PaperFigure, settings: list[SettingSummary], choice: Choice
) -> tuple[Sequence[SettingSummary], MatchedSettings | None]:
    """One setting per algorithm at matched KL where lines are algorithms, and how that was done."""
    if figure.lines != "algorithm" or choice.all_settings or not settings:
        return settings, None
    several = len(settings) > len({setting.algo for setting in settings})
    if not (several or figure.chosen_at_equal_kl or choice.target_kl is not None):
        return settings, None
    matched = matched_settings(settings, choice.target_kl)
    return matched.settings, matched


def _reasons(excluded: Sequence[ExcludedRun]) -> list[str]:
    """One note per algorithm and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in excluded:
        groups.setdefault((item.record.algo, item.reason), []).append(place(item.record))
    notes = []
    for (_, reason), names in groups.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        notes.append(f"left out: {', '.join(names[:_NAMED])}{more}: {reason}")
    return notes


def _nothing(figure: PaperFigure, folders: Sequence[Path], left_out: Sequence[str]) -> str:
    places = ", ".join(map(str, folders))
    stage = "" if figure.stage == "online" else f"{figure.stage} "
    because = f" ({left_out[-1]})" if left_out else ""
    needs = f"figure {figure.number} needs finished {stage}runs of {' or '.join(figure.algos)}"
    return f"{places}: {needs}; there is none{because}"


def _axis(runs: Sequence[ComparedRun]) -> str:
    samples = [run.evaluations.samples for run in runs]
    grows = all(np.isfinite(one).sum() > 1 and np.ptp(one[np.isfinite(one)]) > 0.0 for one in samples)
    return "samples" if grows else "step"


def _cut_short(line: Line, over: str) -> list[str]:
    """Runs that end before the others of their line, and evaluations that have no number."""
    notes = []
    ends = {place(run.record): float(np.nanmax(getattr(run.evaluations, over))) for run in line.runs}
    longest = max(ends.values())
    for name, end in ends.items():
        if end < longest:
            notes.append(f"{line.name}: {name} ends at {end:,.0f} of {longest:,.0f}; from there on it is not counted")
    for run in line.runs:
        notes += [f"note: {place(run.record)} is drawn, but {note}" for note in skipped_notes(run)]
        notes += [f"{place(run.record)}: {note}" for note in run.record.notes]
    return notes
