"""What the lists of a command line or a sweep file span: the grid's cells, with the search space of each."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.config.build import ConfigError
from sweeps.overrides import OPTIONAL_GROUPS
from sweeps.studies.space import Dimension, dimension, is_search

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# The studies of one command lie in one folder.
PLACES = ("sweep_name", "output_dir", "cache_dir", "overwrite")


@dataclass(frozen=True)
class Cell:
    """One point of the grid; with dimensions, a study."""

    name: str
    """The swept part: `algo=apa seed=0`."""
    overrides: list[str]
    dimensions: tuple[Dimension, ...] = ()
    seeds: tuple[str, ...] = ()
    """Of each trial's runs; empty: the seed that is composed."""


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
    base = _by_key([*params, *typed])
    own = set(_by_key(typed))
    extra = {label: [o for o in given if _key(o) not in own] for label, given in (spaces or {}).items()}
    every = [*base.values(), *itertools.chain(*extra.values())]
    search = search or any(is_search(override) for override in every)
    problems = [line for override in every if (line := _refusal(override, search, groups))]
    problems += [
        f"hydra.sweeper.spaces.{label}.seed: seeds stand beside the spaces, the same for all"
        for label, given in extra.items()
        if any(_key(override) == "seed" for override in given)
    ]
    problems += [line for label in extra if (line := _unknown_label(label, base, groups))]
    if problems:
        raise ConfigError(problems)
    file_keys = {_key(override) for override in params} - own
    found = []
    for point in _product(base, file_keys, groups, search):
        entry = _by_key(o for label, given in extra.items() if _fits(label, point, groups) for o in given)
        found += [_joined(point, inner) for inner in _product(entry, set(entry), groups, search)]
    if search:
        return _studies(found)
    return [Cell(point.name, _without_nulls(point.overrides)) for point in found]


@dataclass(frozen=True)
class _Point:
    swept: tuple[str, ...]
    values: Mapping[str, str]
    """key -> text of the value; fixed ones too."""
    overrides: list[str]
    dimensions: tuple[Dimension, ...]
    seeds: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join(self.swept)


def _product(base: Mapping[str, Override], from_file: set[str], groups: Groups, search: bool) -> Iterable[_Point]:
    axes: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    dimensions, seeds = [], ()
    for key, override in base.items():
        if override.is_sweep_override() and key == "seed" and search:
            seeds = tuple(dict.fromkeys(str(value) for value in override.sweep_string_iterator()))
        elif _is_dimension(override, search):
            dimensions.append(dimension(override))
        elif override.is_sweep_override():
            values[key] = [str(value) for value in override.sweep_string_iterator()]
            axes[key] = [f"{_written(override, from_file, groups)}={value}" for value in values[key]]
        else:
            values[key] = ["" if override.is_delete() else str(override.get_value_element_as_str())]
            given = f"{_written(override, from_file, groups)}={values[key][0]}"
            axes[key] = [override.input_line or given if key not in from_file else given]
    swept = [key for key in axes if base[key].is_sweep_override()]
    for point in itertools.product(*(zip(axes[key], values[key], strict=True) for key in axes)):
        chosen = {key: value for key, (_, value) in zip(axes, point, strict=True)}
        yield _Point(
            tuple(f"{key}={chosen[key]}" for key in swept),
            chosen,
            [text for text, _ in point],
            tuple(dimensions),
            seeds,
        )


def _written(override: Override, from_file: set[str], groups: Groups) -> str:
    """The key as Hydra gets it. A file's is added by force where there is none, so that our check names the typo."""
    element = override.get_key_element()
    plain = element == override.key_or_group and override.key_or_group not in groups.options
    return f"++{element}" if plain and _key(override) in from_file else element


def _joined(point: _Point, inner: _Point) -> _Point:
    """A point of the grid with what the spaces add; an override of the same key replaces the grid's."""
    dropped = {*inner.values, *(one.key for one in inner.dimensions)}
    kept = [text for key, text in zip(point.values, point.overrides, strict=True) if key not in dropped]
    dimensions = {one.key: one for one in (*point.dimensions, *inner.dimensions) if one.key not in inner.values}
    return _Point(
        (*(text for text in point.swept if text.partition("=")[0] not in dropped), *inner.swept),
        {**point.values, **inner.values},
        [*kept, *inner.overrides],
        tuple(dimensions.values()),
        point.seeds,
    )


def _studies(points: list[_Point]) -> list[Cell]:
    lacking = [point.name for point in points if not point.dimensions]
    if len(lacking) == len(points):
        raise ConfigError(
            ["hydra.sweeper.n_trials: there is no search space; interval(a, b), range(a, b, step) or a tag make one"]
        )
    if lacking:
        line = "no search space, while other cells have one; see hydra.sweeper.spaces"
        raise ConfigError([f"{name}: {line}" for name in lacking])
    return [Cell(point.name, _without_nulls(point.overrides), point.dimensions, point.seeds) for point in points]


def _without_nulls(overrides: Iterable[str]) -> list[str]:
    """Hydra takes no null for a group; without one, a group that may be absent is."""
    return [text for text in overrides if text not in {f"{group}=null" for group in OPTIONAL_GROUPS}]


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


def _fits(label: str, point: _Point, groups: Groups) -> bool:
    values = {**groups.chosen, **point.values}
    key, is_pair, value = label.partition("=")
    return values.get(key) == value if is_pair else any(values.get(group) == label for group in groups.options)


def _unknown_label(label: str, base: Mapping[str, Override], groups: Groups) -> str | None:
    """An option that this command does not choose is none: the command line may leave algorithms out."""
    key, is_pair, value = label.partition("=")
    if is_pair and (value in groups.options[key] if key in groups.options else key in base):
        return None
    known = {option for options in groups.options.values() for option in options}
    if not is_pair and label in known:
        return None
    near = difflib.get_close_matches(label, sorted(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else "; give an option (apa) or a value of an axis (dataset.seed=1)"
    return f"hydra.sweeper.spaces.{label}: nothing of that name{hint}"
