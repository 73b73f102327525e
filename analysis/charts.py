"""Findings -> the page's charts, each where there is something to draw."""

from __future__ import annotations

from analysis.charts_base import ChartFigure
from analysis.charts_findings import ablation_charts, overoptimization_chart
from analysis.charts_frontier import frontier_chart
from analysis.charts_samples import curves_chart
from analysis.findings import Findings


def charts(findings: Findings) -> list[ChartFigure]:
    """In the order of the page; the first is the frontier. Empty where no run was compared."""
    settings = findings.comparison.settings
    if not settings:
        return []
    made = [frontier_chart(settings), curves_chart(settings)]
    if findings.gold_fits:
        made.append(overoptimization_chart(findings.gold_fits))
    return made + ablation_charts(findings.ablations)
