"""Findings -> the report's charts, each where there is something to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.ablation import ABLATION_QUANTITIES, Ablation, AblationPoint
from analysis.charts_data import (
    evaluations_band,
    free_labels,
    frontier_band,
    frontier_end,
    frontier_steps,
    square_root_ticks,
    thinned,
)
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
from analysis.findings import Findings
from analysis.looks import Look, algorithm_looks, drawn_settings, draws_runs, looks
from analysis.optimum import ReferenceSamples, best_of_n
from analysis.overoptimization import GoldFit
from analysis.statistics import Interval
from analysis.summary import ComparedRun, SettingSummary, samples_name
from analysis.tables import interval_text
from analysis.tables import number as number_text

# Points of a line: with many settings the page would grow beyond what a phone likes to load.
_POINTS, _POINTS_OF_MANY, _POINTS_OF_OTHERS = 120, 60, 20
# Single evaluations in one chart; above it every n-th is drawn.
_MOST_MARKS = 3000
# Grey lines: more of them are one grey area of megabytes.
MOST_GREY = 100
_FRONTIER_HEIGHT = 400
# Labels are put where they would not touch on a phone: pixels of its plot, and of a label.
_PLOT_WIDTH, _PLOT_HEIGHT, _LABEL = 310, 340, (46, 15)
_MARKS_OF_A_LINE = 6
_QUANTITIES = {"reward": "Reward", "gold_reward": "Gold reward", "kl": "KL"}
UNITS = {"reward": "score of the reward model", "gold_reward": "gold score", "kl": "nats per response"}
_OPTIMUM_CAPTION = (
    " Dashed line: the optimum, the most that any policy gains for its KL, estimated from the initial policy's "
    "responses (dotted where too few carry it); diamonds: best-of-n."
)
# Values that fit beside one another below an axis on a phone.
_MOST_UPRIGHT = 6


@dataclass(frozen=True)
class Scene:
    """Who is drawn how."""

    settings: Sequence[SettingSummary]
    """Drawn with a look of their own."""
    others: Sequence[SettingSummary]
    """Grey."""
    looks: dict[str, Look]
    """By name of the setting."""
    with_runs: bool
    """Whether single runs are drawn."""
    undrawn: int
    """Settings that are not even grey."""

    @property
    def points(self) -> int:
        return _POINTS_OF_MANY if self.others else _POINTS

    @property
    def runs(self) -> list[tuple[str, ComparedRun]]:
        """(name of its setting, run) of every run that is drawn."""
        return [(setting.name, run) for setting in self.settings for run in setting.runs] if self.with_runs else []

    @property
    def every(self) -> int:
        """Which evaluations of a run are drawn, so that a chart holds at most _MOST_MARKS: every n-th."""
        return max(1, -(-sum(len(run.evaluations.kl) for _, run in self.runs) // _MOST_MARKS))

    def caption(self, text: str, of_runs: str = "") -> str:
        """`text` with what was left out of the charts."""
        said = [text, of_runs if self.with_runs else ""]
        if self.others:
            count = len(self.settings) + len(self.others) + self.undrawn
            grey = f"next {len(self.others)}" if self.undrawn else "others"
            said.append(
                f"Of {count} settings the {len(self.settings)} of the highest KL efficiency are told apart; the {grey} "
                "are grey."
            )
        if not self.with_runs:
            said.append("There are too many runs to draw one by one: means and bands only, with fewer points.")
        elif self.every > 1:
            said.append(f"Of single evaluations every {self.every}th is drawn.")
        return " ".join(part for part in said if part)


def scene(settings: Sequence[SettingSummary]) -> Scene:
    drawn, others = drawn_settings(settings)
    by_name = dict(zip((setting.name for setting in drawn), looks(drawn), strict=True))
    return Scene(drawn, others[:MOST_GREY], by_name, draws_runs(settings), len(others[MOST_GREY:]))


def charts(findings: Findings) -> list[Figure]:
    """In the order of the page; the first is the frontier. Empty where no run was compared."""
    settings = findings.comparison.settings
    if not settings:
        return []
    made = [frontier_figure(settings, findings.comparison.reference), curves_figure(settings)]
    if findings.gold_fits:
        made.append(overoptimization_figure(findings.gold_fits))
    keys = dict.fromkeys(ablation.key for ablation in findings.ablations)
    return made + [ablation_figure(key, [one for one in findings.ablations if one.key == key]) for key in keys]


def seeds_text(settings: Sequence[SettingSummary]) -> str:
    """`3 seeds`, or `2 to 3 seeds`."""
    counts = sorted({len(setting.runs) for setting in settings})
    few = f"{counts[0]} to " if len(counts) > 1 else ""
    return f"{few}{counts[-1]} seed{'s' if counts[-1] > 1 else ''}"


def _band_note(settings: Sequence[SettingSummary]) -> str:
    seeds = seeds_text(settings)
    return "Lines are single runs." if seeds == "1 seed" else f"Lines: mean over {seeds}; bands: minimum to maximum."


def frontier_figure(settings: Sequence[SettingSummary], reference: ReferenceSamples | None = None) -> Figure:
    """The best reward within each KL, and the step at which it was reached; for at least one setting. With reference
    samples, what is possible beside it."""
    shown, end = scene(settings), frontier_end(settings)
    x, y = _kl_axis(end), alt.Y("mean:Q", title="best reward within this KL, score", scale=_padded(zero=False))
    means = joined([_frontier_rows(setting, end, shown.points, place) for place, setting in enumerate(shown.settings)])
    marked = means.query("mark")
    layers: list[Any] = _budget_line(settings[0].headline.kl_budget, x)
    if reference is not None:
        layers += _possible(reference, end, x, y)
    others = joined([_frontier_rows(setting, end, _POINTS_OF_OTHERS, 0) for setting in shown.others])
    if shown.others:
        layers.append(grey_lines(others, x, y))
    layers += [bands(means, x, y, shown.looks), lines(means, x, y, shown.looks)]
    hover: list[alt.Chart] = []
    tooltip = [word("line", "mean of"), number("kl", "KL up to"), number("mean", "best reward")]
    tooltip += [number("low", "least"), number("high", "most"), word("step", "reached at step")]
    if shown.with_runs:
        said = [word("run", "run"), word("line", "setting"), number("kl", "KL"), number("mean", "reward")]
        said.append(number("step", "step", 0))
        layers.append(points(_evaluations(shown, end), x, y, shown.looks, said, size=26, opacity=0.75, nearest="near"))
    else:
        hover = [points(joined([means, others]), x, y, shown.looks, tooltip, size=60, opacity=0.0, nearest="near")]
    layers += [points(marked, x, y, shown.looks, tooltip, size=60), *_step_labels(marked, end, x, y)]
    ends = [
        f"{one.name} reaches {number_text(one.headline.gain.mean + one.reward_before.mean)} within "
        f"{one.headline.kl_budget:g} nats"
        for one in shown.settings
    ]
    description = (
        f"Line chart of the best reward within each KL. {'; '.join(ends)}. The table of results has the numbers."
    )
    caption = shown.caption(
        "Best reward within each KL, chosen on half of the prompts and scored on the other half: a line can dip. "
        "Lines: means over seeds, as far as all runs went; bands: minimum to maximum. Beside it: the optimizer step at "
        f"which the best reward was reached.{_OPTIMUM_CAPTION if reference is not None else ''}",
        "Small marks are single evaluations.",
    )
    note = _band_note(shown.settings) + " Small marks: single evaluations." * shown.with_runs
    note += " Dashed: the optimum. Diamonds: best-of-n." * (reference is not None)
    panel = Panel("Best reward within each KL", description, layered(layers), _FRONTIER_HEIGHT, hover)
    return Figure("frontier", "Reward-KL frontier", caption, note, shown.looks, [panel])


def _kl_axis(end: float) -> alt.X:
    ticks = alt.Axis(values=square_root_ticks(end), format="~r")
    scale = alt.Scale(type="sqrt", domain=[0, end], nice=False)
    return alt.X("kl:Q", title="KL to the initial policy, nats (square-root axis)", scale=scale, axis=ticks)


def _padded(**more: Any) -> alt.Scale:
    return alt.Scale(padding=8, **more)


def _frontier_rows(setting: SettingSummary, end: float, count: int, place: int) -> pd.DataFrame:
    """Columns: line, kl, mean, low, high; `step` is text, over seeds; `mark`: whether it carries a marker."""
    made = frontier_band(setting, end, count)
    steps = np.array([frontier_steps(run, made.x) for run in setting.runs])  # (seeds, points)
    # Evenly spread; those of neighbouring settings do not coincide where their lines do.
    gap = count / _MARKS_OF_A_LINE
    places = np.append(np.arange(gap * (0.4 + 0.15 * (place % 4)), count - 0.5 * gap, gap).astype(int), count - 1)
    return frame(
        line=setting.name,
        kl=made.x,
        mean=made.mean,
        low=made.low,
        high=made.high,
        step=[_steps_text(column) for column in steps.T],
        mark=np.isin(np.arange(count), places),
    )


def _steps_text(steps: np.ndarray) -> str:
    """Of the seeds: their mean, and between which they lie."""
    known = steps[np.isfinite(steps)]
    if not len(known):
        return "not logged"
    if known.min() == known.max():
        return f"{known[0]:.0f}"
    return f"{known.mean():.0f} ({known.min():.0f} to {known.max():.0f} over seeds)"


def _evaluations(shown: Scene, end: float) -> pd.DataFrame:
    found = []
    for name, run in shown.runs:
        kl, reward, step = (
            values[:: shown.every]
            for values in (np.maximum(run.evaluations.kl, 0.0), run.evaluations.reward, run.evaluations.step)
        )
        inside = kl <= end
        found.append(frame(line=name, run=run.record.id, kl=kl[inside], mean=reward[inside], step=step[inside]))
    return joined(found)


def _budget_line(budget: float, x: alt.X) -> list[alt.Chart]:
    """Where the settings are compared."""
    data = pd.DataFrame({"kl": [budget], "text": [f"every run reached {budget:g}"]})
    text = alt.Chart(data).mark_text(angle=270, align="left", baseline="bottom", dx=6, dy=-3, fillOpacity=0.75)
    return [
        alt.Chart(data).mark_rule(strokeOpacity=0.35).encode(x),
        text.encode(x, y=alt.value(_FRONTIER_HEIGHT - 10), text="text:N"),
    ]


def _possible(reference: ReferenceSamples, end: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The optimum, dotted where too few samples carry it, and best-of-n."""
    baseline = float(reference.baseline.mean())
    optimum = reference.optimum(np.linspace(0.0, np.sqrt(end), _POINTS) ** 2)
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
        alt.Chart(line[trusted]).mark_line(strokeWidth=1.5, strokeDash=[7, 4], strokeOpacity=0.7).encode(x, y),
        alt.Chart(line[beyond]).mark_line(strokeWidth=1.5, strokeDash=[1, 4], strokeOpacity=0.7).encode(x, y),
        alt.Chart(inside).mark_point(shape="diamond", filled=False, size=45, opacity=0.8).encode(x, y, tooltip=said),
    ]


