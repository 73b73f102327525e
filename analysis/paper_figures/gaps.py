"""What the figure of the paper shows and the runs at hand do not, one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.labels import label_values
from analysis.load import RunRecord
from analysis.paper_figures.lines import Line, controller_name
from analysis.paper_figures.table import PaperFigure

_VARIED = {"lambda": ("algo.lam",), "controller": ("algo.kl.",)}
"""Settings by which lines are meant to differ, as beginnings of dotted keys."""


def missing_inputs(figure: PaperFigure, records: Sequence[RunRecord]) -> list[str]:
    """Another data set or other models than the paper's; one record per row."""
    gaps = []
    datasets = sorted({str(record.setting("dataset.name", "")) for record in records})
    if figure.dataset is not None and not any(figure.dataset.matches(name) for name in datasets):
        gaps.append(f"{_shows(figure)} the data set {figure.dataset.name}; these runs are on {', '.join(datasets)}")
    models = sorted({str(record.setting("model.name", "")) for record in records})
    missing = [model.name for model in figure.models if not any(model.matches(name) for name in models)]
    if missing:
        gaps.append(f"{_shows(figure)} {' and '.join(missing)}; the model of these runs is {', '.join(models)}")
    return gaps


def missing_algos(figure: PaperFigure, rows: Mapping[str, Sequence[Line]]) -> list[str]:
    """Algorithms without a finished run; by row where only some rows have none."""
    gaps = []
    for algo in figure.algos:
        without = [title for title, lines in rows.items() if all(line.algo != algo for line in lines)]
        if len(without) == len(rows):
            gaps.append(f"{_shows(figure)} {algo}; the folder has no finished run of it")
        elif without:
            gaps.append(f"{_shows(figure)} {algo}; there is no finished run of it for {', '.join(without)}")
    return gaps


def line_gaps(figure: PaperFigure, lines: Sequence[Line]) -> list[str]:
    """Where what should be varied is not, or is not alone."""
    if figure.lines not in _VARIED:
        return []
    configs = [line.runs[0].record.config for line in lines]
    gaps = []
    if figure.lines == "lambda":
        values = sorted({line.runs[0].record.setting("algo.lam", 0.0) for line in lines})
        if len(values) < 2:
            gaps.append(f"{_shows(figure)} several lambdas; the runs of apa have {values[0]:g} alone")
    else:
        there = {str(line.runs[0].record.setting("algo.kl.controller", "")) for line in lines}
        for controller in ("none", "fixed", "adaptive"):
            if controller not in there:
                option = f"algo.kl.controller={controller}"
                gaps.append(f"{_shows(figure)} ppo with {controller_name(controller)}; no finished run has {option}")
    also = [key for key in label_values(configs) if not key.startswith(_VARIED[figure.lines])]
    if also:
        gaps.append(f"the lines do not differ in {figure.lines} alone, but in {', '.join(also)} too")
    return gaps


def _shows(figure: PaperFigure) -> str:
    return f"figure {figure.number} shows"
