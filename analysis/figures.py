"""The two figures of a report: the reward-KL frontier, and reward and KL over samples.

Drawn through matplotlib's object API on the Agg canvas: no window system, no global state. One colour and one dash
pattern per algorithm and one marker per line, so that grey print still tells them apart. A line is the mean over seeds,
a band runs from their minimum to their maximum.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.summary import Comparison, SettingSummary

# Okabe and Ito's palette, made for colour-blind readers, without black and yellow: they vanish on a dark or white page.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# (offset, (on, off, ...)) in line widths.
_DASHES = (
    (0, ()),
    (0, (5, 2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (1.2, 1.2)),
    (0, (8, 2, 2, 2)),
    (0, (3, 1)),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The known algorithms keep their look from report to report, whichever of them a sweep holds.
_KNOWN = ("apa", "ppo", "awr", "ilql")

# Everything that is not data is drawn in this ink, which `inline_svg` turns into the page's text colour.
_INK = "#20262E"
_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "axes.titlelocation": "left"},
    **{"font.size": 10.0, "legend.frameon": False, "svg.hashsalt": "analysis", "figure.constrained_layout.use": True},
}
_GRID_POINTS = 400
_LEGEND_LINE = 0.22  # inches


@dataclass(frozen=True)
class _Look:
    colour: str
    dash: Any
    marker: str


def frontier_figure(comparison: Comparison) -> Figure:
    """Best mean reward reached within each KL, over an axis on which sqrt(KL) is evenly spaced.

    Each run's frontier starts at its initial reward and is constant beyond its own largest KL; a line ends where the
    longest run of its setting does. Small marks are the evaluations themselves.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(7.2, 4.4, comparison.settings)
        axes = figure.subplots()
        if not comparison.settings:
            return _nothing_to_draw(figure, axes)
        looks = _looks(comparison.settings)
        end = _frontier_end(comparison.settings)
        for setting, look in zip(comparison.settings, looks, strict=True):
            _draw_frontier(axes, setting, look, end)
        for budget in sorted({b.kl_budget for setting in comparison.settings for b in setting.budgets}):
            if np.sqrt(budget) <= end:
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
        axes.set_xlim(-0.02 * end, end)
        axes.xaxis.set_major_locator(FixedLocator(_square_root_ticks(end)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda u, _: f"{u * u:.2g}" if u * u < 10 else f"{u * u:.0f}"))
        axes.set_xlabel("KL to the initial policy, nats per response (square-root axis)")
        axes.set_ylabel("best reward within this KL")
        _legend(figure, comparison.settings, looks)
        return figure


