"""A study of one cell of the grid: its name, the runs of a trial with given values, and what makes a run better."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from omegaconf import OmegaConf

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_id
from sweeps.grid import Cell
from sweeps.sources import SettingsFile, checked_run, run_mapping

if TYPE_CHECKING:
    from analysis.evaluations import Evaluations
    from analysis.kl_efficiency import GainCurve


@dataclass(frozen=True)
class StudySpec:
    cell: Cell
    composed: Mapping[str, Any]
    """The cell's config as Hydra composes it, interpolations not resolved, without Hydra's own settings."""
    files: tuple[SettingsFile, ...] = ()
    """Those that had a part in it."""

    @cached_property
    def name(self) -> str:
        """Unique among the studies of one storage; the algorithm first, whether it was swept or not."""
        run = self.middle[0]
        swept = [part for part in self.cell.name.split(" ") if part and not part.startswith("algo=")]
        return f"{run.sweep_name}/{' '.join([f'algo={run.algo.name}', *swept])}"

    @cached_property
    def _centre(self) -> dict[str, Any]:
        return {dimension.key: dimension.middle for dimension in self.cell.dimensions}

    @cached_property
    def middle(self) -> list[RunConfig]:
        """A trial in the middle of the search space."""
        return self.runs(self._centre)

    @cached_property
    def _at_ends(self) -> dict[str, list[RunConfig | ConfigError]]:
        """Of each dimension, the others in their middle: the first run at each of its ends, or why it has none."""
        found: dict[str, list[RunConfig | ConfigError]] = {}
        for dimension in self.cell.dimensions:
            for value in dimension.ends:
                try:
                    run: RunConfig | ConfigError = self.runs({**self._centre, dimension.key: value})[0]
                except ConfigError as error:
                    run = error
                found.setdefault(dimension.key, []).append(run)
        return found

    @cached_property
    def shares_inputs(self) -> bool:
        """Whether every trial needs the same SFT and reward-model runs: no setting of theirs is searched."""
        runs = [self.middle[0], *(run for at_ends in self._at_ends.values() for run in at_ends)]
        return len({tuple(map(run_id, input_runs(run))) for run in runs if isinstance(run, RunConfig)}) == 1

    def runs(self, values: Mapping[str, Any]) -> list[RunConfig]:
        """The runs of a trial, one for each seed.

        Raises:
            ConfigError: these values cannot be together.
        """
        config = OmegaConf.create(copy.deepcopy(dict(self.composed)))
        for dimension in self.cell.dimensions:
            OmegaConf.update(config, dimension.key, dimension.setting(values[dimension.key]))
        runs = []
        for seed in self.cell.seeds or (None,):
            if seed is not None:
                OmegaConf.update(config, "seed", int(seed) if seed.isdigit() else seed)
            searched = [dimension.key for dimension in self.cell.dimensions]
            runs.append(checked_run(run_mapping(config), self.files, self.cell.overrides, searched))
        return runs

    def problems(self) -> list[str]:
        """Why trials of this space could not run: judged in its middle, and at the ends of each dimension."""
        try:
            middle = self.middle[0]
        except ConfigError as error:
            return error.problems
        problems = []
        if middle.stage.name not in RL_STAGES:
            problems.append(f"stage={middle.stage.name}: a search compares RL runs; stage=online or offline")
        if middle.hardware.slurm is not None and not middle.hardware.slurm.wait:
            problems.append("hardware.slurm.wait: false leaves nobody to choose the next trial; use true")
        for key, at_ends in self._at_ends.items():
            refused = [run for run in at_ends if isinstance(run, ConfigError)]
            problems += [problem for error in refused for problem in error.problems]
            if not refused and len({run_id(run) for run in at_ends if isinstance(run, RunConfig)}) == 1:
                problems.append(f"{key}: changes no result, so that there is nothing to search")
        return list(dict.fromkeys(problems))


# --- objectives ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    values: tuple[str, ...]
    """Their names."""
    directions: tuple[Literal["maximize", "minimize"], ...]
    measure: Callable[[Evaluations, float], tuple[float, ...]]
    """Of one run's evaluations and the KL budget in nats."""


class UnmeasuredError(ValueError):
    """A run that ended and has no value; the message says why."""


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


def measure(folder: Path, objective: Objective, budget: float) -> dict[str, float]:
    """The values of a finished run by name, and eval/kl: nats at its last evaluation.

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
    return dict(zip(objective.values, values, strict=True)) | {"eval/kl": float(points.kl[-1])}


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
        values = {field.name: getattr(points, field.name) for field in dataclasses.fields(points)}
        columns = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        for count in range(2, len(points.samples) + 1):
            samples = points.samples[count - 1]
            if math.isfinite(samples) and int(samples) not in self.by_samples:
                seen = dataclasses.replace(points, **{name: column[:count] for name, column in columns.items()})
                self.by_samples[int(samples)] = self._objective.measure(seen, self._budget)[0]
