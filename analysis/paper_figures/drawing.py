"""The form of the paper: reward at the left, KL at the right, a row per model; mean over seeds in a band from their
minimum to their maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.charts import UNITS, band_rows, quantity_axis
from analysis.drawing import PANEL_WIDTH, bands, joined, layered, line_with_marks, save
from analysis.looks import Look, algorithm_looks, look, looks
from analysis.paper_figures.contents import Contents, Row
from analysis.paper_figures.table import PaperFigure

_ROW_HEIGHT = 210
_BLUES = ("#8FBFE0", "#0B3C66")
"""Ends of the one hue of lines that a number tells apart."""
LOG_KL_ABOVE = 30.0
"""Highest KL of one line over that of another, above which the axis is logarithmic."""


def save_paper_figure(figure: PaperFigure, contents: Contents, gold: bool, folder: Path) -> list[Path]:
    """figure_N.png and .svg: a row of panels per model, one legend for all of them; `gold` adds a panel."""
    quantities = ["reward", "kl", *(["gold_reward"] if gold else [])]
    by_line = line_looks(figure, contents.rows)
    parts = [
        alt.hconcat(
            *(_panel(figure, row, by_line, quantity, contents.over) for quantity in quantities), title=row_title(row)
        )
        for row in contents.rows
    ]
    return save(parts, folder, f"figure_{figure.number}", title(figure), mismatches(contents.rows), by_line)


def title(figure: PaperFigure) -> str:
    """Without the paper's data set and model: the line `Here` names those that are drawn."""
    return f"In the form of figure {figure.number}: {figure.shows}"


def row_title(row: Row) -> str:
    counts = sorted({len(line.runs) for line in row.lines})
    few = f"{counts[0]} to " if len(counts) > 1 else ""
    return f"Here: {row.title}, {few}{counts[-1]} seed{'s' if counts[-1] > 1 else ''}"


def mismatches(rows: Sequence[Row]) -> str:
    """A line for each row whose settings were to be chosen at similar KL and are not: a picture goes about without
    what the terminal said."""
    found = [(f", {row.title}," if len(rows) > 1 else "", row.mismatch) for row in rows if row.mismatch]
    return "\n".join(f"Here{where} KL at the last evaluation is {text}" for where, text in found)


def line_looks(figure: PaperFigure, rows: Sequence[Row]) -> dict[str, Look]:
    """{name of a line: its look, the same in every row}, in the order of the legend."""
    lines = {line.name: line for row in rows for line in row.lines}
    ordered = sorted(lines.values(), key=lambda line: line.order)
    algos = [line.setting.algo for line in ordered]
    if figure.lines == "lambda":
        made = _shades(len(ordered))
    elif figure.lines == "algorithm" and len(set(algos)) == len(algos):
        made = algorithm_looks(algos)  # the same in every figure
    else:
        made = looks([line.setting for line in ordered])
    return {line.name: each for line, each in zip(ordered, made, strict=True)}


def _shades(count: int) -> list[Look]:
    """One hue from light to dark."""
    light, dark = (np.array([int(end[place : place + 2], 16) for place in (1, 3, 5)]) for end in _BLUES)
    mixed = [light + (dark - light) * share for share in np.linspace(0.0, 1.0, count)]
    colours = ["#" + "".join(f"{round(part):02X}" for part in parts) for parts in mixed]
    return [Look(colour, *_dash_and_shape(place)) for place, colour in enumerate(colours)]


def _dash_and_shape(place: int) -> tuple[tuple[float, ...], str]:
    made = look(0, place, place)
    return made.dash, made.shape


def panel_rows(row: Row, quantity: str, over: str) -> pd.DataFrame:
    """Columns: line, x, mean, low, high, mark."""
    return joined([band_rows(line.name, line.runs, quantity, over, place) for place, line in enumerate(row.lines)])


def _panel(figure: PaperFigure, row: Row, by_line: dict[str, Look], quantity: str, over: str) -> alt.LayerChart:
    data = panel_rows(row, quantity, over)
    labels = {"step": "training steps (optimizer updates)", "samples": "responses generated"}
    label = "responses trained on" if figure.stage == "offline" and over == "samples" else labels[over]
    x = alt.X("x:Q", title=label, scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=5, format=",.0f"))
    y: Any = quantity_axis(quantity)
    threshold = log_threshold(data) if figure.log_kl and quantity == "kl" else None
    if threshold is not None:
        # Linear below: the initial policy's KL is 0.
        y.scale = alt.Scale(type="symlog", constant=threshold)
        y.title = f"{UNITS['kl']}, logarithmic from {threshold:g} on"
        top = float(data["mean"].to_numpy().max())
        decades = np.arange(np.log10(threshold), np.log10(top) + 0.001)
        y.axis = alt.Axis(values=[0.0, *(10.0**decades).tolist()], format="~r")
    layers: list[Any] = [bands(data, x, y, by_line), *line_with_marks(data, x, y, by_line, [])]
    titles = {"reward": "Reward", "kl": "KL to the initial policy", "gold_reward": "Gold reward"}
    return layered(layers).properties(width=PANEL_WIDTH, height=_ROW_HEIGHT, title=titles[quantity])


def log_threshold(data: pd.DataFrame) -> float | None:
    """A tenth of the lowest line's peak or so, where the lines are far apart."""
    peaks = np.array([rows["mean"].max() for _, rows in data.groupby("line")], dtype=np.float64)
    peaks = peaks[peaks > 0.0]
    if not len(peaks) or peaks.max() <= LOG_KL_ABOVE * peaks.min():
        return None
    return float(10.0 ** np.floor(np.log10(peaks.min() / 2.0)))
