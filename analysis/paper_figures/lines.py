"""Settings -> the lines of a figure: names, order, and mean with band over seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.load import RunRecord, SweepFolderError
from analysis.paper_figures.table import PaperFigure
from analysis.summary import ComparedRun, SettingSummary

_CONTROLLERS = ("none", "fixed", "adaptive")


@dataclass(frozen=True)
class Line:
    """One line of a panel, over its seeds."""

    name: str
    order: tuple[Any, ...]
    """Place in the legend."""
    setting: SettingSummary

    @property
    def algo(self) -> str:
        return self.setting.algo

    @property
    def runs(self) -> tuple[ComparedRun, ...]:
        return self.setting.runs

    @property
    def seeds(self) -> list[int]:
        return sorted(run.record.seed for run in self.runs if run.record.seed is not None)


def lines_of(figure: PaperFigure, settings: Sequence[SettingSummary]) -> tuple[Line, ...]:
    """A line per setting, in the order of the legend; no two have the same name."""
    named = [_named(figure, setting) for setting in settings]
    counts = Counter(name for name, _ in named)
    lines = [
        Line(
            name=name if counts[name] == 1 else f"{name} ({setting.label})",
            order=(*order, setting.label),
            setting=setting,
        )
        for setting, (name, order) in zip(settings, named, strict=True)
    ]
    return tuple(sorted(lines, key=lambda line: line.order))


def controller_name(controller: str) -> str:
    """As in the legend, without numbers."""
    names = {"none": "no KL control", "fixed": "fixed KL coefficient", "adaptive": "adaptive KL control"}
    return names.get(controller, controller)


def _named(figure: PaperFigure, setting: SettingSummary) -> tuple[str, tuple[Any, ...]]:
    """A line's name and its place in the legend."""
    record = setting.runs[0].record
    if figure.lines == "lambda":
        lam = _number(record, "algo.lam")
        return f"\N{GREEK SMALL LETTER LAMDA} = {lam:g}", (lam,)
    if figure.lines == "controller":
        controller = str(record.setting("algo.kl.controller", "none"))
        start, target = (_number(record, f"algo.kl.{key}") for key in ("init_coef", "target"))
        numbers = {"fixed": f" {start:g}", "adaptive": f" (from {start:g}, target {target:g} nats)"}
        place = _CONTROLLERS.index(controller) if controller in _CONTROLLERS else len(_CONTROLLERS)
        return controller_name(controller) + numbers.get(controller, ""), (place, start, target)
    return setting.algo.upper(), (figure.algos.index(setting.algo),)


def _number(record: RunRecord, key: str) -> float:
    """NaN where the run has no such setting."""
    value = record.setting(key, math.nan)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SweepFolderError(f"{record.folder}: {key}={value} is not a number; take the run out to draw the others")
    return float(value)
