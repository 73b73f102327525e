"""The frontier chart: the best reward within each KL, and the step at which it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from analysis.charts_data import (
    free_labels,
    frontier_band,
    frontier_end,
    frontier_steps,
    square_root_ticks,
    steps_text,
)
from analysis.summary import SettingSummary
from analysis.tables import number

_HEIGHT = 400
# Labels are put where they would not touch on a phone: pixels of its plot, and of a label.
_PLOT_WIDTH, _PLOT_HEIGHT, _LABEL_WIDTH, _LABEL_HEIGHT = 310, 340, 46, 15
_MARKS_OF_A_LINE = 8

_CAPTION = (
    "Best reward reached within each KL, on an axis on which the square root of KL is evenly spaced. Lines are means "
    "over seeds, bands run from their minimum to their maximum, and a line ends at the largest KL of its longest run. "
    "The best point is chosen on one half of the prompts and scored on the other, so that a line can dip. "
    "Beside a line stands the optimizer step, mean over seeds, at which a run had its best reward within that KL: of "
    "all prompts, and between evaluations as if it rose evenly."
)


def frontier_chart(settings: Sequence[SettingSummary]) -> ChartFigure:
    """For at least one setting."""
    shown = scene(settings)
    marks = " Small marks are single evaluations: point at one for its run, KL, reward and step." * shown.with_runs
    caption = " ".join(part for part in (_CAPTION + marks, shown.remarks()) if part)
    chart = Chart("Best reward within each KL", _description(shown), _spec(shown, frontier_end(settings)))
    return ChartFigure("frontier", "Reward-KL frontier", caption, shown.legend(), [chart])


def _description(shown: Scene) -> str:
    ends = [
        f"{one.name} reaches {number(one.headline.gain.mean + one.reward_before.mean)} within {budget:g} nats"
        for one in shown.settings
        if (budget := one.headline.kl_budget)
    ]
    return f"Line chart of the best reward within each KL. {'; '.join(ends)}. The table of results has the numbers."


def _spec(shown: Scene, end: float) -> Spec:
    means, others = _means(shown, end), _others(shown, end)
    ticks = [float(kl) for kl in square_root_ticks(end)]
    x = quantity("k", title="KL to the initial policy, nats (square-root axis)")
    x |= {"scale": {"type": "sqrt", "domain": [0, end**2], "nice": False}, "axis": {"values": ticks, "format": "~g"}}
    y = quantity("m", title=None, scale={"zero": False, "padding": 8})
    seen = {"x": x, "y": y, "color": colour(shown), "shape": shape(shown)}
    marked = [row for row in means if row["mark"]]
    layers = [
        *_budget_lines(shown, end, x),
        *([grey_lines(x, y, others)] if others else []),
        band(shown, x, y, means),
        line(shown, x, y, means),
    ]
    if shown.with_runs:
        data = _evaluations(shown, end)
        layers.append(points(seen | {"opacity": faded(0.55)}, data, _EVALUATION_TOOLTIP, nearest="near"))
        layers.append(points(seen | {"size": {"value": 60}, "opacity": faded(1.0)}, marked, _MEAN_TOOLTIP))
    else:
        layers.append(points(seen | {"size": {"value": 60}, "opacity": faded(1.0)}, marked, _MEAN_TOOLTIP))
        encoding = {"x": x, "y": y, "opacity": {"value": 0}}
        layers.append(points(encoding, [*means, *others], _MEAN_TOOLTIP, nearest="near"))
    names = [setting.name for setting in (*shown.settings, *shown.others)]
    runs = [run for _, _, run in shown.runs] if shown.with_runs else []
    return spec([*layers, *_step_labels(marked, end, x, y)], _HEIGHT, names, runs)


_EVALUATION_TOOLTIP = {
    "run": "runs[datum.r]",
    "setting": "names[datum.s]",
    "KL": fixed("k"),
    "reward": fixed("m"),
    "step": "datum.step",
}
_MEAN_TOOLTIP = {
    "mean of": "names[datum.s]",
    "KL up to": fixed("k"),
    "best reward": fixed("m"),
    "min to max": f"{fixed('a')} + ' to ' + {fixed('b')}",
    "reached at step": "datum.step",
}


def _means(shown: Scene, end: float) -> list[Row]:
    """A row per setting and point of the KL axis; `mark` tells the few that carry a marker. `step` is text: the mean
    over seeds, and between which steps the seeds lie."""
    found: list[Row] = []
    for place, setting in enumerate(shown.settings):
        made = frontier_band(setting, end, shown.points)
        each = np.array([frontier_steps(run, made.x**2) for run in setting.runs])
        marked = np.isin(np.arange(shown.points), _marked_points(shown.points, place))
        shaped = {"k": made.x**2, "m": made.mean, "a": made.low, "b": made.high}
        found += rows(s=place, **shaped, step=np.array([steps_text(column) for column in each.T]), mark=marked)
    return found


def _marked_points(count: int, place: int) -> np.ndarray:
    """Evenly spread; those of neighbouring settings do not coincide where their lines do."""
    gap = count / _MARKS_OF_A_LINE
    start = gap * (0.4 + 0.6 * (place % 4) / 4)
    return np.minimum(np.append(np.arange(start, count - 0.5 * gap, gap), count - 1).astype(int), count - 1)


def _others(shown: Scene, end: float) -> list[Row]:
    found: list[Row] = []
    for place, setting in enumerate(shown.others, start=len(shown.settings)):
        made = frontier_band(setting, end, POINTS_OF_OTHERS)
        steps = np.array([frontier_steps(run, made.x**2) for run in setting.runs])
        texts = np.array([steps_text(column) for column in steps.T])
        found += rows(s=place, k=made.x**2, m=made.mean, a=made.low, b=made.high, step=texts)
    return found


def _evaluations(shown: Scene, end: float) -> list[Row]:
    found: list[Row] = []
    for place, index, run in shown.runs:
        kept = slice(None, None, shown.every())
        points_of = run.evaluations
        kl, reward, step = (values[kept] for values in (points_of.kl, points_of.reward, points_of.step))
        inside = kl <= end**2
        found += rows(s=place, r=index, k=np.maximum(kl, 0.0)[inside], m=reward[inside], step=step[inside])
    return found


def _budget_lines(shown: Scene, end: float, x: Spec) -> list[Spec]:
    budgets = sorted({budget.kl_budget for setting in shown.settings for budget in setting.budgets})
    data = [{"k": budget, "text": f"budget {budget:g}"} for budget in budgets if budget <= end**2]
    faint: dict[str, Any] = {"data": {"values": data}}
    rule = {"mark": {"type": "rule", "color": "currentColor", "opacity": 0.35}, "encoding": {"x": x}}
    text = {"type": "text", "angle": 270, "align": "left", "baseline": "bottom", "dx": 6, "dy": -3, "opacity": 0.75}
    words = {"mark": text, "encoding": {"x": x, "y": {"value": _HEIGHT - 60}, "text": {"field": "text"}}}
    return [faint | rule, faint | words]


def _step_labels(marked: list[Row], end: float, x: Spec, y: Spec) -> list[Spec]:
    """The step beside the markers, as many as fit without touching another label, marker or budget's name: each is
    drawn twice, first as a halo in the page's colour."""
    if not marked:
        return []
    low, high = min(row["a"] for row in marked), max(row["b"] for row in marked)

    def place(row: Row) -> tuple[float, float]:
        height = (row["m"] - low) / (high - low) if high > low else 0.5
        return np.sqrt(row["k"]) / end * _PLOT_WIDTH, height * _PLOT_HEIGHT

    kept = free_labels([place(row) for row in marked], _PLOT_WIDTH, (_LABEL_WIDTH, _LABEL_HEIGHT))
    data = [
        {"s": row["s"], "k": row["k"], "m": row["m"], "text": f"step {row['step'].split(' ')[0]}"}
        for row in (marked[index] for index in kept)
    ]
    encoding = {"x": x, "y": y, "text": {"field": "text"}, "opacity": faded(1.0)}
    halo = {"type": "text", "dy": -13, "stroke": "var(--paper)", "strokeWidth": 4, "strokeJoin": "round"}
    label = {"type": "text", "dy": -13}
    return [{"data": {"values": data}, "mark": mark, "encoding": encoding} for mark in (halo, label)]
