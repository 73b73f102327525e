"""A cell of the grid as a study: its name, and the runs of a trial with given values."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_id
from sweeps.grid import Cell
from sweeps.sources import SettingsFile, checked_run


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
    def shares_inputs(self) -> bool:
        """Whether every trial needs the same SFT and reward-model runs: no setting of theirs is searched."""
        needed = {tuple(map(run_id, input_runs(self.middle[0])))}
        for dimension in self.cell.dimensions:
            for value in dimension.ends:
                with contextlib.suppress(ConfigError):  # values that cannot be together have no runs
                    run = self.runs({**self._centre, dimension.key: value})[0]
                    needed.add(tuple(map(run_id, input_runs(run))))
        return len(needed) == 1

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
            mapping = OmegaConf.to_container(config, resolve=True)
            assert isinstance(mapping, dict)
            runs.append(checked_run({str(key): mapping[key] for key in mapping}, self.files, self.cell.overrides))
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
        for dimension in self.cell.dimensions:
            ids = set()
            for value in dimension.ends:
                try:
                    ids.add(run_id(self.runs({**self._centre, dimension.key: value})[0]))
                except ConfigError as error:
                    problems += error.problems
                    ids.add(str(value))
            if len(ids) == 1:
                problems.append(f"{dimension.key}: changes no result, so that there is nothing to search")
        return list(dict.fromkeys(problems))
