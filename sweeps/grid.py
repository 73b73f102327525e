"""What the lists of a command line or a sweep file span: the grid's cells, with the search space of each."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.config.build import ConfigError
from sweeps.command_line import OPTIONAL_GROUPS
from sweeps.search_space import Dimension, dimension, is_search

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# The studies of one command lie in one folder.
PLACES = ("sweep_name", "output_dir", "cache_dir", "overwrite")


@dataclass(frozen=True)
class Cell:
    """One point of the grid; with dimensions, a study."""

    swept: tuple[str, ...]
    """Keys of the axes."""
    values: Mapping[str, str]
    """key -> text of the value; fixed ones too."""
    written: Mapping[str, str]
    """key -> override."""
    dimensions: tuple[Dimension, ...] = ()
    seeds: tuple[str, ...] = ()
    """Of each trial's runs; empty: the seed that is composed."""

    @property
    def name(self) -> str:
        """The swept part: `algo=apa seed=0`."""
        return " ".join(f"{key}={self.values[key]}" for key in self.swept)

    @property
    def overrides(self) -> list[str]:
        """Hydra takes no null for a group; without one, a group that may be absent is."""
        return [text for text in self.written.values() if text not in {f"{group}=null" for group in OPTIONAL_GROUPS}]

    def with_space(self, inner: Cell) -> Cell:
        """This cell with what a space adds; an override of the same key replaces the grid's."""
        replaced = {*inner.values, *(dimension.key for dimension in inner.dimensions)}
        kept = {key: text for key, text in self.written.items() if key not in replaced}
        both = {dimension.key: dimension for dimension in (*self.dimensions, *inner.dimensions)}
        return Cell(
            (*(key for key in self.swept if key not in replaced), *inner.swept),
            {**self.values, **inner.values},
            {**kept, **inner.written},
            tuple(dimension for key, dimension in both.items() if key not in inner.values),
            self.seeds,
        )


@dataclass(frozen=True)
class Groups:
    """Hydra's config groups."""

    options: Mapping[str, list[str]]
    chosen: Mapping[str, str]
    """Where the command line chooses nothing else."""


def cells(
    params: Sequence[Override],
    typed: Sequence[Override],
    groups: Groups,
    spaces: Mapping[str, Sequence[Override]] | None = None,
    search: bool = False,
) -> list[Cell]:
    """The product of all lists, the last varying fastest; a later override of the same key replaces an earlier one.

    Args:
        params: what a sweep file gives; the command line wins over it.
        typed: the command line.
        groups: the config groups.
        spaces: a sweep file's further overrides for cells where a group has an option (`apa`) or an axis a value
            (`dataset.seed=1`); the command line wins over them too.
        search: whether range() spans a search space; it does beside an interval() or a tag.

    Raises:
        ConfigError: what cannot be an axis.
    """
    base, on_command_line = _by_key([*params, *typed]), _by_key(typed)
    extra = {
        label: _by_key(o for o in given if _key(o) not in on_command_line) for label, given in (spaces or {}).items()
    }
    every = [*base.values(), *itertools.chain(*(given.values() for given in extra.values()))]
    search = search or any(is_search(override) for override in every)
    problems = [line for override in every if (line := _refusal(override, search, groups))]
    for label, given in extra.items():
        if "seed" in given:
            problems.append(f"hydra.sweeper.spaces.{label}.seed: seeds stand beside the spaces, the same for all")
        problems += _unknown_label(label, base, groups)
    if problems:
        raise ConfigError(problems)
    from_file = {_key(override) for override in params} - on_command_line.keys()
    points = []
    for point in _product(base, from_file, groups, search):
        added: dict[str, Override] = {}
        for label, given in extra.items():
            added |= given if _fits(label, point, groups) else {}
        points += [point.with_space(inner) for inner in _product(added, set(added), groups, search)]
    if search:
        _refuse_mixed(points)
    return points


