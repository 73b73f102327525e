"""What a study makes better, read from a run's evaluations by the comparison's own measures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from analysis.evaluations import Evaluations
    from analysis.kl_efficiency import GainCurve


@dataclass(frozen=True)
class Objective:
    values: tuple[str, ...]
    """Their names."""
    directions: tuple[Literal["maximize", "minimize"], ...]
    measure: Callable[[Evaluations, float], tuple[float, ...]]
    """Of one run's evaluations and the KL budget in nats."""


class UnmeasuredError(ValueError):
    """A run that ended and has no value; the message says why."""


@dataclass(frozen=True)
class Measured:
    values: tuple[float, ...]
    kl: float
    """At the last evaluation, nats."""


def _curve(points: Evaluations) -> GainCurve:
    from analysis.kl_efficiency import GainCurve

    return GainCurve(points.kl, points.gains)


def _gain(points: Evaluations, budget: float) -> float:
    """The best gain at no more KL than the budget, however much of it the run spent."""
    curve = _curve(points)
    parts = curve.gain(min(budget, curve.largest_kl))
    assert parts is not None
    return float(parts.mean())


def _efficiency(points: Evaluations, budget: float) -> float:
    """E(K), a part of the budget that the run did not spend counting as no gain: trials must all have a value, and none
    is to be made up."""
    curve = _curve(points)
    spent = min(budget, curve.largest_kl)
    if spent <= 0.0:
        return 0.0
    parts = curve.efficiency(spent)
    assert parts is not None
    return float(parts.mean()) * math.sqrt(spent / budget)


OBJECTIVES = {
    "reward_at_budget": Objective(("gain",), ("maximize",), lambda points, budget: (_gain(points, budget),)),
    "kl_efficiency": Objective(
        ("kl_efficiency",), ("maximize",), lambda points, budget: (_efficiency(points, budget),)
    ),
    "reward_and_kl": Objective(
        ("reward", "kl"),
        ("maximize", "minimize"),
        lambda points, _: (float(points.reward[-1]), float(points.kl[-1])),
    ),
}


def measure(folder: Path, objective: Objective, budget: float) -> Measured:
    """Of a finished run.

    Raises:
        UnmeasuredError: it cannot be compared, or a reward or KL of its evaluations is not a number.
    """
    from analysis.evaluations import UnusableRunError, evaluations
    from analysis.load import load_run

    record = load_run(folder)
    if record.reason is not None:
        raise UnmeasuredError(record.reason)
    try:
        points = evaluations(record)
    except UnusableRunError as error:
        raise UnmeasuredError(str(error)) from error
    if points.skipped:
        raise UnmeasuredError(f"{points.skipped} of its evaluations have a KL or reward that is not a number")
    values = objective.measure(points, budget)
    if not all(math.isfinite(value) for value in values):
        raise UnmeasuredError(f"{' and '.join(objective.values)} is not a number")
    return Measured(values, float(points.kl[-1]))


class ObjectiveSoFar:
    """The objective of a run at work, as each of its evaluations leaves it."""

    def __init__(self, folder: Path, objective: Objective, budget: float) -> None:
        self.by_samples: dict[int, float] = {}
        self._file = folder / "metrics.jsonl"
        self._objective = objective
        self._budget = budget
        self._size = 0

    def read(self) -> None:
        """What was added since."""
        from analysis.evaluations import UnusableRunError, evaluations
        from analysis.load import load_run

        size = self._file.stat().st_size if self._file.is_file() else 0
        if size == self._size:
            return
        self._size = size
        try:
            points = evaluations(load_run(self._file.parent))
        except UnusableRunError:
            return
        for count in range(2, len(points.samples) + 1):
            samples = points.samples[count - 1]
            if math.isfinite(samples) and int(samples) not in self.by_samples:
                value = self._objective.measure(_first(points, count), self._budget)[0]
                self.by_samples[int(samples)] = value


def _first(points: Evaluations, count: int) -> Evaluations:
    values = {field.name: getattr(points, field.name) for field in dataclasses.fields(points)}
    arrays = {name: value[:count] for name, value in values.items() if isinstance(value, np.ndarray)}
    return dataclasses.replace(points, **arrays)
