"""Gold beside proxy: what the reward model says and what was wanted, over KL (Gao, Schulman and Hilton 2022)."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.charts_data import frontier_end
from analysis.charts_scene import POINTS_OF_OTHERS, Scene, kl_axis, scene
from analysis.compared import ComparedRun, Contender, runs_of
from analysis.drawing import Figure, Panel, faded, frame, joined, layered, number, points, word
from analysis.findings import Findings
from analysis.labels import named
from analysis.looks import Look
from analysis.overoptimization import GoldFit, binned_gains

_HEIGHT = 240
_DASH = [6, 3]
_QUANTITIES = {False: "reward model", True: "gold"}


def gold_figure(findings: Findings) -> Figure | None:
    """A panel for each algorithm or setting that has a gold reward; None where none has."""
    compared = [one for one in findings.envelopes or findings.comparison.settings if _has_gold(one)]
    if not compared:
        return None
    shown, end = scene(compared), frontier_end(compared)
    fits = {fit.setting.name: fit for fit in findings.gold_fits}
    bins = {one.name: _bins(one, end) for one in shown.settings}
    marks = {one.name: _evaluations(shown, one.name, end) for one in shown.settings}
    drawn = [values for rows in bins.values() for name in ("low", "high") for values in rows[name]]
    drawn += [value for rows in marks.values() if len(rows) for value in rows["mean"]]
    room = 0.06 * (max(drawn) - min(drawn) or 1.0)
    y = alt.Y(
        "mean:Q",
        title="gain over the initial policy",
        scale=alt.Scale(domain=[min(drawn) - room, max(drawn) + room], nice=False, zero=False),
        axis=alt.Axis(tickCount=6),
    )
    panels = [
        _panel(one.name, bins[one.name], marks[one.name], fits.get(one.name), shown.looks, end, y, place)
        for place, one in enumerate(shown.settings)
    ]
    with_fit = any(name in fits for name in shown.looks)
    fit = " Solid line: d (alpha - beta log d), d = sqrt(KL), of Gao et al. (2022); large mark: its peak." * with_fit
    text = (
        f"Dashed, hollow: the reward model's score; solid, filled: gold; each in its unit. Bars: standard errors.{fit}"
    )
    return Figure("overoptimization", "Gold beside proxy", shown.caption(text), text, shown.looks, panels)


def _has_gold(one: Contender) -> bool:
    return any(_gold_gain(run) is not None and (run.curve.largest_kl > 0.0) for run in runs_of(one))


def _gold_gain(run: ComparedRun) -> np.ndarray | None:
    gold = run.evaluations.gold_reward
    return None if gold is None or not np.isfinite(gold[0]) else gold - gold[0]


def _bins(one: Contender, end: float) -> pd.DataFrame:
    """Means of evaluations of about one KL: gold (whether), kl, mean, error, low, high."""
    made = []
    for gold in (False, True):
        if (found := binned_gains(one, end, gold)) is not None:
            columns = {"kl": found.kl, "mean": found.mean, "error": found.error}
            columns |= {"low": found.mean - found.error, "high": found.mean + found.error}
            made.append(frame(line=one.name, gold=gold, quantity=_QUANTITIES[gold], **columns))
    return joined(made)


def _evaluations(shown: Scene[Contender], name: str, end: float) -> pd.DataFrame:
    made = []
    for line, run in shown.runs:
        kl = np.maximum(run.evaluations.kl, 0.0)
        kept = (kl <= end) & (np.arange(len(kl)) % shown.every == 0)
        gold = _gold_gain(run)
        for quantity, values in (("reward model", run.evaluations.gains.mean(axis=1)), ("gold", gold)):
            if line == name and values is not None:
                setting = named(run.record.algo, run.record.label)
                made.append(
                    frame(
                        line=line, run=run.record.id, setting=setting, quantity=quantity, kl=kl[kept], mean=values[kept]
                    )
                )
    return joined(made)


def _panel(
    name: str,
    bins: Any,
    marks: pd.DataFrame,
    fit: GoldFit | None,
    looks: dict[str, Look],
    end: float,
    y: alt.Y,
    place: int,
) -> Panel:
    x, look = kl_axis(end, "KL, nats (square-root axis)"), looks[name]
    low = y.copy()
    low.shorthand = "low:Q"
    ink = alt.value(look.colour)
    origin = frame(line=name, kl=[0.0], mean=[0.0])
    proxy, gold = (joined([origin, bins[bins["gold"] == which]]) for which in (False, True))
    solid = gold
    if fit is not None:
        reach = min(end, max(run.curve.largest_kl for run in runs_of(fit.setting)))
        d = np.linspace(0.0, np.sqrt(reach), 3 * POINTS_OF_OTHERS)
        solid = frame(line=name, kl=d**2, mean=fit.gain(d))
    zero = alt.Chart(pd.DataFrame({"mean": [0.0]})).mark_rule(strokeOpacity=0.25).encode(y)
    layers: list[Any] = [zero]
    for data, dash in ((proxy, _DASH), (solid, [1, 0])):
        line = alt.Chart(data).mark_line(strokeWidth=2, strokeDash=dash)
        layers.append(line.encode(x, y, color=ink, strokeOpacity=faded(1.0)))
    layers.append(alt.Chart(bins).mark_rule(strokeWidth=1.5).encode(x, low, alt.Y2("high"), color=ink))
    of_bins = [
        word("quantity", "mean by"),
        number("kl", "KL"),
        number("mean", "gain"),
        number("error", "standard error"),
    ]
    for which in (False, True):
        rows = bins[bins["gold"] == which]
        mark = alt.Chart(rows).mark_point(filled=which, size=55, opacity=1, strokeWidth=1.5)
        layers.append(mark.encode(x, y, color=ink, tooltip=of_bins, strokeOpacity=faded(1.0)))
    if fit is not None and fit.peak_kl is not None and fit.peak_kl <= end:
        top = frame(line=name, kl=[fit.peak_kl], mean=fit.gain(np.sqrt([fit.peak_kl])))
        tooltip = [word("line", "highest of"), number("kl", "KL"), number("mean", "gold gain")]
        layers.append(points(top, x, y, looks, tooltip, size=160))
    layers += _key(bins)
    course = "no fit" if fit is None else _course(fit)
    said_bins = "; ".join(
        f"{by} {rows['mean'].iloc[-1]:.2f} at {rows['kl'].iloc[-1]:.3g} nats" for by, rows in bins.groupby("quantity")
    )
    description = f"Gold and proxy gained over KL, {name}: {said_bins}. Gold {course}. The table below has the fits."
    said = [
        word("run", "run"),
        word("setting", "setting"),
        word("quantity", "by"),
        number("kl", "KL"),
        number("mean", "gain"),
    ]
    hover = points(marks, x, y, looks, said, opacity=0.0, nearest=f"near_gold_{place}") if len(marks) else None
    return Panel(name, description, layered(layers), _HEIGHT, [hover] if hover else [])


def _key(bins: pd.DataFrame) -> list[Any]:
    """Which line is which, in the corner that lines which rise leave empty."""
    data = bins.iloc[:1][["line"]]
    said = {-26: "\N{EN DASH} \N{EN DASH}\N{WHITE CIRCLE} reward model", -10: "\N{EM DASH}\N{BLACK CIRCLE} gold"}
    return [
        alt.Chart(data.assign(text=text))
        .mark_text(align="right", dx=-6, dy=down)
        .encode(x=alt.value("width"), y=alt.value("height"), text="text:N")
        for down, text in said.items()
    ]


def _course(fit: GoldFit) -> str:
    """What the line does within the reach of its runs."""
    if fit.peak_kl is not None:
        return f"is highest at {fit.peak_kl:.1f} nats"
    said = {"undecided": "bends no more than its seeds differ", "falls": "only falls"}
    return said.get(fit.trend, "still rises where its runs end")
