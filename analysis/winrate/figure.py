"""Figure 1: a stacked bar per pair of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.winrate.intervals import rate_text
from analysis.winrate.results import PairResult

# Dark, light and middle, and the last hatched: told apart in grey print and by colour-blind readers.
_SEGMENTS = (
    ("left model wins", "#0B4F86", "", "white"),
    ("tie or inconsistent", "#EFEFEF", "", "black"),
    ("right model wins", "#F0A04B", "////", "black"),
)
_STYLE: Any = {
    "font.size": 10.0,
    "svg.hashsalt": "analysis",
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names may hold dollars
}
_NARROW = 0.06
"""Share of a bar below which a segment has no room for its number."""


def win_rate_figure(pairs: Sequence[PairResult], judge: str) -> Figure:
    """Shares of comparisons that have a verdict in both orders; at the right the win rate of the left model."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 1.5 + 0.55 * len(pairs)))
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for place, pair in enumerate(pairs):
            _draw_bar(axes, place, pair)
        axes.set_yticks(range(len(pairs)), [f"{pair.model_a} vs {pair.model_b}" for pair in pairs])
        axes.invert_yaxis()  # the first pair on top
        axes.text(1.02, -0.5, "win rate of the left", va="center", fontsize="small")
        axes.set_xlim(0.0, 1.0)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set_xlabel(f"share of comparisons, judged by {judge}")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=name)
            for name, colour, hatch, _ in _SEGMENTS
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
        return figure


def _draw_bar(axes: Axes, place: int, pair: PairResult) -> None:
    counts = (pair.wins, pair.ties + pair.inconsistent, pair.losses)
    total = sum(counts)
    if total == 0:
        axes.text(0.5, place, "no verdict could be read", ha="center", va="center", style="italic")
        return
    left = 0.0
    for count, (_, colour, hatch, ink) in zip(counts, _SEGMENTS, strict=True):
        share = count / total
        axes.barh(place, share, 0.62, left=left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6)
        if share >= _NARROW:
            box = {"facecolor": colour, "edgecolor": "none", "pad": 1.5} if hatch else None
            axes.text(left + share / 2, place, f"{share:.0%}", ha="center", va="center", color=ink, bbox=box)
        left += share
    axes.text(1.02, place, rate_text(pair.win_rate), va="center", fontsize="small")
