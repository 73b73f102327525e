"""Figures of what only some sweeps have: a gold reward, and a number varied. The page's charts, on paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.ablation import ABLATION_QUANTITIES, Ablation
from analysis.charts_data import frontier_end
from analysis.figure_style import draw_legend, figure_with_legend, style
from analysis.figures import square_root_axis
from analysis.looks import Look, algorithm_looks, drawn_settings, draws_runs, looks
from analysis.overoptimization import GoldFit

_LINE_POINTS = 100


def overoptimization_figure(fits: Sequence[GoldFit]) -> Figure:
    """Gold reward gained over sqrt(KL): evaluations, and the line fitted through all seeds of a setting as far as they
    went; a large mark where it is highest, if that is told apart from chance. For at least one fit."""
    settings, _ = drawn_settings([fit.setting for fit in fits])
    drawn = [fit for fit in fits if any(fit.setting is one for one in settings)]
    end = frontier_end([fit.setting for fit in drawn])
    with style():
        figure = figure_with_legend(7.2, 4.0, [setting.name for setting in settings])
        axes = figure.subplots()
        for fit, look in zip(drawn, looks(settings), strict=True):
            _draw_fit(axes, fit, look, end, with_runs=draws_runs([one.setting for one in fits]))
        square_root_axis(axes, end)
        axes.set_ylabel("gold reward gained")
        draw_legend(figure, [setting.name for setting in settings], looks(settings))
        return figure


def _draw_fit(axes: Axes, fit: GoldFit, look: Look, end: float, with_runs: bool) -> None:
    for run in fit.setting.runs if with_runs else ():
        gold, d = run.evaluations.gold_reward, np.sqrt(np.maximum(run.evaluations.kl, 0.0))
        if gold is not None:
            style_of = {"color": look.colour, "markersize": 3.0, "alpha": 0.35, "markeredgewidth": 0}
            axes.plot(d[d <= end], (gold - gold[0])[d <= end], look.marker, **style_of)
    reach = min(end, float(np.sqrt(max(run.curve.largest_kl for run in fit.setting.runs))))
    d = np.linspace(0.0, reach, _LINE_POINTS)
    axes.plot(d, fit.gain(d), color=look.colour, linestyle=(0, look.dash), linewidth=2.0)
    if fit.peak_kl is not None and fit.peak_kl <= end**2:
        peak = np.sqrt([fit.peak_kl])
        axes.plot(peak, fit.gain(peak), look.marker, color=look.colour, markersize=9, markeredgecolor="white")


def ablation_figure(ablations: Sequence[Ablation]) -> Figure:
    """Last reward, last KL and hypervolume over the number varied, the same in all `ablations`, a line for each
    algorithm: means over seeds with 95 % intervals, from minimum to maximum where there is none."""
    names = [one.algo for one in ablations]
    values = sorted({point.value for one in ablations for point in one.points})
    is_log = all(one.is_log for one in ablations)
    with style():
        figure = figure_with_legend(3.5 * len(ABLATION_QUANTITIES), 3.2, names)
        panels = figure.subplots(1, len(ABLATION_QUANTITIES), squeeze=False)[0]
        for axes, (title, of) in zip(panels, ABLATION_QUANTITIES.items(), strict=True):
            for one, look in zip(ablations, algorithm_looks(names), strict=True):
                found = [of(point) for point in one.points]
                means = np.array([value.mean for value in found])
                low = np.array([value.minimum if value.low is None else value.low for value in found])
                high = np.array([value.maximum if value.high is None else value.high for value in found])
                axes.errorbar(
                    [point.value for point in one.points],
                    means,
                    yerr=np.maximum([means - low, high - means], 0.0),
                    color=look.colour,
                    linestyle=(0, look.dash),
                    marker=look.marker,
                    markersize=5,
                    linewidth=2.0,
                    elinewidth=1.2,
                )
            axes.set_title(title)
            axes.set_xlabel(ablations[0].key)
            if is_log:
                axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.tick_params(axis="x", labelrotation=45 if len(values) > 6 else 0)
        draw_legend(figure, names, algorithm_looks(names))
        return figure
