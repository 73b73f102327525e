"""`-m` with comma lists: the grid, composed and checked whole before anything is launched."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.check import checked_config
from sweeps.launcher import HarnessLauncher

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    _target_: str = "sweeps.grid_sweeper.GridSweeper"
    # Axes that a file of sweeps/ gives, as on the command line ("apa,ppo"); the command line wins over them.
    params: dict[str, str] | None = None


class GridSweeper(Sweeper):
    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.context = hydra_context
        self.sweep_config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the grid that `arguments` span.

        Raises:
            ConfigError: one of its configs cannot be; nothing has been launched.
            sweeps.experiment.Stopped: runs failed or were interrupted.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from sweeps.experiment import run_experiment

        parser = OverridesParser.create(config_loader=self.context.config_loader)
        params = [f"{key}={value}" for key, value in self.params.items()]
        cells = grid(parser.parse_overrides([*params, *arguments]))
        runs = self._checked(cells)
        assert self.launcher is not None
        if isinstance(self.launcher, HarnessLauncher):
            return run_experiment(runs, self.launcher.target)
        return self.launcher.launch([cell.overrides for cell in cells], initial_job_idx=0)

    def _checked(self, cells: list[Cell]) -> list[RunConfig]:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from sweeps.experiment import run_mapping

        runs = []
        problems: dict[str, list[str]] = {}
        for cell in cells:
            try:
                composed = self.context.config_loader.load_sweep_config(self.sweep_config, cell.overrides)
                runs.append(checked_config(run_mapping(composed)))
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(cell.name)
            except (HydraException, OmegaConfBaseException) as error:
                problems.setdefault(" ".join(str(error).split()), []).append(cell.name)
        if problems:
            raise ConfigError([f"{_in_cells(names, len(cells))}{problem}" for problem, names in problems.items()])
        return runs


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    name: str
    """The swept part: `algo=apa seed=0`."""
    overrides: list[str]


def grid(overrides: list[Override]) -> list[Cell]:
    """The product of all lists, the last varying fastest; a later override of the same key replaces an earlier one."""
    axes: dict[str, list[str]] = {}
    swept = set()
    problems = []
    for override in overrides:
        key = override.get_key_element()
        swept.discard(key)
        if not override.is_sweep_override():
            value = "" if override.is_delete() else override.get_value_element_as_str()
            axes[key] = [override.input_line or f"{key}={value}"]
        elif override.key_or_group.partition(".")[0] == "hardware":
            problems.append(f"{key}: no sweep axis, since other hardware gives other bits; choose one")
        elif not override.is_discrete_sweep():
            problems.append(f"{override.input_line}: a grid takes lists (a,b,c), range() and glob()")
        else:
            swept.add(key)
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if problems:
        raise ConfigError(problems)
    cells = [list(point) for point in itertools.product(*axes.values())]
    names = [key in swept for key in axes]
    return [Cell(" ".join(itertools.compress(cell, names)), cell) for cell in cells]


def _in_cells(names: list[str], total: int) -> str:
    """Where a problem occurs; nothing where it occurs everywhere."""
    if len(names) == total:
        return ""
    return f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}: "
