"""How charts are drawn: specified once, in Vega-Lite by altair, for the page, the files and the figures of the paper.

Rows of a chart's data carry the name of their line in the column `line`. The parameter `chosen` is the name that the
reader picked in the page's legend, "" for none.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from analysis.looks import COLOURS, OTHERS_COLOUR, Look
from rlhf.errors import visible

alt.data_transformers.disable_max_rows()

LINE_WIDTH = 2.0
PANEL_WIDTH, PANEL_HEIGHT = 340, 250
"""Of a panel in a file that has several, pixels; the page's are as wide as there is room."""
_PANELS_OF_A_ROW = 3
_LETTER_WIDTH = 6.5
# More bands on top of each other are mud: from here on they are faint.
_MOST_BANDS = 6
_CHOSEN = alt.param(name="chosen", value="")
_AXIS = {"gridOpacity": 0.12, "domainOpacity": 0.5, "tickOpacity": 0.5, "labelFontSize": 12, "titleFontSize": 12}
_AXIS |= {"titleFontWeight": "normal", "labelOverlap": True, "titlePadding": 8}


@dataclass(frozen=True)
class Panel:
    """One drawing: its heading, what it shows in words for those who do not see it, and the chart without a size."""

    title: str
    description: str
    chart: alt.LayerChart
    height: int = PANEL_HEIGHT
    hover: Sequence[alt.Chart] = ()
    """Layers that only a pointer brings out: the page alone has them."""


@dataclass(frozen=True)
class Figure:
    """Panels under one heading with one legend."""

    id: str
    title: str
    caption: str
    """On the page: how to read them."""
    note: str
    """In a file, below the title: the same in a line or two."""
    looks: Mapping[str, Look]
    """By name of the line, in the order of the legend."""
    panels: Sequence[Panel]

    @property
    def file(self) -> str:
        """Name of its files, without an ending."""
        return {"curves": "reward_kl"}.get(self.id, self.id)