def _step_labels(marked: pd.DataFrame, end: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The step beside the markers, where it is another than at the line's marker before, and as many as fit without
    touching another label, marker or budget's name."""
    low, high = float(marked["low"].to_numpy().min()), float(marked["high"].to_numpy().max())
    up = (marked["mean"] - low) / (high - low) if high > low else 0.0 * marked["mean"] + 0.5
    across = np.sqrt(marked["kl"] / end)
    kept = free_labels(list(zip(across * _PLOT_WIDTH, up * _PLOT_HEIGHT, strict=True)), _PLOT_WIDTH, _LABEL)
    labels = marked.iloc[kept][["line", "kl", "mean"]].copy()
    labels["text"] = [f"step {text.split(' ')[0]}" for text in marked.iloc[kept]["step"]]
    labels = labels[labels["text"] != labels.groupby("line")["text"].shift()]
    halo = alt.Chart(labels).mark_text(dy=-13, style="halo")
    word_itself = alt.Chart(labels).mark_text(dy=-13)
    return [layer.encode(x, y, text="text:N", fillOpacity=faded(1.0)) for layer in (halo, word_itself)]


def curves_figure(settings: Sequence[SettingSummary]) -> Figure:
    """Reward, gold reward and KL over responses generated, for at least one setting; a panel for each that any run
    has."""
    shown, over = scene(settings), samples_name(settings)
    with_gold = any(run.evaluations.gold_reward is not None for setting in settings for run in setting.runs)
    names = [name for name in _QUANTITIES if with_gold or name != "gold_reward"]
    caption = shown.caption(
        f"Evaluations over the {over} until then. Thick lines: means over the seeds that got as far; bands: minimum to "
        "maximum.",
        "Thin lines: single runs.",
    )
    panels = [_curves_panel(shown, name, over) for name in names]
    return Figure("curves", f"Over {over}", caption, _band_note(shown.settings), shown.looks, panels)


def _curves_panel(shown: Scene, name: str, over: str) -> Panel:
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
    others = _means(shown.others, name, _POINTS_OF_OTHERS)
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
    scale = alt.Scale(zero=True) if name == "kl" else _padded(zero=False)
    return alt.Y("mean:Q", title=UNITS[name], scale=scale, axis=alt.Axis(tickCount=6))


def line_with_marks(data: pd.DataFrame, x: Any, y: Any, looks: dict[str, Look], tooltip: list[Any]) -> list[Any]:
    """A line for each name, with markers where the column `mark` says so."""
    marked = data.query("mark") if len(data) else data
    return [lines(data, x, y, looks), points(marked, x, y, looks, tooltip)]


def _means(settings: Sequence[SettingSummary], name: str, count: int) -> pd.DataFrame:
    return joined([band_rows(one.name, one.runs, name, "samples", place, count) for place, one in enumerate(settings)])


def band_rows(
    line: str, runs: Sequence[ComparedRun], name: str, over: str, place: int, count: int | None = None
) -> pd.DataFrame:
    """A quantity of the evaluations over seeds: line, x, mean, low, high, mark, runs; no row where no run has it."""
    made = evaluations_band(runs, name, over, count)
    if made is None:
        return pd.DataFrame()
    every = max(1, len(made.x) // _MARKS_OF_A_LINE)
    marked = np.arange(len(made.x)) % every == min(place % 4, every - 1)
    columns = {"x": made.x, "mean": made.mean, "low": made.low, "high": made.high}
    return frame(line=line, **columns, mark=marked, runs=len(runs))


def _single_runs(shown: Scene, name: str) -> pd.DataFrame:
    found = []
    for setting, run in shown.runs:
        values = getattr(run.evaluations, name)
        if values is not None:
            kept = thinned(np.arange(len(values)), -(-len(values) // shown.every))
            x = run.evaluations.samples[kept].astype(float)
            found.append(frame(line=setting, run=run.record.id, x=x, mean=values[kept]))
    return joined(found)


def overoptimization_figure(fits: Sequence[GoldFit]) -> Figure:
    """Gold reward gained over KL: evaluations, and the line fitted through all seeds; for at least one fit."""
    shown, end = scene([fit.setting for fit in fits]), frontier_end([fit.setting for fit in fits])
    drawn = [fit for fit in fits if fit.setting.name in shown.looks]
    x, y = _kl_axis(end), alt.Y("mean:Q", title="gold reward gained, gold score", scale=_padded())
    fitted, peaks, marks = [], [], []
    for fit in drawn:
        reach = np.sqrt(min(end, max(run.curve.largest_kl for run in fit.setting.runs)))
        d = np.linspace(0.0, reach, _POINTS_OF_MANY)
        fitted.append(frame(line=fit.setting.name, kl=d**2, mean=fit.gain(d)))
        if fit.peak_kl is not None and fit.peak_kl <= end:
            peaks.append(frame(line=fit.setting.name, kl=[fit.peak_kl], mean=fit.gain(np.sqrt([fit.peak_kl]))))
    for name, run in shown.runs:
        gold, kl = run.evaluations.gold_reward, np.maximum(run.evaluations.kl, 0.0)
        if gold is not None:
            inside = (kl <= end) & (np.arange(len(kl)) % shown.every == 0)
            marks.append(frame(line=name, run=run.record.id, kl=kl[inside], mean=(gold - gold[0])[inside]))
    layers: list[Any] = [lines(joined(fitted), x, y, shown.looks)]
    said = [number("kl", "KL"), number("mean", "gold gain")]
    if marks:
        tooltip = [word("run", "run"), word("line", "setting"), *said]
        layers.append(points(joined(marks), x, y, shown.looks, tooltip, size=26, opacity=0.75, nearest="near_gold"))
    if peaks:
        layers.append(points(joined(peaks), x, y, shown.looks, [word("line", "highest of"), *said], size=160))
    note = "Marks: evaluations; lines: d (alpha - beta log d) with d = sqrt(KL), fitted through all seeds."
    of_peaks = (
        "A large mark stands where a line is highest: beyond it more of the reward model is less of what was wanted."
    )
    caption = shown.caption(
        "Gold reward gained over the initial policy: marks are evaluations, lines the fit d (alpha - beta log d) with "
        "d = sqrt(KL) of Gao, Schulman and Hilton (2022) through all seeds, as far as their runs went.",
        of_peaks * bool(peaks),
    )
    courses = "; ".join(f"{fit.setting.name} {_course(fit)}" for fit in drawn)
    description = f"Gold reward gained over KL with fitted lines: {courses}. The table below has the fits."
    panel = Panel("Gold reward gained", description, layered(layers), 320)
    note += " Large mark: where a line is highest." * bool(peaks)
    return Figure("overoptimization", "Over-optimisation", caption, note, shown.looks, [panel])


def _course(fit: GoldFit) -> str:
    """What the line does within the reach of its runs."""
    if fit.peak_kl is not None:
        return f"is highest at {fit.peak_kl:.1f} nats"
    said = {"undecided": "bends no more than its seeds differ", "falls": "only falls"}
    return said.get(fit.trend, "still rises where its runs end")


def ablation_figure(key: str, ablations: Sequence[Ablation]) -> Figure:
    """KL efficiency, last reward and last KL over one number varied, the same in all `ablations`: a line for each
    algorithm."""
    names = [one.algo for one in ablations]
    by_name = dict(zip(names, algorithm_looks(names), strict=True))
    panels = [_ablation_panel(title, key, ablations, by_name, of) for title, of in ABLATION_QUANTITIES.items()]
    note = "Means over seeds; bars: 95 % intervals, minimum to maximum with fewer than 3 seeds."
    budget = ablations[0].points[0].setting.headline.kl_budget
    caption = (
        f"Means over seeds at each value of {key}; KL efficiency within {budget:g} nats, which every run reached. "
        "Bars: 95 % intervals, minimum to maximum with fewer than 3 seeds."
    )
    return Figure(f"over_{key}", f"Over {key}", caption, note, by_name, panels)


def _ablation_panel(
    title: str,
    key: str,
    ablations: Sequence[Ablation],
    by_name: dict[str, Look],
    of: Callable[[AblationPoint], Interval],
) -> Panel:
    made = []
    for ablation in ablations:
        found = [of(point) for point in ablation.points]
        columns = {"mean": [one.mean for one in found], "text": [interval_text(one) for one in found]}
        columns |= {"low": [one.minimum if one.low is None else one.low for one in found]}
        columns |= {"high": [one.maximum if one.high is None else one.high for one in found]}
        made.append(frame(line=ablation.algo, x=[point.value for point in ablation.points], mark=True, **columns))
    data = joined(made)
    is_log = all(ablation.is_log for ablation in ablations)
    values = sorted(set(data["x"]))
    # Not by parity, the default of the other axes: on a logarithmic one that hides every second label, and again.
    fitting: dict[str, Any] = {"labelOverlap": "greedy", "labelSeparation": 4}
    if _MOST_UPRIGHT < len(values) <= 2 * _MOST_UPRIGHT:  # these fit aslant, though the boxes around them touch
        fitting = {"labelOverlap": False, "labelAngle": -60}
    near = {"nice": False, "padding": 16}
    scale = alt.Scale.from_dict(near | ({"type": "log"} if is_log else {"type": "linear", "zero": False}))
    x = alt.X(
        "x:Q",
        title=f"{key}{' (logarithmic axis)' * is_log}",
        scale=scale,
        axis=alt.Axis(values=values, format="~r", grid=False, **fitting),
    )
    y = alt.Y("mean:Q", title="", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    low = y.copy()
    low.shorthand = "low:Q"
    bars = alt.Chart(data).mark_rule(strokeWidth=1.5).encode(x, low, alt.Y2("high"), colour(by_name))
    tooltip = [word("line", "algorithm"), alt.Tooltip("x:Q", title=key, format="~r"), word("text", "value")]
    layers = [bars, *line_with_marks(data, x, y, by_name, tooltip)]
    said = [
        f"{one.algo}: " + ", ".join(f"{number_text(of(point).mean)} at {point.value:g}" for point in one.points)
        for one in ablations
    ]
    return Panel(title, f"{title} over {key}. {'; '.join(said)}.", layered(layers), 260)
