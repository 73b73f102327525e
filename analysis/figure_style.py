"""What every figure on paper shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.looks import Look

INK = "#20262E"
_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "axes.titlelocation": "left"},
    **{"text.parse_math": False},  # a run's text may hold dollars
    **{"font.size": 10.0, "legend.frameon": False, "svg.hashsalt": "analysis", "figure.constrained_layout.use": True},
}
LEGEND_LINE = 0.22
"""Inches."""
LETTERS_PER_INCH = 11


SAMPLE_LETTERS = 8
"""Of a legend on top of a figure: what its line sample takes."""


def new_figure(width: float, height: float) -> Figure:
    """Inches; on the Agg canvas: no window system, no global state. To be drawn on within `style()`."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def figure_with_legend(width: float, height: float, names: Sequence[str]) -> Figure:
    """Inches; the legend's lines come on top of `height`, so that many names do not eat the axes."""
    return new_figure(width, height + LEGEND_LINE * -(-len(names) // legend_columns(width, names, SAMPLE_LETTERS)))


def draw_legend(figure: Figure, names: Sequence[str], looks: Sequence[Look]) -> None:
    """On top, where `figure_with_legend` made room."""
    columns = legend_columns(figure.get_figwidth(), names, SAMPLE_LETTERS)
    handles = [line_sample(look, markersize=4) for look in looks]
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=3.5)


def style() -> Any:
    """A context in which figures are made, drawn and saved."""
    return matplotlib.rc_context(_STYLE)


def legend_columns(width: float, names: Sequence[str], sample: int) -> int:
    """How many names fit beside one another into `width` inches, where a line sample takes as much as `sample` letters;
    a name may have several lines."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    return max(1, min(len(names), int(width * LETTERS_PER_INCH / (longest + sample))))


def line_sample(look: Look, markersize: float) -> Line2D:
    """A line of a legend."""
    return Line2D(
        [], [], color=look.colour, linestyle=(0, look.dash), marker=look.marker, markersize=markersize, linewidth=2.0
    )