def frame(**columns: Any) -> pd.DataFrame:
    """Columns of equal length, or one value for all, without rows that hold a NaN or an infinity. Numbers have five
    digits: more than a chart shows, at half the bytes."""
    made = pd.DataFrame(columns)
    numbers = list(made.select_dtypes("float").columns)
    made = made.replace([np.inf, -np.inf], np.nan).dropna(subset=numbers)
    for name in numbers:
        made[name] = [float(f"{value:.5g}") for value in made[name]]
    return made


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [one for one in frames if len(one)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def layered(layers: Sequence[alt.Chart | alt.LayerChart]) -> alt.LayerChart:
    """Those that have something to draw."""
    chart: Any = alt.layer(*(one for one in layers if not getattr(one.data, "empty", False)))
    return chart.add_params(_CHOSEN)


def colour(looks: Mapping[str, Look]) -> alt.Color:
    return alt.Color("line:N", scale=_by_line(looks, [look.colour for look in looks.values()]), legend=None)


def shape(looks: Mapping[str, Look]) -> alt.Shape:
    return alt.Shape("line:N", scale=_by_line(looks, [look.shape for look in looks.values()]), legend=None)


def faded(opacity: float) -> Any:
    """`opacity` for the chosen line, and for all where none is chosen. Of fill or stroke: a picture whose marks have an
    `opacity` takes ten times as long to paint."""
    chosen = "chosen === '' || datum.line === chosen"
    return alt.when(chosen).then(alt.value(opacity)).otherwise(alt.value(0.12 * opacity))


def lines(data: pd.DataFrame, x: Any, y: Any, looks: Mapping[str, Look]) -> alt.Chart:
    dashes = [[LINE_WIDTH * part for part in look.dash] or [1, 0] for look in looks.values()]
    dash = alt.StrokeDash("line:N", scale=_by_line(looks, dashes), legend=None)
    mark = alt.Chart(data).mark_line(strokeWidth=LINE_WIDTH)
    return mark.encode(x, y, colour(looks), dash, strokeOpacity=faded(1.0))


def single_lines(data: pd.DataFrame, x: Any, y: Any, looks: Mapping[str, Look]) -> alt.Chart:
    """A thin line for each `run`."""
    mark = alt.Chart(data).mark_line(strokeWidth=0.8)
    return mark.encode(x, y, colour(looks), detail="run:N", strokeOpacity=faded(0.55))


def bands(data: pd.DataFrame, x: Any, y: Any, looks: Mapping[str, Look]) -> alt.Chart:
    """From `low` to `high`, on the axis of `y`."""
    if len(looks) <= _MOST_BANDS:
        opacity: Any = faded(0.16)
    else:
        opacity = alt.when("datum.line === chosen").then(alt.value(0.2)).otherwise(alt.value(0.03))
    low = y.copy()
    low.shorthand = "low:Q"
    return alt.Chart(data).mark_area(opacity=1).encode(x, low, alt.Y2("high"), colour(looks), fillOpacity=opacity)


def grey_lines(data: pd.DataFrame, x: Any, y: Any) -> alt.Chart:
    """The lines without a look of their own."""
    mark = alt.Chart(data).mark_line(strokeWidth=1, color=OTHERS_COLOUR, strokeOpacity=0.45)
    return mark.encode(x, y, detail="line:N")


def points(
    data: pd.DataFrame,
    x: Any,
    y: Any,
    looks: Mapping[str, Look],
    tooltip: Sequence[alt.Tooltip],
    size: float = 50,
    opacity: float = 1.0,
    nearest: str = "",
) -> alt.Chart:
    """Marks with a tooltip. With `nearest`, a name of its own in the figure, the mark nearest to the pointer tells its
    tooltip and grows; those of no opacity then come into sight."""
    mark = alt.Chart(data).mark_point(filled=True, opacity=1)
    encoding: dict[str, Any] = {"tooltip": list(tooltip), "fillOpacity": faded(opacity), "size": alt.value(size)}
    if nearest:
        near = alt.selection_point(name=nearest, on="pointerover", nearest=True, clear="pointerout")
        mark = mark.properties(name=f"{nearest}_marks").add_params(near)
        at_pointer = alt.when(near, empty=False)
        encoding["size"] = at_pointer.then(alt.value(4 * size)).otherwise(alt.value(size))
        if not opacity:
            encoding["fillOpacity"] = at_pointer.then(alt.value(1)).otherwise(alt.value(0))
    return mark.encode(x, y, colour(looks), shape(looks), **encoding)


def line_with_marks(data: pd.DataFrame, x: Any, y: Any, looks: Mapping[str, Look], tooltip: list[Any]) -> list[Any]:
    """A line for each name, with markers where the column `mark` says so."""
    marked = data.query("mark") if len(data) else data
    return [lines(data, x, y, looks), points(marked, x, y, looks, tooltip)]


def number(field: str, title: str, digits: int = 3) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=f",.{digits}f")


