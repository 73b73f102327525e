"""Findings -> the report's charts, each where there is something to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.charts_ablation import ablation_figure
from analysis.charts_data import evaluations_band, thinned
from analysis.charts_frontier import frontier_figure
from analysis.charts_gold import gold_figure
from analysis.charts_scene import MARKS_OF_A_LINE, POINTS_OF_OTHERS, Scene, padded, scene
from analysis.compared import ComparedRun, SettingSummary
from analysis.drawing import (
    Figure,
    Panel,
    bands,
    frame,
    grey_lines,
    joined,
    layered,
    line_with_marks,
    number,
    points,
    single_lines,
    word,
)
from analysis.findings import Findings
from analysis.replicates import drawn_text
from analysis.summary import samples_name
from analysis.tables import number as number_text

_QUANTITIES = {"reward": "Reward", "gold_reward": "Gold reward", "kl": "KL"}
UNITS = {"reward": "score of the reward model", "gold_reward": "gold score", "kl": "nats per response"}


def charts(findings: Findings) -> list[Figure]:
    """In the order of the page; the first is the frontier. Empty where no run was compared."""
    settings = findings.comparison.settings
    if not settings:
        return []
    made = [frontier_figure(findings.comparison, findings.envelopes), curves_figure(settings)]
    if gold := gold_figure(findings):
        made.append(gold)
    keys = dict.fromkeys(ablation.key for ablation in findings.ablations)
    return made + [ablation_figure(key, [one for one in findings.ablations if one.key == key]) for key in keys]


def curves_figure(settings: Sequence[SettingSummary]) -> Figure:
    """Reward, gold reward and KL over responses generated, for at least one setting; a panel for each that any run
    has."""
    shown, over = scene(settings), samples_name(settings)
    with_gold = any(run.evaluations.gold_reward is not None for setting in settings for run in setting.runs)
    names = [name for name in _QUANTITIES if with_gold or name != "gold_reward"]
    caption = shown.caption(
        "Evaluations. Thick lines: means over the seeds that got as far; bands: minimum to maximum.",
        "Thin lines: single runs.",
    )
    panels = [_curves_panel(shown, name, over) for name in names]
    seeds = drawn_text(shown.settings)
    note = "Lines are single runs." if seeds == "1 seed" else f"Lines: mean over {seeds}; bands: minimum to maximum."
    return Figure("curves", f"Over {over}", caption, note, shown.looks, panels)


def _curves_panel(shown: Scene[SettingSummary], name: str, over: str) -> Panel:
    means = _means(shown.settings, name, shown.points)
    x = alt.X(
        "x:Q",
        title=over,
        scale=alt.Scale(nice=False),
        axis=alt.Axis(tickCount=5, labelExpr="format(datum.value, '~s')"),
    )
    y = quantity_axis(name)
    tooltip = [word("line", "mean of"), number("x", "responses", 0), number("mean", "mean")]
    tooltip += [number("low", "least"), number("high", "most")]
    others = _means(shown.others, name, POINTS_OF_OTHERS)
    layers: list[Any] = [grey_lines(others, x, y)] if len(others) else []
    # With two seeds the lines of the runs are the edges of the band.
    wide = means.query("runs > 2") if shown.with_runs and len(means) else means
    layers += [bands(wide, x, y, shown.looks), *line_with_marks(means, x, y, shown.looks, tooltip)]
    if shown.with_runs:
        data = _single_runs(shown, name)
        said = [word("run", "run"), word("line", "setting"), number("x", "responses", 0), number("mean", "value")]
        layers.append(single_lines(data, x, y, shown.looks))
    else:
        data, said = joined([means, others]), tooltip
    hover = points(data, x, y, shown.looks, said, opacity=0.0, nearest=f"near_{name}")
    ends = [
        f"{line} from {number_text(rows['mean'].iloc[0])} to {number_text(rows['mean'].iloc[-1])}"
        for line, rows in means.groupby("line", sort=False)
    ]
    title = _QUANTITIES[name]
    description = f"Line chart of {title} ({UNITS[name]}) over {over}, means over seeds: {'; '.join(ends)}."
    return Panel(title, description, layered(layers), 280, [hover])


def quantity_axis(name: str) -> alt.Y:
    """Of the mean of `reward`, `gold_reward` or `kl`."""
    scale = alt.Scale(zero=True) if name == "kl" else padded(zero=False)
    return alt.Y("mean:Q", title=UNITS[name], scale=scale, axis=alt.Axis(tickCount=6))


def _means(settings: Sequence[SettingSummary], name: str, count: int) -> pd.DataFrame:
    return joined([band_rows(one.name, one.runs, name, "samples", place, count) for place, one in enumerate(settings)])


def band_rows(
    line: str, runs: Sequence[ComparedRun], name: str, over: str, place: int, count: int | None = None
) -> pd.DataFrame:
    """A quantity of the evaluations over seeds: line, x, mean, low, high, mark, runs; no row where no run has it."""
    made = evaluations_band(runs, name, over, count)
    if made is None:
        return pd.DataFrame()
    every = max(1, len(made.x) // MARKS_OF_A_LINE)
    marked = np.arange(len(made.x)) % every == min(place % 4, every - 1)
    columns = {"x": made.x, "mean": made.mean, "low": made.low, "high": made.high}
    return frame(line=line, **columns, mark=marked, runs=len(runs))


def _single_runs(shown: Scene[SettingSummary], name: str) -> pd.DataFrame:
    found = []
    for setting, run in shown.runs:
        values = getattr(run.evaluations, name)
        if values is not None:
            kept = thinned(np.arange(len(values)), -(-len(values) // shown.every))
            x = run.evaluations.samples[kept].astype(float)
            found.append(frame(line=setting, run=run.record.id, x=x, mean=values[kept]))
    return joined(found)
