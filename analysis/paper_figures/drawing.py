"""The form of the paper: reward at the left, KL at the right, a row per model; mean over seeds in a band from their
minimum to their maximum. Told apart in grey print and by colour-blind readers: colour, dash pattern and marker.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from analysis.charts_data import Band, evaluations_band
from analysis.figure_style import LEGEND_LINE, LETTERS_PER_INCH, legend_columns, line_sample, new_figure, style
from analysis.looks import DASHES, MARKERS, Look, algorithm_looks, looks
from analysis.paper_figures.contents import Contents, Row
from analysis.paper_figures.lines import Line
from analysis.paper_figures.table import PaperFigure
from analysis.winrate.figure import win_rate_figure
from analysis.winrate.results import PairResult

_PANELS = {
    "reward": "reward, score of the reward model",
    "kl": "KL to the initial policy,\nnats per response",
    "gold_reward": "gold reward",
}
_PANEL_WIDTH, _ROW_HEIGHT = 4.0, 2.9  # inches
_SAMPLE_LETTERS = 11  # of the legend: its line sample takes as much room
_MARKS = 8
"""Markers on a line, about."""
_BEFORE_START = 0.015
"""Room at the left for the marks of the initial policy, as a share of the axis."""
LOG_KL_ABOVE = 30.0
"""Highest KL of one line over that of another, above which the axis is logarithmic."""


def draw(figure: PaperFigure, contents: Contents, gold: bool) -> Figure:
    """A row of panels per model, one legend for all of them; `gold` adds a panel."""
    quantities = ["reward", "kl", *(["gold_reward"] if gold else [])]
    by_line = line_looks(figure, contents.rows)
    width = _PANEL_WIDTH * len(quantities)
    names = [textwrap.fill(name, int(width * LETTERS_PER_INCH) - _SAMPLE_LETTERS) for name in by_line]
    columns = legend_columns(width, names, _SAMPLE_LETTERS)
    lines = max(name.count("\n") + 1 for name in names) * -(-len(names) // columns)
    title = _title_with_mismatch(figure, contents.rows)
    height = _ROW_HEIGHT * len(contents.rows) + 0.4 + LEGEND_LINE * (lines + title.count("\n"))
    with style():
        drawn = new_figure(width, height)
        panels = drawn.subplots(len(contents.rows), len(quantities), squeeze=False)
        for row, row_panels in zip(contents.rows, panels, strict=True):
            row_panels[0].set_title(f"Here: {row.title}, {_seed_count(row.lines)}")
            for axes, quantity in zip(row_panels, quantities, strict=True):
                _draw_panel(axes, row, by_line, quantity, contents.over)
            if figure.log_kl:
                _logarithmic_where_apart(row_panels[1], row.lines, contents.over)
        for axes in panels[-1]:
            axes.set_xlabel(_x_label(figure, contents.over))
        drawn.suptitle(title, x=0.01, ha="left", fontsize="large")
        handles = [line_sample(look, markersize=5) for look in by_line.values()]
        drawn.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=4.5)
        return drawn


def draw_win_rates(figure: PaperFigure, pairs: Sequence[PairResult], judge: str) -> Figure:
    """The win-rate figure in the paper's form."""
    drawn = win_rate_figure(pairs, judge)
    here = f"Here: judged by {judge} on {prompts_text(pairs)}"
    with style():
        drawn.axes[0].set_title(f"{_title(figure)}\n{here}", loc="left", fontsize="medium", pad=10.0)
    return drawn


def prompts_text(pairs: Sequence[PairResult]) -> str:
    """`50 prompts`, or `48 to 50 prompts` where pairs differ."""
    counts = sorted({pair.prompts for pair in pairs})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} prompts"
    return f"{counts[0]} prompt{'s' if counts[0] != 1 else ''}"


