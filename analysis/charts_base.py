"""What the page's charts share: Vega-Lite specs as plain dicts, in the page's own text colour.

A row of a chart's data names its setting by place (`s`) and its run by place (`r`): the names stand in the spec once.
The parameter `chosen` is the place of the setting that the reader picked in the legend, -1 for none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.looks import MOST_BANDS, OTHERS_COLOUR, Look, drawn_settings, draws_runs, looks
from analysis.summary import ComparedRun, SettingSummary
from rlhf.errors import visible

Spec = dict[str, Any]
Row = dict[str, Any]

LINE_WIDTH = 2.0
# Points of a line: with many settings the page would grow beyond what a phone likes to load.
POINTS, POINTS_OF_MANY, POINTS_OF_OTHERS = 120, 60, 20
# Single evaluations in one chart; above it every n-th is drawn.
MOST_MARKS = 3000
# Grey lines: more of them are one grey area of megabytes.
MOST_GREY = 100

_FONT = "system-ui, sans-serif"
_CONFIG: Spec = {
    "background": "transparent",
    "aria": False,  # the container is described in words; thousands of described marks would drown a screen reader
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor", "gridColor", "domainColor", "tickColor"), "currentColor"),
        **{"gridOpacity": 0.12, "domainOpacity": 0.5, "tickOpacity": 0.5, "labelFontSize": 12, "titleFontSize": 12},
        **{"titleFontWeight": "normal", "labelOverlap": True, "titlePadding": 8},
    },
    "text": {"color": "currentColor", "font": _FONT, "fontSize": 11},
}


@dataclass(frozen=True)
class Chart:
    """One drawing: its heading, what it shows in words for those who do not see it, and the spec."""

    title: str
    description: str
    spec: Spec


@dataclass(frozen=True)
class LegendEntry:
    name: str
    look: Look


@dataclass(frozen=True)
class ChartFigure:
    """Charts under one heading with one legend; `caption` says how to read them."""

    id: str
    title: str
    caption: str
    legend: Sequence[LegendEntry]
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Scene:
    """What every chart over settings starts from: who is drawn how."""

    settings: Sequence[SettingSummary]
    """Drawn with a look of their own."""
    others: Sequence[SettingSummary]
    """Grey."""
    looks: Sequence[Look]
    with_runs: bool
    """Whether single runs are drawn."""
    undrawn: int = 0
    """Settings that are not even grey."""

    @property
    def points(self) -> int:
        return POINTS_OF_MANY if self.others else POINTS

    @property
    def runs(self) -> list[tuple[int, int, ComparedRun]]:
        """(place of its setting, its own place, run) of every run that is drawn."""
        pairs = [(place, run) for place, setting in enumerate(self.settings) for run in setting.runs]
        return [(place, index, run) for index, (place, run) in enumerate(pairs)]

    def legend(self) -> list[LegendEntry]:
        return [LegendEntry(setting.name, look) for setting, look in zip(self.settings, self.looks, strict=True)]

    def every(self) -> int:
        """Which evaluations of a run are drawn, so that a chart holds at most MOST_MARKS: every n-th."""
        return max(1, -(-sum(len(run.evaluations.kl) for _, _, run in self.runs) // MOST_MARKS))

    def remarks(self) -> str:
        """What was left out of the charts, to end a caption with."""
        said = []
        if self.others:
            count = len(self.settings) + len(self.others) + self.undrawn
            grey = f"next {len(self.others)}" if self.undrawn else "others"
            said.append(
                f"Of {count} settings the {len(self.settings)} of the highest KL efficiency are told apart; the {grey} "
                "are grey."
            )
        if not self.with_runs:
            said.append("There are too many runs to draw one by one: means and bands only, with fewer points.")
        elif self.every() > 1:
            said.append(f"Of single evaluations every {self.every()}th is drawn.")
        return " ".join(said)


def scene(settings: Sequence[SettingSummary]) -> Scene:
    drawn, others = drawn_settings(settings)
    grey = sorted(others, key=lambda setting: -setting.headline.kl_efficiency.mean)[:MOST_GREY]
    return Scene(drawn, grey, looks(drawn), draws_runs(settings), len(others) - len(grey))


def spec(layers: list[Spec], height: int, names: Sequence[str], runs: Iterable[ComparedRun] = ()) -> Spec:
    """A spec as wide as its container. `names` are the settings by place, those of the grey ones last."""
    params = [
        {"name": "chosen", "value": -1},
        {"name": "names", "value": list(names)},
        {"name": "runs", "value": [run.record.id for run in runs]},
    ]
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding", "resize": True},
        "padding": {"left": 2, "right": 8, "top": 8, "bottom": 2},
        "params": params,
        "layer": layers,
        "config": _CONFIG,
    }


def rows(**columns: Any) -> list[Row]:
    """Columns of equal length, or one value for all, as rows; a row with a NaN or an infinity is left out."""
    count = max(len(column) for column in columns.values() if isinstance(column, np.ndarray))
    whole = {name: np.broadcast_to(np.asarray(column), (count,)).tolist() for name, column in columns.items()}
    made = [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]
    kept = [row for row in made if all(not isinstance(value, float) or np.isfinite(value) for value in row.values())]
    return [{name: short(value) for name, value in row.items()} for row in kept]


def short(value: Any) -> Any:
    """Five digits: more than a chart shows, at half the bytes."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever it holds.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has no word for.
    """
    return json.dumps(_visible(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _visible(value: Any) -> Any:
    """The same with texts that nothing obeys."""
    if isinstance(value, dict):
        return {_visible(name): _visible(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(inner) for inner in value]
    return visible(value) if isinstance(value, str) else value


def quantity(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", **more}


def colour(shown: Scene) -> Spec:
    return by_setting([look.colour for look in shown.looks])


def by_setting(values: Sequence[Any]) -> Spec:
    """An encoding that looks `values` up by a row's setting."""
    return {"field": "s", "type": "nominal", "scale": {"domain": list(range(len(values))), "range": list(values)}} | {
        "legend": None
    }


