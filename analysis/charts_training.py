"""What the updates logged: a panel for each `train/*` metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.charts_data import mean_band
from analysis.charts_scene import MARKS_OF_A_LINE, scene
from analysis.compared import ComparedRun, SettingSummary
from analysis.drawing import Figure, Panel, bands, frame, joined, layered, line_with_marks, number, points, word
from analysis.summary import samples_name

# Points of a line; each is the mean of the iterations around it.
_POINTS = 60
_GROUP = "train/"
_UNITS = {
    "reward": "score of the reward model",
    "kl": "nats per response",
    "kl_k3": "nats per response",
    "kl_coef": "coefficient",
    "entropy": "nats per token",
    "response_length": "tokens",
    "eos_rate": "share of responses",
    "clip_fraction": "share of tokens",
    "infeasible_target_fraction": "share of tokens",
    "explained_variance": "share of variance",
    "grad_norm": "norm",
    "value_grad_norm": "norm",
}


def training_figure(settings: Sequence[SettingSummary]) -> list[Figure]:
    """One figure, or none where nothing was compared or logged."""
    if not settings:
        return []
    runs = [run for setting in settings for run in setting.runs]
    keys = sorted({key for run in runs for key in run.record.metrics.columns if key.startswith(_GROUP)})
    shown, over = scene(settings), samples_name(settings)
    panels = [panel for key in keys if (panel := _panel(shown.settings, key, over, shown.looks))]
    caption = f"Each train/* metric over the {over}: means over seeds, bands from minimum to maximum."
    longest = max(len(run.record.metrics) for run in runs)
    if longest > _POINTS:
        caption += f" A point is the mean of up to {-(-longest // _POINTS)} neighbouring iterations."
    return [Figure("training", "Training curves", caption, "", shown.looks, panels)] if panels else []


def _panel(settings: Sequence[SettingSummary], key: str, over: str, looks: dict[str, Any]) -> Panel | None:
    data = joined([_rows(setting, key, place) for place, setting in enumerate(settings)])
    if not len(data):
        return None
    x = alt.X("x:Q", title=over, scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=4, format="~s"))
    unit = _UNITS.get(key.removeprefix(_GROUP), "loss" if key.endswith("loss") else key.removeprefix(_GROUP))
    y = alt.Y("mean:Q", title=unit, scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=4))
    said = [word("line", "mean of"), number("x", "responses", 0), number("mean", "mean")]
    said += [number("low", "least"), number("high", "most")]
    layers = [bands(data.query("runs > 1"), x, y, looks), *line_with_marks(data, x, y, looks, said)]
    hover = points(data, x, y, looks, said, opacity=0.0, nearest=f"near_{key.replace('/', '_')}")
    ends = [f"{line} ends at {rows['mean'].iloc[-1]:.3g}" for line, rows in data.groupby("line", sort=False)]
    return Panel(key, f"Line chart of {key} ({unit}) over {over}: {'; '.join(ends)}.", layered(layers), 190, [hover])


def _rows(setting: SettingSummary, key: str, place: int) -> pd.DataFrame:
    made = mean_band([_means_of_neighbours(run, key) for run in setting.runs], _POINTS)
    if made is None:
        return pd.DataFrame()
    every = max(1, len(made.x) // MARKS_OF_A_LINE)
    marked = np.arange(len(made.x)) % every == min(place % 4, every - 1)
    columns = {"x": made.x, "mean": made.mean, "low": made.low, "high": made.high}
    return frame(line=setting.name, **columns, mark=marked, runs=len(setting.runs))


def _means_of_neighbours(run: ComparedRun, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(points,) responses and values, at most _POINTS, each the mean of as many neighbouring rows."""
    x, y = run.record.column("samples"), run.record.column(key)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    starts = np.arange(0, len(x), max(1, -(-len(x) // _POINTS)))
    counts = np.diff(np.append(starts, len(x)))
    if not len(x):
        return x, y
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