def _title(figure: PaperFigure) -> str:
    """Without the paper's data set and model: the line `Here` names those that are drawn."""
    return f"In the form of figure {figure.number}: {figure.shows}"


def _title_with_mismatch(figure: PaperFigure, rows: Sequence[Row]) -> str:
    """With a line for each row whose settings were to be chosen at similar KL and are not: a picture goes about without
    what the terminal said."""
    found = [(f", {row.title}," if len(rows) > 1 else "", row.mismatch) for row in rows if row.mismatch]
    return "\n".join([_title(figure), *(f"Here{where} KL at the last evaluation is {text}" for where, text in found)])


def line_looks(figure: PaperFigure, rows: Sequence[Row]) -> dict[str, Look]:
    """{name of a line: its look, the same in every row}, in the order of the legend."""
    lines = {line.name: line for row in rows for line in row.lines}
    ordered = sorted(lines.values(), key=lambda line: line.order)
    algos = [line.algo for line in ordered]
    if figure.lines == "lambda":
        made = _shades(len(ordered))
    elif figure.lines == "algorithm" and len(set(algos)) == len(algos):
        made = algorithm_looks(algos)  # the same in every figure
    else:
        made = looks([line.setting for line in ordered])
    return {line.name: look for line, look in zip(ordered, made, strict=True)}


def _shades(count: int) -> list[Look]:
    """One hue from light to dark."""
    depths = np.linspace(0.45, 1.0, count) if count > 1 else [0.75]
    return [
        Look(to_hex(shade), DASHES[place % len(DASHES)], *MARKERS[place % len(MARKERS)])
        for place, shade in enumerate(matplotlib.colormaps["Blues"](depths))
    ]


def _seed_count(lines: Sequence[Line]) -> str:
    """`3 seeds`, or `2 to 3 seeds`."""
    counts = sorted({len(line.runs) for line in lines})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return f"{counts[0]} seed{'s' if counts[0] > 1 else ''}"


def _x_label(figure: PaperFigure, over: str) -> str:
    if over == "step":
        return "training steps (optimizer updates)"
    return "responses generated" if figure.stage == "online" else "responses trained on"


def _draw_panel(axes: Axes, row: Row, by_line: Mapping[str, Look], quantity: str, over: str) -> None:
    for line in row.lines:
        found = evaluations_band(line.runs, quantity, over)
        if found is not None:
            _draw_line(axes, found, by_line[line.name], line.name)
    axes.set_ylabel(_PANELS[quantity])
    axes.set_xlim(left=-_BEFORE_START * axes.dataLim.x1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    if quantity == "kl":
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))


def _draw_line(axes: Axes, found: Band, look: Look, name: str) -> None:
    axes.plot(
        found.x,
        found.mean,
        color=look.colour,
        linestyle=(0, look.dash),
        linewidth=2.0,
        marker=look.marker,
        markersize=5,
        markevery=max(1, len(found.x) // _MARKS),
        label=name,
    )
    axes.fill_between(found.x, found.low, found.high, color=look.colour, alpha=0.18, linewidth=0, label=name)


def _logarithmic_where_apart(axes: Axes, lines: Sequence[Line], over: str) -> None:
    """Logarithmic above a tenth of the lowest line's peak or so, linear below: the initial policy's KL is 0."""
    bands = [found for line in lines if (found := evaluations_band(line.runs, "kl", over)) is not None]
    peaks = [peak for found in bands if (peak := float(found.mean.max())) > 0.0]
    if not peaks or max(peaks) <= LOG_KL_ABOVE * min(peaks):
        return
    threshold = 10.0 ** np.floor(np.log10(min(peaks) / 2.0))
    axes.set_yscale("symlog", linthresh=threshold, linscale=0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda kl, _: f"{kl:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(min(0.0, axes.dataLim.y0), 1.4 * axes.dataLim.y1)
    axes.set_ylabel(f"{_PANELS['kl']},\nlogarithmic from {threshold:g} on")