def dash(shown: Scene) -> Spec:
    return by_setting([[LINE_WIDTH * part for part in look.dash] or [1, 0] for look in shown.looks])


def shape(shown: Scene) -> Spec:
    return by_setting([look.shape for look in shown.looks])


def faded(opacity: float) -> Spec:
    """`opacity` for the chosen setting, and for all where none is chosen."""
    return {"condition": {"test": "chosen < 0 || datum.s === chosen", "value": opacity}, "value": opacity * 0.12}


def _band_opacity(shown: Scene) -> Spec:
    """Of many bands only the chosen one stands out."""
    if len(shown.settings) <= MOST_BANDS:
        return faded(0.16)
    return {"condition": {"test": "datum.s === chosen", "value": 0.2}, "value": 0.03}


def line(shown: Scene, x: Spec, y: Spec, data: list[Row], **mark: Any) -> Spec:
    """A line for each setting."""
    return {
        "data": {"values": data},
        "mark": {"type": "line", "clip": True, "strokeWidth": LINE_WIDTH, **mark},
        "encoding": {"x": x, "y": y, "color": colour(shown), "strokeDash": dash(shown), "opacity": faded(1.0)},
    }


def band(shown: Scene, x: Spec, y: Spec, data: list[Row]) -> Spec:
    """From `a` to `b`."""
    return {
        "data": {"values": data},
        "mark": {"type": "area", "clip": True},
        "encoding": {"x": x, "y": y | {"field": "a"}, "y2": {"field": "b"}, "color": colour(shown)}
        | {"opacity": _band_opacity(shown)},
    }


def grey_lines(x: Spec, y: Spec, data: list[Row]) -> Spec:
    """The settings without a look of their own."""
    return {
        "data": {"values": data},
        "mark": {"type": "line", "clip": True, "strokeWidth": 1, "color": OTHERS_COLOUR, "opacity": 0.45},
        "encoding": {"x": x, "y": y, "detail": {"field": "s"}},
    }


def points(encoding: Mapping[str, Spec], data: list[Row], tooltip: Mapping[str, str], nearest: str = "") -> Spec:
    """Marks with a tooltip: `tooltip` is {what it says: Vega expression}, in order. With `nearest`, a name of its own
    in the spec, the mark nearest to the pointer tells its tooltip and grows."""
    size = encoding.get("size", {}).get("value", 20)
    layer: Spec = {
        "data": {"values": data},
        "mark": {"type": "point", "filled": True, "clip": True},
        "transform": [{"calculate": expression, "as": f"t{i}"} for i, expression in enumerate(tooltip.values())],
        "encoding": dict(encoding)
        | {"tooltip": [{"field": f"t{i}", "type": "nominal", "title": title} for i, title in enumerate(tooltip)]},
    }
    if nearest:
        select = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
        layer["params"] = [{"name": nearest, "select": select}]
        grown = {"param": nearest, "empty": False, "value": 4 * size}
        layer["encoding"]["size"] = {"condition": grown, "value": size}
    return layer


def fixed(field: str, digits: int = 3) -> str:
    """The Vega expression that writes a field as the tables do."""
    return f"format(datum.{field}, '.{digits}f')"
