"""Reward, gold reward and KL over responses generated: means, bands and the single runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.charts_base import (
    POINTS_OF_OTHERS,
    Chart,
    ChartFigure,
    Row,
    Scene,
    Spec,
    band,
    colour,
    faded,
    fixed,
    grey_lines,
    line,
    points,
    quantity,
    rows,
    scene,
    shape,
    spec,
)
from analysis.charts_data import samples_band, thinned
from analysis.summary import SettingSummary, samples_name
from analysis.tables import number

_HEIGHT = 280
_MARKS_OF_A_LINE = 7
_TITLES = {"reward": "Reward", "gold_reward": "Gold reward", "kl": "KL, nats per response"}
_CAPTION = (
    "Evaluations over the {over} until then. Thick lines are means over the seeds that got as far, bands "
    "run from their minimum to their maximum."
)


def curves_chart(settings: Sequence[SettingSummary]) -> ChartFigure:
    """For at least one setting; a chart for each quantity that any run has."""
    shown = scene(settings)
    with_gold = any(run.evaluations.gold_reward is not None for setting in settings for run in setting.runs)
    names = [name for name in _TITLES if with_gold or name != "gold_reward"]
    charts = [Chart(_TITLES[name], _description(shown, name), _spec(shown, name)) for name in names]
    thin = " Thin lines are single runs: point at one for its id and value." * shown.with_runs
    over = samples_name(settings)
    caption = " ".join(part for part in (_CAPTION.format(over=over) + thin, shown.remarks()) if part)
    return ChartFigure("curves", f"Over {over}", caption, shown.legend(), charts)


def _description(shown: Scene, name: str) -> str:
    ends = []
    for setting in shown.settings:
        over = samples_band(setting, name)
        if over is not None:
            ends.append(f"{setting.name} from {number(float(over.mean[0]))} to {number(float(over.mean[-1]))}")
    return f"Line chart of {_TITLES[name]} over {samples_name(shown.settings)}, means over seeds: {'; '.join(ends)}."


def _spec(shown: Scene, name: str) -> Spec:
    means, others = _means(shown, name), _others(shown, name)
    x = quantity(
        "x",
        title=samples_name(shown.settings),
        scale={"nice": False},
        axis={"tickCount": 5, "labelExpr": "format(datum.value, '~s')"},
    )
    y = quantity("m", title=None, scale={"zero": name == "kl"}, axis={"tickCount": 6})
    seen = {"x": x, "y": y, "color": colour(shown), "shape": shape(shown)}
    marked = points(seen | {"size": {"value": 50}, "opacity": faded(1.0)}, [r for r in means if r["mark"]], _MEAN)
    layers = [*([grey_lines(x, y, others)] if others else []), band(shown, x, y, means)]
    if shown.with_runs:
        data = _single_runs(shown, name)
        single = line(shown, x, y, data, strokeWidth=0.8)
        single["encoding"] |= {"detail": {"field": "r"}, "opacity": faded(0.55), "strokeDash": {"value": [1, 0]}}
        hidden = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
        near = points(seen | {"opacity": hidden}, data, _SINGLE, nearest="near")
        layers += [single, line(shown, x, y, means), near, marked]
    else:
        near = points({"x": x, "y": y, "opacity": {"value": 0}}, [*means, *others], _MEAN, nearest="near")
        layers += [line(shown, x, y, means), marked, near]
    names = [setting.name for setting in (*shown.settings, *shown.others)]
    return spec(layers, _HEIGHT, names, [run for _, _, run in shown.runs] if shown.with_runs else [])


_SINGLE = {
    "run": "runs[datum.r]",
    "setting": "names[datum.s]",
    "responses": "format(datum.x, ',')",
    "value": fixed("m"),
}
_MEAN = {
    "mean of": "names[datum.s]",
    "responses": "format(datum.x, ',')",
    "mean": fixed("m"),
    "min to max": f"{fixed('a')} + ' to ' + {fixed('b')}",
}


def _means(shown: Scene, name: str) -> list[Row]:
    found: list[Row] = []
    for place, setting in enumerate(shown.settings):
        over = samples_band(setting, name, shown.points)
        if over is not None:
            every = max(1, len(over.x) // _MARKS_OF_A_LINE)
            marked = np.arange(len(over.x)) % every == min(place % 4, every - 1)
            found += rows(s=place, x=over.x, m=over.mean, a=over.low, b=over.high, mark=marked)
    return found


def _others(shown: Scene, name: str) -> list[Row]:
    found: list[Row] = []
    for place, setting in enumerate(shown.others, start=len(shown.settings)):
        over = samples_band(setting, name, POINTS_OF_OTHERS)
        if over is not None:
            found += rows(s=place, x=over.x, m=over.mean, a=over.low, b=over.high)
    return found


def _single_runs(shown: Scene, name: str) -> list[Row]:
    found: list[Row] = []
    for place, index, run in shown.runs:
        values = getattr(run.evaluations, name)
        if values is not None:
            kept = thinned(np.arange(len(values)), -(-len(values) // shown.every()))
            found += rows(s=place, r=index, x=run.evaluations.samples[kept], m=values[kept])
    return found
