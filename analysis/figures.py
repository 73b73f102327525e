"""The two figures of a report: the reward-KL frontier, and reward and KL over samples.

Drawn through matplotlib's object API on the Agg canvas: no window system, no global state. A line is the mean over
seeds, a band runs from their minimum to their maximum. Of many settings the best have a look of their own and the rest
is grey; of many runs no single evaluations are drawn, which would make an SVG of megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.charts_data import Band, frontier_band, frontier_end, samples_band, square_root_ticks
from analysis.looks import MOST_BANDS, OTHERS_COLOUR, Look, drawn_settings, draws_runs, looks
from analysis.summary import Comparison, SettingSummary

_INK = "#20262E"
_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "axes.titlelocation": "left"},
    **{"text.parse_math": False},  # a run's text may hold dollars
    **{"font.size": 10.0, "legend.frameon": False, "svg.hashsalt": "analysis", "figure.constrained_layout.use": True},
}
_GRID_POINTS, _GREY_POINTS = 400, 60
_LEGEND_LINE = 0.22  # inches


def frontier_figure(comparison: Comparison) -> Figure:
    """Best mean reward reached within each KL, over an axis on which sqrt(KL) is evenly spaced.

    Each run's frontier starts at its initial reward and is constant beyond its own largest KL; a line ends where the
    longest run of its setting does. Small marks are the evaluations themselves.
    """
    drawn, others = drawn_settings(comparison.settings)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(7.2, 4.4, drawn)
        axes = figure.subplots()
        if not drawn:
            return _nothing_to_draw(figure, axes)
        end = frontier_end(comparison.settings)
        for setting in others:
            _draw_grey(axes, frontier_band(setting, end, _GREY_POINTS))
        with_runs = draws_runs(comparison.settings)
        for setting, look in zip(drawn, looks(drawn), strict=True):
            over = frontier_band(setting, end, _GRID_POINTS)
            _draw_band(axes, over, look, len(drawn), markersize=5, markevery=(_GRID_POINTS // 8, _GRID_POINTS // 4))
            if with_runs:
                _draw_evaluations(axes, setting, look)
        _draw_budgets(axes, comparison.settings, end)
        axes.set_xlim(-0.02 * end, end)
        axes.xaxis.set_major_locator(FixedLocator([float(np.sqrt(kl)) for kl in square_root_ticks(end)]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda u, _: f"{u * u:.2g}" if u * u < 10 else f"{u * u:.0f}"))
        axes.set_xlabel("KL to the initial policy, nats per response (square-root axis)")
        axes.set_ylabel("best reward within this KL")
        _legend(figure, drawn)
        return figure


def curves_figure(comparison: Comparison) -> Figure:
    """Reward, gold reward where there is one, and KL of the evaluations over responses generated, side by side."""
    with_gold = any(run.evaluations.gold_reward is not None for s in comparison.settings for run in s.runs)
    gold = {"gold_reward": "gold reward"} if with_gold else {}
    names = {"reward": "reward"} | gold | {"kl": "KL, nats per response"}
    drawn, others = drawn_settings(comparison.settings)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.5 * len(names), 3.4, drawn)
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        if not drawn:
            return _nothing_to_draw(figure, *panels)
        for axes, (quantity, title) in zip(panels, names.items(), strict=True):
            for setting in others:
                if (over := samples_band(setting, quantity, _GREY_POINTS)) is not None:
                    _draw_grey(axes, over)
            for setting, look in zip(drawn, looks(drawn), strict=True):
                if (over := samples_band(setting, quantity)) is not None:
                    _draw_band(axes, over, look, len(drawn), markersize=4, markevery=max(1, len(over.x) // 8))
            axes.set_title(title)
            axes.set_xlabel("responses generated")
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=5)
        _legend(figure, drawn)
        return figure


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """`name`.png and `name`.svg on white; the same figure gives the same bytes."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with matplotlib.rc_context(_STYLE):
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def _figure(width: float, height: float, settings: Sequence[SettingSummary]) -> Figure:
    """Inches; the legend's lines come on top of `height`, so that many settings do not eat the axes."""
    lines = -(-len(settings) // _legend_columns(width, settings))
    figure = Figure(figsize=(width, height + _LEGEND_LINE * lines))
    FigureCanvasAgg(figure)
    return figure


def _nothing_to_draw(figure: Figure, *panels: Axes) -> Figure:
    for axes in panels:
        axes.set_axis_off()
    figure.text(0.5, 0.5, "No finished run to draw.", ha="center", va="center")
    return figure


def _draw_budgets(axes: Axes, settings: Sequence[SettingSummary], end: float) -> None:
    for budget in sorted({budget.kl_budget for setting in settings for budget in setting.budgets}):
        if np.sqrt(budget) > end:
            continue
        axes.axvline(float(np.sqrt(budget)), color=_INK, linewidth=0.8, alpha=0.35, zorder=0)
        axes.annotate(
            f"budget {budget:g}",
            (float(np.sqrt(budget)), 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 4),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="bottom",
            fontsize="small",
            alpha=0.7,
        )


def _draw_evaluations(axes: Axes, setting: SettingSummary, look: Look) -> None:
    for run in setting.runs:
        axes.plot(
            np.sqrt(np.maximum(run.evaluations.kl, 0.0)),
            run.evaluations.reward,
            look.marker,
            color=look.colour,
            markersize=3.0,
            alpha=0.35,
            markeredgewidth=0,
        )


def _draw_band(axes: Axes, over: Band, look: Look, bands: int, markersize: float, markevery: Any) -> None:
    axes.plot(
        over.x,
        over.mean,
        color=look.colour,
        linestyle=(0, look.dash),
        linewidth=2.0,
        marker=look.marker,
        markersize=markersize,
        markevery=markevery,
    )
    alpha = 0.18 if bands <= MOST_BANDS else 0.05
    axes.fill_between(over.x, over.low, over.high, color=look.colour, alpha=alpha, linewidth=0)


def _draw_grey(axes: Axes, over: Band) -> None:
    axes.plot(over.x, over.mean, color=OTHERS_COLOUR, linewidth=0.8, alpha=0.45, zorder=1)


def _legend_columns(width: float, settings: Sequence[SettingSummary]) -> int:
    longest = max((len(setting.name) for setting in settings), default=0)
    return max(1, min(len(settings), int(width * 11 / (longest + 8))))  # 11 letters an inch; the line sample takes 8


def _legend(figure: Figure, settings: Sequence[SettingSummary]) -> None:
    handles = [
        Line2D([], [], color=k.colour, linestyle=(0, k.dash), marker=k.marker, markersize=4, linewidth=2.0)
        for k in looks(settings)
    ]
    columns = _legend_columns(figure.get_figwidth(), settings)
    names = [setting.name for setting in settings]
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=3.5)