def word(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:N", title=title)


def _by_line(looks: Mapping[str, Look], values: Sequence[Any]) -> alt.Scale:
    return alt.Scale(domain=list(looks), range=list(values))


def page_spec(panel: Panel) -> dict[str, Any]:
    """As wide as its container, in the page's own text colour and, for lines, in the colours of its style sheet, which
    knows light and dark. The legend is the page's."""
    chart = alt.layer(panel.chart, *panel.hover) if panel.hover else panel.chart
    spec = chart.properties(width="container", height=panel.height).to_dict(validate=False)
    spec |= {"autosize": {"type": "fit", "contains": "padding", "resize": True}}
    spec |= {"padding": {"left": 2, "right": 8, "top": 8, "bottom": 2}}
    # `aria`: the container is described in words; thousands of described marks would drown a screen reader.
    spec["config"] = _config("currentColor", "var(--paper)") | {"aria": False}
    return _on_page(spec)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """`name`.png and `name`.svg: the panels in rows, with title, note and legend."""
    if len(figure.panels) == 1:
        panel = figure.panels[0]
        row = [panel.chart.properties(width=2 * PANEL_WIDTH, height=panel.height)]
    else:
        row = [
            panel.chart.properties(width=PANEL_WIDTH, height=panel.height, title=panel.title) for panel in figure.panels
        ]
    rows = [alt.hconcat(*row[start : start + _PANELS_OF_A_ROW]) for start in range(0, len(row), _PANELS_OF_A_ROW)]
    return save(rows, folder, name, figure.title, figure.note, figure.looks)


def save(
    parts: Sequence[Any], folder: Path, name: str, title: str, note: str, looks: Mapping[str, Look] | None = None
) -> list[Path]:
    """`name`.png and `name`.svg of charts that have their size, one below the other; the same charts give the same
    bytes.

    Args:
        note: below the title; its lines are broken where they are too long.
        looks: of the legend, where there is one.
    """
    width = max(sum(chart.width + 60 for chart in getattr(part, "hconcat", [part])) for part in parts) - 60
    subtitle = [line for text in visible(note).split("\n") for line in textwrap.wrap(text, int(width / _LETTER_WIDTH))]
    heading = alt.Title(visible(title), subtitle=subtitle, anchor="start", offset=12)
    several = [_legend(looks, width)] if looks and len(looks) > 1 else []
    spec = alt.vconcat(*several, *parts, title=heading).to_dict(validate=False)
    spec["config"] = _config("#20262E", "white") | {
        "title": {
            "anchor": "start",
            "frame": "group",
            "fontSize": 13,
            "subtitleColor": "#4F5964",
            "subtitleFontSize": 12,
        }
        | {"subtitlePadding": 6},
    }
    spec |= {"background": "white", "padding": 12}
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    drawn = vl_convert.vegalite_to_svg(spec)
    png.write_bytes(vl_convert.svg_to_png(drawn, scale=1.5))
    svg.write_text(drawn, encoding="utf-8", errors="replace")
    return [png, svg]


def _legend(looks: Mapping[str, Look], width: float) -> alt.LayerChart:
    """A line sample with its marker and name for each, in as many columns as fit."""
    column = 56 + _LETTER_WIDTH * max(map(len, looks))
    columns = max(1, int(width // column))
    places = {name: (place % columns * column, place // columns) for place, name in enumerate(looks)}
    samples = pd.DataFrame(
        [{"line": n, "x": x + end, "mean": row} for n, (x, row) in places.items() for end in (0, 36)]
    )
    middles = pd.DataFrame([{"line": name, "x": x + 18, "mean": row} for name, (x, row) in places.items()])
    rows = -(-len(looks) // columns)
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, width], nice=False))
    y = alt.Y("mean:Q", axis=None, scale=alt.Scale(domain=[-0.5, rows - 0.5], reverse=True, nice=False))
    text = alt.Chart(middles).mark_text(align="left", dx=26, fontSize=12).encode(x, y, text="line:N")
    layers = [lines(samples, x, y, looks), points(middles, x, y, looks, []), text]
    return layered(layers).properties(width=width, height=18 * rows)


def _config(ink: str, paper: str) -> dict[str, Any]:
    inked = dict.fromkeys(("labelColor", "titleColor", "gridColor", "domainColor", "tickColor"), ink)
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif" if ink == "currentColor" else "sans-serif",
        "view": {"stroke": None},
        "axis": _AXIS | inked,
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": ink},
        # Text is drawn twice, first as a halo in the colour of the page.
        "style": {"halo": {"stroke": paper, "strokeWidth": 4, "strokeJoin": "round"}},
    }


def on_page(text: str) -> str:
    """A line's colour becomes a variable of the style sheet."""
    return f"var(--line-{COLOURS.index(text)})" if text in COLOURS else text


def _on_page(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_page(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_on_page(inner) for inner in value]
    return on_page(value) if isinstance(value, str) else value
