"""Charts of what only some sweeps have: a gold reward, and a number varied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from analysis.ablation import ABLATION_QUANTITIES, Ablation, AblationPoint
from analysis.charts_base import (
    Chart,
    ChartFigure,
    LegendEntry,
    Row,
    Scene,
    Spec,
    colour,
    faded,
    fixed,
    line,
    points,
    quantity,
    rows,
    scene,
    shape,
    spec,
)
from analysis.charts_data import frontier_end, square_root_ticks
from analysis.looks import algorithm_looks
from analysis.overoptimization import GoldFit
from analysis.statistics import Interval
from analysis.tables import interval_text, number

_LINE_POINTS = 60
_MOST_UPRIGHT = 6
"""Labels that fit beside one another on a phone."""


def overoptimization_chart(fits: Sequence[GoldFit]) -> ChartFigure:
    """For at least one fit."""
    shown = scene([fit.setting for fit in fits])
    drawn = [fit for fit in fits if any(fit.setting is one for one in shown.settings)]
    end = frontier_end([fit.setting for fit in fits])
    caption = (
        "Gold reward gained over the square root of KL: marks are evaluations, lines the fit d (alpha - beta log d) "
        "with d = sqrt(KL) of Gao, Schulman and Hilton (2022) through all seeds, as far as their runs went. A large "
        "mark stands where a line is highest, if its bend (beta) is more than seeds differ by: beyond it more of the "
        "reward model is less of what was wanted."
    )
    courses = "; ".join(f"{fit.setting.name} {_course(fit)}" for fit in drawn)
    description = f"Gold reward gained over KL with fitted lines: {courses}. The table below has the fits."
    chart = Chart("Gold reward gained", description, _gold_spec(shown, drawn, end))
    whole = " ".join(part for part in (caption, shown.remarks()) if part)
    return ChartFigure("overoptimization", "Over-optimisation", whole, shown.legend(), [chart])


def _course(fit: GoldFit) -> str:
    """What the line does within the reach of its runs."""
    if fit.peak_kl is not None:
        return f"is highest at {fit.peak_kl:.1f} nats"
    if fit.trend == "undecided":
        return "bends no more than its seeds differ"
    return "only falls" if fit.trend == "falls" else "still rises where its runs end"


def _gold_spec(shown: Scene, fits: Sequence[GoldFit], end: float) -> Spec:
    x = quantity("k", title="KL to the initial policy, nats (square-root axis)")
    x |= {"scale": {"type": "sqrt", "domain": [0, end**2], "nice": False}}
    x |= {"axis": {"values": square_root_ticks(end), "format": "~g"}}
    y = quantity("m", title=None, scale={"padding": 8})
    seen = {"x": x, "y": y, "color": colour(shown), "shape": shape(shown)}
    fitted: list[Row] = []
    peaks: list[Row] = []
    for place, fit in enumerate(fits):
        reach = min(end, float(np.sqrt(max(run.curve.largest_kl for run in fit.setting.runs))))
        d = np.linspace(0.0, reach, _LINE_POINTS)
        fitted += rows(s=place, k=d**2, m=fit.gain(d))
        if fit.peak_kl is not None and fit.peak_kl <= end**2:
            peaks += rows(s=place, k=np.array([fit.peak_kl]), m=fit.gain(np.sqrt([fit.peak_kl])))
    peak_tooltip = {"highest of": "names[datum.s]", "KL": fixed("k"), "gold gain": fixed("m")}
    layers = [line(shown, x, y, fitted)]
    if shown.with_runs:
        tooltip = {"run": "runs[datum.r]", "setting": "names[datum.s]", "KL": fixed("k"), "gold gain": fixed("m")}
        data = _gold_evaluations(shown, end)
        layers.append(points(seen | {"opacity": faded(0.5)}, data, tooltip, nearest="near"))
    if peaks:
        layers.append(points(seen | {"size": {"value": 140}, "opacity": faded(1.0)}, peaks, peak_tooltip))
    runs = [run for _, _, run in shown.runs] if shown.with_runs else []
    return spec(layers, 320, [setting.name for setting in shown.settings], runs)


def _gold_evaluations(shown: Scene, end: float) -> list[Row]:
    found: list[Row] = []
    for place, index, run in shown.runs:
        gold, kl = run.evaluations.gold_reward, np.maximum(run.evaluations.kl, 0.0)
        if gold is not None:
            inside = (kl <= end**2) & (np.arange(len(kl)) % shown.every() == 0)
            found += rows(s=place, r=index, k=kl[inside], m=(gold - gold[0])[inside])
    return found


def ablation_charts(ablations: Sequence[Ablation]) -> list[ChartFigure]:
    """A figure for each number varied, with a line for each algorithm."""
    keys = list(dict.fromkeys(ablation.key for ablation in ablations))
    return [_ablation_figure(key, [one for one in ablations if one.key == key], i) for i, key in enumerate(keys)]


def _ablation_figure(key: str, ablations: Sequence[Ablation], place: int) -> ChartFigure:
    legend = [
        LegendEntry(ablation.algo, look)
        for ablation, look in zip(ablations, algorithm_looks([one.algo for one in ablations]), strict=True)
    ]
    charts = [
        Chart(title, _ablation_description(title, key, ablations, of), _ablation_spec(key, ablations, legend, of))
        for title, of in ABLATION_QUANTITIES.items()
    ]
    whole = "; ".join(_hypervolume_text(one) for one in ablations)
    caption = (
        f"Means over seeds at each value of {key}; bars are 95 % intervals, from minimum to maximum where there are "
        "fewer than 3 seeds. The hypervolume is the area that a run's evaluations dominate in the plane of reward "
        "gained and KL, within the headline budget. Of one seed's evaluations under all values together, means over "
        f"seeds: {whole}."
    )
    return ChartFigure(f"ablation-{place}", f"Over {key}", caption, legend, charts)


def _hypervolume_text(ablation: Ablation) -> str:
    if ablation.hypervolume is None:
        return f"{ablation.algo} none, since no seed has a run of every value"
    text = f"{ablation.algo} {interval_text(ablation.hypervolume)}"
    if not ablation.incomplete_seeds:
        return text
    return f"{text} without {ablation.incomplete_seeds} of the seeds, which lack a value"


def _ablation_description(
    title: str, key: str, ablations: Sequence[Ablation], of: Callable[[AblationPoint], Interval]
) -> str:
    said = [
        f"{one.algo}: " + ", ".join(f"{number(of(point).mean)} at {point.value:g}" for point in one.points)
        for one in ablations
    ]
    return f"{title} over {key}. {'; '.join(said)}."


def _ablation_spec(
    key: str, ablations: Sequence[Ablation], legend: Sequence[LegendEntry], of: Callable[[AblationPoint], Interval]
) -> Spec:
    shown = Scene((), (), [entry.look for entry in legend], True)
    data: list[Row] = []
    for place, ablation in enumerate(ablations):
        found = [of(point) for point in ablation.points]
        low = np.array([one.minimum if one.low is None else one.low for one in found])
        high = np.array([one.maximum if one.high is None else one.high for one in found])
        means, values = np.array([one.mean for one in found]), np.array([point.value for point in ablation.points])
        texts = np.array([interval_text(one) for one in found])
        data += rows(s=place, x=values, m=means, a=low, b=high, text=texts)
    is_log = all(ablation.is_log for ablation in ablations)
    values = sorted({point.value for ablation in ablations for point in ablation.points})
    x = quantity("x", title=f"{key}{' (logarithmic axis)' * is_log}")
    scale = {"type": "log"} if is_log else {"type": "linear", "zero": False}
    x |= {"scale": {**scale, "nice": False, "padding": 16}}
    # Not by parity, the default of the other axes: on a logarithmic one that hides every second label, and again.
    fitting = {"labelOverlap": "greedy", "labelSeparation": 4}
    if _MOST_UPRIGHT < len(values) <= 2 * _MOST_UPRIGHT:  # these fit aslant, though the boxes around them touch
        fitting = {"labelOverlap": False, "labelAngle": -60}
    x |= {"axis": {"values": values, "format": "~g", "grid": False, **fitting}}
    y = quantity("m", title=None, scale={"zero": False}, axis={"tickCount": 6})
    bars = {
        "data": {"values": data},
        "mark": {"type": "rule", "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y | {"field": "a"}, "y2": {"field": "b"}, "color": colour(shown)}
        | {"opacity": faded(0.7)},
    }
    tooltip = {"algorithm": "names[datum.s]", key: "format(datum.x, '~g')", "value": "datum.text"}
    seen = {"x": x, "y": y, "color": colour(shown), "shape": shape(shown), "opacity": faded(1.0)}
    marks = points(seen | {"size": {"value": 70}}, data, tooltip, nearest="near")
    return spec([bars, line(shown, x, y, data), marks], 260, [ablation.algo for ablation in ablations])