def curves_figure(comparison: Comparison) -> Figure:
    """Reward, gold reward where there is one, and KL of the evaluations over responses generated, side by side."""
    with_gold = any(run.evaluations.gold_reward is not None for s in comparison.settings for run in s.runs)
    gold = {"gold_reward": "gold reward"} if with_gold else {}
    names = {"reward": "reward"} | gold | {"kl": "KL, nats per response"}
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.5 * len(names), 3.4, comparison.settings)
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        if not comparison.settings:
            return _nothing_to_draw(figure, *panels)
        looks = _looks(comparison.settings)
        for axes, (quantity, title) in zip(panels, names.items(), strict=True):
            for setting, look in zip(comparison.settings, looks, strict=True):
                _draw_over_samples(axes, setting, look, quantity)
            axes.set_title(title)
            axes.set_xlabel("responses generated")
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=5)
        _legend(figure, comparison.settings, looks)
        return figure


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """`name`.png and `name`.svg on white; the same figure gives the same bytes."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with matplotlib.rc_context(_STYLE):
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element on no background, in the page's own text colour and font.

    `name` goes before every id, since ids of several figures on one page would collide.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"(?i)" + _INK, "currentColor", text)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    # As wide as its column, but no wider than where its 10-point text looks like the page's.
    largest = round(figure.get_figwidth() * 72 * 1.3)
    opening = f'<svg role="img" aria-label="{escape(description)}" style="max-width: {largest}px"'
    return text.replace("<svg", opening, 1)


def _figure(width: float, height: float, settings: Sequence[SettingSummary]) -> Figure:
    """Inches; the legend's lines come on top of `height`, so that a sweep of many settings does not eat its axes."""
    lines = -(-len(settings) // _legend_columns(width, settings))
    figure = Figure(figsize=(width, height + _LEGEND_LINE * lines))
    FigureCanvasAgg(figure)
    return figure


def _nothing_to_draw(figure: Figure, *panels: Axes) -> Figure:
    for axes in panels:
        axes.set_axis_off()
    figure.text(0.5, 0.5, "No finished run to draw.", ha="center", va="center")
    return figure


def _looks(settings: Sequence[SettingSummary]) -> list[_Look]:
    """Colour and dash by algorithm, marker by place in the list."""
    others = sorted({setting.algo for setting in settings} - set(_KNOWN))
    algos = [*_KNOWN, *others]
    looks = []
    for place, setting in enumerate(settings):
        index = algos.index(setting.algo) % len(_COLOURS)
        looks.append(_Look(_COLOURS[index], _DASHES[index], _MARKERS[place % len(_MARKERS)]))
    return looks


def _frontier_end(settings: Sequence[SettingSummary]) -> float:
    """sqrt(KL) at the right edge: what the runs spent, at most twice the largest budget, so that one run that flew off
    does not squeeze the rest; never left of the headline budget."""
    largest = max(run.curve.largest_kl for setting in settings for run in setting.runs)
    budgets = [budget.kl_budget for setting in settings for budget in setting.budgets]
    headline = max(setting.headline.kl_budget for setting in settings)
    return float(np.sqrt(max(headline, min(largest, 2.0 * max(budgets))))) * 1.04


def _square_root_ticks(end: float) -> list[float]:
    """About six KL values of one or two digits, about evenly spaced in u = sqrt(KL) from 0 to `end`; in units of u."""
    wanted = (np.linspace(0.0, end / 1.04, 7)[1:]) ** 2
    ticks = {0.0} | {float(f"{kl:.1g}") if kl < 10 else float(f"{kl:.2g}") for kl in wanted}
    return sorted(float(np.sqrt(kl)) for kl in ticks if np.sqrt(kl) <= end)


def _draw_frontier(axes: Axes, setting: SettingSummary, look: _Look, end: float) -> None:
    own_end = min(end, float(np.sqrt(max(run.curve.largest_kl for run in setting.runs))))
    u = np.linspace(0.0, own_end, _GRID_POINTS)
    rewards = np.array([run.evaluations.reward[0] + run.curve.gain(u**2) for run in setting.runs])  # (seeds, points)
    axes.plot(
        u,
        rewards.mean(axis=0),
        color=look.colour,
        linestyle=look.dash,
        linewidth=2.0,
        marker=look.marker,
        markersize=5,
        markevery=(_GRID_POINTS // 8, _GRID_POINTS // 4),
    )
    axes.fill_between(u, rewards.min(axis=0), rewards.max(axis=0), color=look.colour, alpha=0.18, linewidth=0)
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


def _draw_over_samples(axes: Axes, setting: SettingSummary, look: _Look, quantity: str) -> None:
    """Mean and band over the runs that got as far; between its own evaluations a run is taken as linear."""
    runs = [(run.evaluations.samples, getattr(run.evaluations, quantity)) for run in setting.runs]
    runs = [(samples, values) for samples, values in runs if values is not None]
    if not runs:
        return
    grid = np.unique(np.concatenate([samples for samples, _ in runs]))
    grid = grid[np.isfinite(grid)]
    curves = np.full((len(runs), len(grid)), np.nan)
    for row, (samples, values) in zip(curves, runs, strict=True):
        known = np.isfinite(samples) & np.isfinite(values)
        if known.any():
            row[:] = np.interp(grid, samples[known], values[known], left=np.nan, right=np.nan)
    reached = np.isfinite(curves).any(axis=0)
    grid, curves = grid[reached], curves[:, reached]
    mean = np.nanmean(curves, axis=0)
    every = max(1, len(grid) // 8)
    axes.plot(
        grid,
        mean,
        color=look.colour,
        linestyle=look.dash,
        linewidth=2.0,
        marker=look.marker,
        markersize=4,
        markevery=every,
    )
    axes.fill_between(
        grid, np.nanmin(curves, axis=0), np.nanmax(curves, axis=0), color=look.colour, alpha=0.18, linewidth=0
    )


def _legend_columns(width: float, settings: Sequence[SettingSummary]) -> int:
    longest = max((len(setting.name) for setting in settings), default=0)
    return max(1, min(len(settings), int(width * 11 / (longest + 8))))  # 11 letters an inch; the line sample takes 8


def _legend(figure: Figure, settings: Sequence[SettingSummary], looks: Sequence[_Look]) -> None:
    handles = [
        Line2D([], [], color=k.colour, linestyle=k.dash, marker=k.marker, markersize=4, linewidth=2.0) for k in looks
    ]
    columns = _legend_columns(figure.get_figwidth(), settings)
    names = [setting.name for setting in settings]
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=3.5)
