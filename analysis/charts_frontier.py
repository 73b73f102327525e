"""The chart that answers: the best reward within each KL, of settings or of algorithms' envelopes, beside what is
possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.charts_data import free_labels, frontier_band, frontier_end, frontier_errors, frontier_steps
from analysis.charts_scene import MARKS_OF_A_LINE, POINTS, POINTS_OF_OTHERS, Scene, kl_axis, padded, scene
from analysis.compared import Comparison, Contender, SettingSummary
from analysis.drawing import (
    Figure,
    Panel,
    bands,
    colour,
    faded,
    frame,
    grey_lines,
    joined,
    layered,
    lines,
    number,
    points,
    single_lines,
    word,
)
from analysis.envelope import Envelope
from analysis.labels import named
from analysis.looks import OTHERS_COLOUR, Look
from analysis.optimum import ReferenceSamples, best_of_n
from analysis.replicates import drawn_text, interval_texts
from analysis.tables import number as number_text

_HEIGHT = 400
# Labels are put where they would not touch on a phone: pixels of its plot, and of a label.
_PLOT_WIDTH, _PLOT_HEIGHT, _LABEL = 310, 340, (46, 15)


def frontier_figure(comparison: Comparison, envelopes: Sequence[Envelope] = ()) -> Figure:
    """Of the envelopes, with the settings they are made of, or of the settings; for at least one. With reference
    samples, what is possible beside it."""
    compared: Sequence[Contender] = envelopes or comparison.settings
    shown, end, reference = scene(compared), frontier_end(compared), comparison.reference
    x, y = kl_axis(end), alt.Y("mean:Q", title="best reward within this KL, score", scale=padded(zero=False))
    rows = [_rows(one, end, shown.points, comparison.crossed, place) for place, one in enumerate(shown.settings)]
    means = joined(rows)
    marked: Any = means.query("mark")
    layers: list[Any] = _budget_line(compared, x)
    if reference is not None:
        layers += _possible(reference, end, x, y)
    others = joined([_rows(one, end, POINTS_OF_OTHERS) for one in shown.others])
    if shown.others:
        layers.append(grey_lines(others, x, y))
    layers.append(bands(means.query("error > 0"), x, y, shown.looks))
    if envelopes:
        layers += _members(shown, envelopes, end, x, y)
    layers.append(lines(means, x, y, shown.looks))
    hover: list[alt.Chart] = []
    tooltip = [word("line", "mean of"), number("kl", "KL up to"), number("mean", "best reward")]
    with_errors = bool(means["error"].any())
    tooltip += [number("error", "standard error")] * with_errors + [word("step", "reached at step")] * (not envelopes)
    if shown.with_runs:
        said = [word("run", "run"), word("setting", "setting"), number("kl", "KL"), number("mean", "reward")]
        said += [*[number("error", "standard error")] * comparison.crossed, number("step", "step", 0)]
        marks = _evaluations(shown, end)
        layers.append(
            points(marks, x, y, shown.looks, said, size=10 if envelopes else 26, opacity=0.75, nearest="near")
        )
    else:
        hover = [points(joined([means, others]), x, y, shown.looks, tooltip, size=60, opacity=0.0, nearest="near")]
    layers.append(points(marked, x, y, shown.looks, tooltip, size=60))
    if not envelopes:
        layers += _step_labels(marked, end, x, y)
    ends = [
        f"{one.name} {number_text(rows['mean'].iloc[-1])} at {rows['kl'].iloc[-1]:.3g} nats"
        for one, rows in zip(shown.settings, rows, strict=True)
    ]
    description = f"Line chart of the best reward within each KL, at their ends: {'; '.join(ends)}."
    text = _how_to_read(shown, comparison, bool(envelopes), with_errors)
    panel = Panel("Best reward within each KL", description, layered(layers), _HEIGHT, hover)
    title = "Frontiers of the algorithms" if envelopes else "Reward-KL frontier"
    return Figure("frontier", title, shown.caption(text), text, shown.looks, [panel])


def _how_to_read(shown: Scene[Contender], comparison: Comparison, enveloped: bool, with_bands: bool) -> str:
    over = interval_texts(shown.settings, comparison.crossed)[0] or "seeds"
    what = "Upper envelopes over training and the KL knob" if enveloped else "Best reward within each KL"
    parts = [f"{what}, mean over {drawn_text(shown.settings)}"]
    parts += ["thin lines: single settings"] * enveloped + [f"bands: standard errors over {over}"] * with_bands
    parts += ["small marks: evaluations"] * shown.with_runs
    possible = " Dashed: the optimum, dotted where too few samples carry it; diamonds: best-of-n."
    return "; ".join(parts) + "." + possible * (comparison.reference is not None)


def _rows(one: Contender, end: float, count: int, crossed: bool | None = None, place: int = 0) -> pd.DataFrame:
    """Columns: line, kl, mean, error, low, high; `step` is text, over seeds; `mark`: whether it carries a marker.
    Without `crossed`, of a grey line, no errors are reckoned."""
    made = frontier_band(one, end, count)
    error = np.zeros(count) if crossed is None else frontier_errors(one, made.x, crossed)
    columns: dict[str, Any] = {"kl": made.x, "mean": made.mean, "error": error}
    columns |= {"low": made.mean - error, "high": made.mean + error}
    if isinstance(one, SettingSummary):
        steps = np.array([frontier_steps(run, made.x) for run in one.runs])  # (seeds, points)
        columns["step"] = [_steps_text(column) for column in steps.T]
    # Evenly spread; those of neighbouring lines do not coincide where the lines do.
    gap = count / MARKS_OF_A_LINE
    places = np.append(np.arange(gap * (0.4 + 0.15 * (place % 4)), count - 0.5 * gap, gap).astype(int), count - 1)
    return frame(line=one.name, **columns, mark=np.isin(np.arange(count), places))


def _steps_text(steps: np.ndarray) -> str:
    """Of the seeds: their mean, and between which they lie."""
    known = steps[np.isfinite(steps)]
    if not len(known):
        return "not logged"
    if known.min() == known.max():
        return f"{known[0]:.0f}"
    return f"{known.mean():.0f} ({known.min():.0f} to {known.max():.0f} over seeds)"


def _members(shown: Scene[Contender], envelopes: Sequence[Envelope], end: float, x: alt.X, y: alt.Y) -> list[Any]:
    """The settings under each envelope, thin, with the value of the knob at their ends."""
    made, ends = [], []
    for envelope in envelopes:
        if envelope.name in shown.looks and envelope.knobs:
            for setting in envelope.settings:
                band = frontier_band(setting, end, POINTS_OF_OTHERS)
                made.append(frame(line=envelope.name, run=setting.name, kl=band.x, mean=band.mean))
                values = [setting.runs[0].record.setting(key) for key in envelope.knobs]
                text = ", ".join(f"{one:g}" if isinstance(one, int | float) else str(one) for one in values)
                ends.append(frame(line=envelope.name, kl=band.x[-1:], mean=band.mean[-1:], text=text))
    data: Any = joined(ends)
    if not len(data):
        return []
    return [single_lines(joined(made), x, y, shown.looks), *_labels(data, data["mean"], end, x, y, shown.looks)]


def _evaluations(shown: Scene[Contender], end: float) -> pd.DataFrame:
    """`error` is over prompts, of the gain; 0 where the run kept no numbers of prompts."""
    found = []
    for name, run in shown.runs:
        gains = run.evaluations.gains
        error = (
            gains.std(axis=1, ddof=1) / np.sqrt(gains.shape[1]) if run.evaluations.by_prompt else np.zeros(len(gains))
        )
        kl, reward, step, error = (
            values[:: shown.every]
            for values in (np.maximum(run.evaluations.kl, 0.0), run.evaluations.reward, run.evaluations.step, error)
        )
        inside = kl <= end
        columns = {"kl": kl[inside], "mean": reward[inside], "error": error[inside], "step": step[inside]}
        found.append(frame(line=name, run=run.record.id, setting=named(run.record.algo, run.record.label), **columns))
    return joined(found)


def _budget_line(compared: Sequence[Contender], x: alt.X) -> list[alt.Chart]:
    """Where they are compared."""
    budget = compared[0].headline.kl_budget
    who = "every run reached" if isinstance(compared[0], SettingSummary) else "every frontier reaches"
    data = pd.DataFrame({"kl": [budget], "text": [f"{who} {budget:g}"]})
    text = alt.Chart(data).mark_text(angle=270, align="left", baseline="bottom", dx=10, dy=-3, fillOpacity=0.75)
    return [
        alt.Chart(data).mark_rule(strokeOpacity=0.35).encode(x),
        text.encode(x, y=alt.value("height"), text="text:N"),
    ]


def _possible(reference: ReferenceSamples, end: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The optimum, dotted where too few samples carry it, and best-of-n."""
    baseline = float(reference.baseline.mean())
    optimum = reference.optimum(np.linspace(0.0, np.sqrt(end), POINTS) ** 2)
    trusted = optimum.kl <= optimum.trusted_kl
    line = frame(kl=optimum.kl, mean=baseline + optimum.gain)
    beyond = ~trusted
    if trusted.any():  # so that the two pieces meet
        beyond[np.flatnonzero(trusted)[-1]] = True
    numbers = 2 ** np.arange(1, int(np.log2(reference.rewards.shape[1] / 4)) + 1)
    chosen = best_of_n(reference.rewards, numbers)
    marks = frame(kl=chosen.kl, mean=baseline + chosen.gain.mean(axis=1), n=[f"best of {n}" for n in numbers])
    said = [word("n", "sampling"), number("kl", "KL"), number("mean", "reward")]
    inside = marks[marks["kl"] <= end]
    return [
        alt.Chart(line[trusted]).mark_line(strokeWidth=1.5, strokeDash=[7, 4], color=OTHERS_COLOUR).encode(x, y),
        alt.Chart(line[beyond]).mark_line(strokeWidth=1.5, strokeDash=[1, 4], color=OTHERS_COLOUR).encode(x, y),
        alt.Chart(inside)
        .mark_point(shape="diamond", filled=False, size=45, opacity=1, color=OTHERS_COLOUR)
        .encode(x, y, tooltip=said),
    ]


