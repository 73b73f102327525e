"""`-m`: a grid, or an Optuna study for each of its cells where there is a search space; all checked before a launch.

Hydra finds sweepers in the namespace package hydra_plugins, and imports this file for every command: nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction

from sweeps.settings import AXES, DEFAULTS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from rlhf.config import RunConfig
    from sweeps.grid import Cell
    from sweeps.study_spec import StudySpec

T = TypeVar("T")


class HarnessSweeper(Sweeper):
    """The settings are those of `sweeps.settings`; runs are started by this project's own launchers."""

    def __init__(self, **given: Any) -> None:
        from omegaconf import OmegaConf

        self.given = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in given.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.sweep_config = config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the grid that `arguments` span, or search where they leave something to search.

        Raises:
            ConfigError: one of its configs cannot be; nothing has been launched.
            sweeps.runs.Stopped: runs failed or were interrupted.
        """
        from sweeps.settings import study_settings

        settings = study_settings({name: value for name, value in self.given.items() if name not in AXES})
        cells = self._cells(arguments)
        target = self.sweep_config.hydra.launcher.target
        if any(cell.dimensions for cell in cells):
            from sweeps.search import search

            return search(self._for_each(cells, self._spec), settings, target)
        from sweeps.experiment import run_experiment

        return run_experiment(self._for_each(cells, self._run), target)

    def _cells(self, arguments: list[str]) -> list[Cell]:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from sweeps.grid import Groups, cells

        loader = self.context.config_loader
        parser = OverridesParser.create(config_loader=loader)

        def parsed(name: str, texts: Any) -> list[Override]:
            overrides = [f"{key}={_text(f'{name}.{key}', value)}" for key, value in _mapping(name, texts).items()]
            return parser.parse_overrides(overrides)

        choices = {str(group): option for group, option in self.sweep_config.hydra.runtime.choices.items()}
        groups = Groups(
            options={group: loader.get_group_options(group) for group in choices if not group.startswith("hydra/")},
            chosen={group: option for group, option in choices.items() if isinstance(option, str)},
        )
        spaces = {
            str(label): parsed(f"hydra.sweeper.spaces.{label}", space)
            for label, space in _mapping("hydra.sweeper.spaces", self.given["spaces"]).items()
        }
        params = parsed("hydra.sweeper.params", self.given["params"])
        return cells(params, parser.parse_overrides(arguments), groups, spaces, self.given["n_trials"] is not None)

    def _for_each(self, cells: list[Cell], make: Callable[[Cell], T]) -> list[T]:
        """Raises: ConfigError: with the problems of all cells."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from rlhf.config.build import ConfigError
        from sweeps.sources import composition_problem

        made = []
        problems: dict[str, list[str]] = {}
        for cell in cells:
            try:
                made.append(make(cell))
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(cell.name)
            except (HydraException, OmegaConfBaseException) as error:
                problems.setdefault(composition_problem(error, cell.overrides), []).append(cell.name)
        lines = []
        for problem, names in problems.items():
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            lines.append(problem if len(names) == len(cells) else f"{names[0]}{more}: {problem}")
        if lines:
            raise ConfigError(lines)
        return made

    def _composed(self, cell: Cell) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.sweep_config, cell.overrides)

    def _run(self, cell: Cell) -> RunConfig:
        from sweeps.sources import composed_run

        composed = self._composed(cell)
        return composed_run(composed, composed.hydra)

    def _spec(self, cell: Cell) -> StudySpec:
        from rlhf.config.build import ConfigError
        from sweeps.sources import run_mapping, settings_files, with_settings_of_algo
        from sweeps.study_spec import StudySpec

        composed = self._composed(cell)
        mapping = with_settings_of_algo(run_mapping(composed, resolve=False), cell.overrides)
        spec = StudySpec(cell, mapping, tuple(settings_files(composed.hydra)))
        if problems := spec.problems():
            raise ConfigError(problems)
        return spec


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    from rlhf.config.build import ConfigError

    if value is None or isinstance(value, dict):
        return value or {}
    raise ConfigError([f"{name}: {value!r} is not a mapping of options to values"])


def _text(name: str, value: Any) -> str:
    """A file's value as the command line would have it."""
    from rlhf.config.build import ConfigError

    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError([f"{name}: {value!r} is not written as on the command line ('a,b,c' is a list of values)"])


_NODES = {
    "sweeper": {"_target_": f"{__name__}.{HarnessSweeper.__name__}", **AXES, **DEFAULTS},
    "launcher": {"target": "rlhf.run:execute"},
}
for _group, _node in _NODES.items():
    ConfigStore.instance().store(group=f"hydra/{_group}", name="harness", node=_node, provider="apa-rlhf")