def _product(base: Mapping[str, Override], from_file: set[str], groups: Groups, search: bool) -> Iterator[Cell]:
    axes: dict[str, list[tuple[str, str]]] = {}
    dimensions, seeds = [], ()
    for key, override in base.items():
        written = _written(override, from_file, groups)
        if override.is_sweep_override() and key == "seed" and search:
            seeds = tuple(dict.fromkeys(str(value) for value in override.sweep_string_iterator()))
        elif _is_dimension(override, search):
            dimensions.append(dimension(override))
        elif override.is_sweep_override():
            axes[key] = [(str(value), f"{written}={value}") for value in override.sweep_string_iterator()]
        else:
            value = "" if override.is_delete() else str(override.get_value_element_as_str())
            as_given = override.input_line if key not in from_file else None
            axes[key] = [(value, as_given or f"{written}={value}")]
    swept = tuple(key for key in axes if base[key].is_sweep_override())
    for point in itertools.product(*axes.values()):
        values, texts = ({key: pair[part] for key, pair in zip(axes, point, strict=True)} for part in (0, 1))
        yield Cell(swept, values, texts, tuple(dimensions), seeds)


def _written(override: Override, from_file: set[str], groups: Groups) -> str:
    """The key as Hydra gets it. A file's is added by force where there is none, so that our check names the typo."""
    element = override.get_key_element()
    plain = element == override.key_or_group and override.key_or_group not in groups.options
    return f"++{element}" if plain and _key(override) in from_file else element


def _refuse_mixed(points: Sequence[Cell]) -> None:
    without = [point.name for point in points if not point.dimensions]
    if len(without) == len(points):
        line = "there is no search space; interval(a, b), range(a, b, step) or a tag make one"
        raise ConfigError([f"hydra.sweeper.n_trials: {line}"])
    if without:
        line = "no search space, while other cells have one; see hydra.sweeper.spaces"
        raise ConfigError([f"{name}: {line}" for name in without])


def _by_key(overrides: Iterable[Override]) -> dict[str, Override]:
    return {_key(override): override for override in overrides}


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+")


def _is_dimension(override: Override, search: bool) -> bool:
    from hydra.core.override_parser.types import RangeSweep

    is_range = override.is_sweep_override() and isinstance(override.value(), RangeSweep)
    return is_search(override) or (search and is_range and _key(override) != "seed")


def _refusal(override: Override, search: bool, groups: Groups) -> str | None:
    """Why this can be no axis, or no dimension."""
    key = override.key_or_group
    if not override.is_sweep_override():
        return None
    if key.partition(".")[0] == "hardware":
        return f"{key}: no sweep axis, since other hardware gives other bits; choose one"
    if key == "sweep":
        return "sweep: one file at a time"
    if search and key in PLACES:
        return f"{key}: no axis beside a search space; one value"
    if not _is_dimension(override, search):
        return None
    if key == "seed":
        return "seed: no search dimension; a list (seed=0,100) gives each trial a run for every seed"
    if key in groups.options:
        return f"{key}: no search dimension; a list ({key}=a,b) gives each option a study"
    try:
        dimension(override)
    except ValueError as error:
        return f"{key}: {override.get_value_string()}: {error}"
    return None


def _fits(label: str, point: Cell, groups: Groups) -> bool:
    values = {**groups.chosen, **point.values}
    key, is_pair, value = label.partition("=")
    return values.get(key) == value if is_pair else any(values.get(group) == label for group in groups.options)


def _unknown_label(label: str, base: Mapping[str, Override], groups: Groups) -> list[str]:
    """An option that this command does not choose is known: the command line may leave algorithms out."""
    key, is_pair, value = label.partition("=")
    options = {option for options in groups.options.values() for option in options}
    known = label in options
    if is_pair:
        known = value in groups.options[key] if key in groups.options else key in base
    near = difflib.get_close_matches(label, sorted(options), n=1)
    hint = f"; did you mean {near[0]}?" if near else "; give an option (apa) or a value of an axis (dataset.seed=1)"
    return [] if known else [f"hydra.sweeper.spaces.{label}: nothing of that name{hint}"]