def _step_labels(marked: Any, end: float, x: alt.X, y: alt.Y) -> list[Any]:
    """The step at which the best reward was reached, at two of each line's markers, where it is another than before."""
    kept = marked.groupby("line", sort=False).nth([len(marked) // marked["line"].nunique() // 2, -1])
    labels = kept[["line", "kl", "mean"]].assign(text=[f"step {text.split(' ')[0]}" for text in kept["step"]])
    return _labels(labels[labels["text"] != labels.groupby("line")["text"].shift()], marked["mean"], end, x, y)


def _labels(data: Any, heights: Any, end: float, x: alt.X, y: alt.Y, looks: dict[str, Look] | None = None) -> list[Any]:
    """Texts above points, as many as fit without touching one another; with `looks`, in the colours of their lines."""
    low, high = float(heights.to_numpy().min()), float(heights.to_numpy().max())
    up = (data["mean"] - low) / (high - low) if high > low else 0.0 * data["mean"] + 0.5
    across = np.sqrt(data["kl"] / end)
    kept = free_labels(list(zip(across * _PLOT_WIDTH, up * _PLOT_HEIGHT, strict=True)), _PLOT_WIDTH, _LABEL)
    halo = alt.Chart(data.iloc[kept]).mark_text(dy=-13, style="halo")
    word_itself = alt.Chart(data.iloc[kept]).mark_text(dy=-13)
    if looks:
        word_itself = word_itself.encode(colour(looks))
    return [layer.encode(x, y, text="text:N", fillOpacity=faded(1.0)) for layer in (halo, word_itself)]
