"""One number varied: KL efficiency, reward and KL over its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from analysis.ablation import ABLATION_QUANTITIES, Ablation, AblationPoint
from analysis.drawing import Figure, Panel, colour, frame, joined, layered, line_with_marks, word
from analysis.looks import Look, algorithm_looks
from analysis.statistics import Interval
from analysis.tables import interval_text
from analysis.tables import number as number_text

# Values that fit beside one another below an axis on a phone.
_MOST_UPRIGHT = 6


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
