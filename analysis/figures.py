"""The two figures of a report: the reward-KL frontier, and reward and KL over samples.

A line is the mean over seeds, a band runs from their minimum to their maximum. Of many settings the best have a look of
their own and the rest is grey; of many runs no single evaluations are drawn, which would make an SVG of megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.charts_data import (
    Band,
    free_labels,
    frontier_band,
    frontier_end,
    frontier_steps,
    samples_band,
    square_root_ticks,
    steps_text,
)
from analysis.figure_style import INK, draw_legend, figure_with_legend, style
from analysis.looks import MOST_BANDS, OTHERS_COLOUR, Look, drawn_settings, draws_runs, looks
from analysis.summary import Comparison, SettingSummary, samples_name

_GRID_POINTS, _GREY_POINTS = 400, 60
_STEP_SIZE = (0.1, 0.05)
"""Of a step's label, as shares of the axes."""


def frontier_figure(comparison: Comparison) -> Figure:
    """Best mean reward reached within each KL, over an axis on which sqrt(KL) is evenly spaced.

    Each run's frontier starts at its initial reward and is constant beyond its own largest KL; a line ends where the
    longest run of its setting does. Beside a line stands the optimizer step at which that reward was reached, mean over
    seeds. Small marks are the evaluations themselves.
    """
    drawn, others = drawn_settings(comparison.settings)
    with style():
        figure = figure_with_legend(7.2, 4.4, [setting.name for setting in drawn])
        axes = figure.subplots()
        if not drawn:
            return _nothing_to_draw(figure, axes)
        end = frontier_end(comparison.settings)
        for setting in others:
            _draw_grey(axes, frontier_band(setting, end, _GREY_POINTS))
        with_runs = draws_runs(comparison.settings)
        marks: list[_Mark] = []
        for setting, look in zip(drawn, looks(drawn), strict=True):
            over = frontier_band(setting, end, _GRID_POINTS)
            places = range(_GRID_POINTS // 8, _GRID_POINTS, _GRID_POINTS // 4)
            _draw_band(axes, over, look, len(drawn), markersize=5, markevery=list(places))
            marks += _steps(setting, look, over, places)
            if with_runs:
                _draw_evaluations(axes, setting, look)
        _draw_budgets(axes, comparison.settings, end)
        square_root_axis(axes, end)
        axes.set_ylabel("best reward within this KL; beside it the step")
        _label_steps(axes, marks)
        draw_legend(figure, [setting.name for setting in drawn], looks(drawn))
        return figure


def curves_figure(comparison: Comparison) -> Figure:
    """Reward, gold reward where there is one, and KL of the evaluations over responses generated, side by side."""
    with_gold = any(run.evaluations.gold_reward is not None for s in comparison.settings for run in s.runs)
    gold = {"gold_reward": "gold reward"} if with_gold else {}
    names = {"reward": "reward"} | gold | {"kl": "KL, nats per response"}
    drawn, others = drawn_settings(comparison.settings)
    with style():
        figure = figure_with_legend(3.5 * len(names), 3.4, [setting.name for setting in drawn])
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
            axes.set_xlabel(samples_name(comparison.settings))
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=5)
        draw_legend(figure, [setting.name for setting in drawn], looks(drawn))
        return figure


def square_root_axis(axes: Axes, end: float) -> None:
    """For lines over u = sqrt(KL) from 0 to `end`, with ticks in nats."""
    axes.set_xlim(-0.02 * end, end)
    axes.xaxis.set_major_locator(FixedLocator([float(np.sqrt(kl)) for kl in square_root_ticks(end)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda u, _: f"{u * u:.2g}" if u * u < 10 else f"{u * u:.0f}"))
    axes.set_xlabel("KL to the initial policy, nats per response (square-root axis)")


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """`name`.png and `name`.svg on white; the same figure gives the same bytes."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with style():
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def _nothing_to_draw(figure: Figure, *panels: Axes) -> Figure:
    for axes in panels:
        axes.set_axis_off()
    figure.text(0.5, 0.5, "No finished run to draw.", ha="center", va="center")
    return figure


@dataclass(frozen=True)
class _Mark:
    """A marker of a frontier, and the step to be written beside it."""

    x: float
    y: float
    text: str
    colour: str


def _steps(setting: SettingSummary, look: Look, over: Band, places: Sequence[int]) -> list[_Mark]:
    x, y = over.x[list(places)], over.mean[list(places)]
    steps = np.array([frontier_steps(run, x**2) for run in setting.runs])  # (seeds, marks)
    texts = [steps_text(column).split(" ")[0] if np.isfinite(column).any() else "" for column in steps.T]
    return [_Mark(*one, look.colour) for one in zip(x.tolist(), y.tolist(), texts, strict=True) if one[2]]


def _label_steps(axes: Axes, marks: Sequence[_Mark]) -> None:
    """As many as fit without touching; in the shares of the axes, which constrained layout may still move."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    places = [((mark.x - left) / (right - left), (mark.y - low) / (high - low)) for mark in marks]
    for place in free_labels(places, 1.0, _STEP_SIZE):
        mark = marks[place]
        axes.annotate(
            f"step {mark.text}",
            (mark.x, mark.y),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize="x-small",
            color=mark.colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _draw_budgets(axes: Axes, settings: Sequence[SettingSummary], end: float) -> None:
    for budget in sorted({budget.kl_budget for setting in settings for budget in setting.budgets}):
        if np.sqrt(budget) > end:
            continue
        axes.axvline(float(np.sqrt(budget)), color=INK, linewidth=0.8, alpha=0.35, zorder=0)
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
