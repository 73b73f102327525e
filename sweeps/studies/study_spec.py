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
from sweeps.cells import Cell
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
    def middle(self) -> list[RunConfig]:
        """A trial in the middle of the search space."""
        return self.runs({one.key: one.middle for one in self.cell.dimensions})

    @cached_property
    def shares_inputs(self) -> bool:
        """Whether every trial needs the same SFT and reward-model runs: no setting of theirs is searched."""
        centre = {one.key: one.middle for one in self.cell.dimensions}
        found = {tuple(map(run_id, input_runs(self.middle[0])))}
        for one in self.cell.dimensions:
            for value in one.ends:
                with contextlib.suppress(ConfigError):  # values that cannot be together have no runs
                    found.add(tuple(map(run_id, input_runs(self.runs({**centre, one.key: value})[0]))))
        return len(found) == 1

    def runs(self, values: Mapping[str, Any]) -> list[RunConfig]:
        """The runs of a trial, one for each seed.

        Raises:
            ConfigError: these values cannot be together.
        """
        config = OmegaConf.create(copy.deepcopy(dict(self.composed)))
        for one in self.cell.dimensions:
            OmegaConf.update(config, one.key, one.setting(values[one.key]))
        runs = []
        for seed in self.cell.seeds or (None,):
            if seed is not None:
                OmegaConf.update(config, "seed", int(seed) if seed.isdigit() else seed)
            mapping = OmegaConf.to_container(config, resolve=True)
            assert isinstance(mapping, dict)
            plain = {str(key): value for key, value in mapping.items()}
            runs.append(checked_run(plain, self.files, self.cell.overrides))
        return runs

    def overrides(self, values: Mapping[str, Any]) -> list[list[str]]:
        """The same for a launcher that composes by itself."""
        searched = [one.override(values[one.key]) for one in self.cell.dimensions]
        seeds = [[f"seed={seed}"] for seed in self.cell.seeds] or [[]]
        return [[*self.cell.overrides, *searched, *seed] for seed in seeds]

    def problems(self) -> list[str]:
        """Why trials of this space could not run: judged in its middle, and at the ends of each dimension."""
        try:
            middle = self.middle[0]
        except ConfigError as error:
            return error.problems
        found = []
        if middle.stage.name not in RL_STAGES:
            found.append(f"stage={middle.stage.name}: a search compares RL runs; stage=online or offline")
        if middle.hardware.slurm is not None and not middle.hardware.slurm.wait:
            found.append("hardware.slurm.wait: false leaves nobody to choose the next trial; use true")
        centre = {one.key: one.middle for one in self.cell.dimensions}
        for one in self.cell.dimensions:
            ids = set()
            for value in one.ends:
                try:
                    ids.add(run_id(self.runs({**centre, one.key: value})[0]))
                except ConfigError as error:
                    found += error.problems
                    ids.add(str(value))
            if len(ids) == 1:
                found.append(f"{one.key}: changes no result, so that there is nothing to search")
        return list(dict.fromkeys(found))
