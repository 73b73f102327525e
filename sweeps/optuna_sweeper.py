"""`-m`: a grid, or an Optuna study for each of its cells where there is a search space; all checked before a launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from sweeps.cells import Cell, Groups, cells
from sweeps.launcher import HarnessLauncher
from sweeps.overrides import composition_problem
from sweeps.settings import study_settings
from sweeps.sources import composed_run, settings_files, with_settings_of_algo

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from sweeps.studies.study_spec import StudySpec

T = TypeVar("T")


class HarnessSweeper(Sweeper):
    """The settings are those of `sweeps.settings.SweeperConf`."""

    def __init__(self, **given: Any) -> None:
        from omegaconf import OmegaConf

        self.given = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in given.items()
        }
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.context = hydra_context
        self.sweep_config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the grid that `arguments` span, or search where they leave something to search.

        Raises:
            ConfigError: one of its configs cannot be; nothing has been launched.
            sweeps.experiment.Stopped: runs failed or were interrupted.
        """
        settings = study_settings(self.given)
        found = self._cells(arguments)
        assert self.launcher is not None
        if any(cell.dimensions for cell in found):
            from sweeps.studies.tuning import tune

            return tune(self._for_each(found, self._spec), settings, self.launcher)
        runs = self._for_each(found, self._run)
        if isinstance(self.launcher, HarnessLauncher):
            from sweeps.experiment import run_experiment

            return run_experiment(runs, self.launcher.target)
        return self.launcher.launch([cell.overrides for cell in found], initial_job_idx=0)

    def _cells(self, arguments: list[str]) -> list[Cell]:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create(config_loader=self.context.config_loader)

        def parsed(name: str, texts: Mapping[str, Any]) -> list[Override]:
            return parser.parse_overrides([f"{key}={_text(f'{name}.{key}', value)}" for key, value in texts.items()])

        choices = {
            str(group): option
            for group, option in self.sweep_config.hydra.runtime.choices.items()
            if not str(group).startswith("hydra/")
        }
        loader = self.context.config_loader
        groups = Groups(
            options={group: loader.get_group_options(group) for group in choices},
            chosen={group: option for group, option in choices.items() if isinstance(option, str)},
        )
        spaces = {
            str(label): parsed(f"hydra.sweeper.spaces.{label}", _mapping(f"hydra.sweeper.spaces.{label}", space))
            for label, space in _mapping("hydra.sweeper.spaces", self.given["spaces"]).items()
        }
        params = parsed("hydra.sweeper.params", _mapping("hydra.sweeper.params", self.given["params"]))
        search = self.given["n_trials"] is not None
        return cells(params, parser.parse_overrides(arguments), groups, spaces, search)

    def _for_each(self, found: list[Cell], make: Callable[[Cell], T]) -> list[T]:
        """Raises: ConfigError: with the problems of all cells."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        made = []
        problems: dict[str, list[str]] = {}
        for cell in found:
            try:
                made.append(make(cell))
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(cell.name)
            except (HydraException, OmegaConfBaseException) as error:
                problems.setdefault(composition_problem(error, cell.overrides), []).append(cell.name)
        if problems:
            raise ConfigError([f"{_in_cells(names, len(found))}{problem}" for problem, names in problems.items()])
        return made

    def _run(self, cell: Cell) -> RunConfig:
        composed = self.context.config_loader.load_sweep_config(self.sweep_config, cell.overrides)
        return composed_run(composed, composed.hydra)

    def _spec(self, cell: Cell) -> StudySpec:
        from omegaconf import OmegaConf

        from sweeps.studies.study_spec import StudySpec

        composed = self.context.config_loader.load_sweep_config(self.sweep_config, cell.overrides)
        plain = OmegaConf.to_container(composed)
        assert isinstance(plain, dict)
        own = {str(key): value for key, value in plain.items() if key != "hydra"}
        spec = StudySpec(cell, with_settings_of_algo(own, cell.overrides), tuple(settings_files(composed.hydra)))
        if problems := spec.problems():
            raise ConfigError(problems)
        return spec


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    raise ConfigError([f"{name}: {value!r} is not a mapping of options to values"])


def _text(name: str, value: Any) -> str:
    """A file's value as the command line would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError([f"{name}: {value!r} is not written as on the command line ('a,b,c' is a list of values)"])


def _in_cells(names: list[str], total: int) -> str:
    """Where a problem occurs; nothing where it occurs everywhere."""
    if len(names) == total:
        return ""
    return f"{names[0]}{f' (and {len(names) - 1} more)' if len(names) > 1 else ''}: "
