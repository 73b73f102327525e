"""What the lists of a command line or a sweep file span: the grid's cells, with the search space of each.

A dimension of a search space is one option: what `interval()`, `range()` or `tag(log, ...)` means.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rlhf.config.build import ConfigError
from sweeps.command_line import OPTIONAL_GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

# The studies of one command lie in one folder.
PLACES = ("sweep_name", "output_dir", "cache_dir", "overwrite")

TAGS = ("log", "int", "search")


@dataclass(frozen=True)
class Dimension:
    """Numbers from `low` to `high`, both included, or `choices`."""

    key: str
    low: float = 0
    high: float = 0
    step: float | None = None
    """Between neighbouring values; None: any value (of integers: 1)."""
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()
    """The choices as the command line writes them."""

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.texts)}"
        words = [f"{self.low!r} to {self.high!r}"]
        words += ["integers"] * self.integer + ["log"] * self.log
        words += [f"step {self.step!r}"] * (self.step is not None and not (self.integer and self.step == 1))
        return ", ".join(words)

    @property
    def points(self) -> list[Any] | None:
        """All values where they are finitely many."""
        if self.choices or (self.step is None and not self.integer):
            return list(self.choices) or None
        step = self.step or 1
        return [self._at(i, step) for i in range(round((self.high - self.low) / step) + 1)]

    @property
    def middle(self) -> Any:
        if self.choices:
            return self.choices[len(self.choices) // 2]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        step = self.step or (1 if self.integer else None)
        return middle if step is None else self._at(round((middle - self.low) / step), step)

    def _at(self, index: int, step: float) -> float:
        value = Decimal(str(self.low)) + index * Decimal(str(step))
        return int(value) if self.integer else float(value)

    @property
    def ends(self) -> list[Any]:
        """The values whose configs show whether all can be."""
        return list(self.choices) or [self.low, self.high]

    def setting(self, value: Any) -> Any:
        """A sampled value as the config gets it: multiples of a step as one would write them."""
        if self.step is None or self.integer or self.choices:
            return value
        return float(f"{value:.12g}")


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
        label: {key: override for key, override in _by_key(given).items() if key not in on_command_line}
        for label, given in (spaces or {}).items()
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
    without = [point.name for point in points if search and not point.dimensions]
    if points and len(without) == len(points):
        line = "there is no search space; interval(a, b), range(a, b, step) or a tag make one"
        raise ConfigError([f"hydra.sweeper.n_trials: {line}"])
    if without:
        line = "no search space, while other cells have one; see hydra.sweeper.spaces"
        raise ConfigError([f"{name}: {line}" for name in without])
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


def is_search(override: Override) -> bool:
    """Whether this alone makes a search space."""
    if not override.is_sweep_override():
        return False
    return override.is_interval_sweep() or bool(getattr(override.value(), "tags", ()))


def dimension(override: Override) -> Dimension:
    """Raises: ValueError: what is wrong with it."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    sweep = override.value()
    assert isinstance(sweep, ChoiceSweep | IntervalSweep | RangeSweep)
    if unknown := sorted(str(tag) for tag in sweep.tags if tag not in TAGS):
        raise ValueError(f"tag {unknown[0]!r} is not one of {', '.join(TAGS)}")
    if isinstance(sweep, ChoiceSweep):
        return _choices(override, sweep.tags)
    key = override.key_or_group
    result = _interval(key, sweep) if isinstance(sweep, IntervalSweep) else _range(key, sweep)
    if not all(math.isfinite(end) for end in (result.low, result.high)) or not result.low < result.high:
        raise ValueError("holds fewer than two values")
    if result.log and result.low <= 0:
        raise ValueError("a log scale begins above 0")
    return result


def _choices(override: Override, tags: set[str]) -> Dimension:
    from hydra.core.override_parser.types import Transformer

    if wrong := sorted(tags & {"log", "int"}):
        raise ValueError(f"tag {wrong[0]!r} is for numbers between two ends")
    values = {str(Transformer.str(value)): value for value in override.sweep_iterator()}
    if len(values) < 2:
        raise ValueError("holds fewer than two values")
    choices = tuple(getattr(value, "text", value) for value in values.values())  # quotes removed
    if any(isinstance(value, list | dict) for value in choices):
        raise ValueError("lists and mappings cannot be searched")
    return Dimension(override.key_or_group, choices=choices, texts=tuple(values))


def _interval(key: str, sweep: IntervalSweep) -> Dimension:
    assert sweep.start is not None and sweep.end is not None
    ends = (sweep.start, sweep.end)
    log = "log" in sweep.tags
    if ("int" in sweep.tags or all(isinstance(end, int) for end in ends)) and all(map(math.isfinite, ends)):
        if any(end != int(end) for end in ends):
            raise ValueError("the ends of an integer interval are whole numbers")
        return Dimension(key, int(ends[0]), int(ends[1]), None, log, True)
    return Dimension(key, float(ends[0]), float(ends[1]), None, log)


def _range(key: str, sweep: RangeSweep) -> Dimension:
    """As in a grid: the end is not included."""
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    count = math.ceil((stop - start) / step) if step else 0
    if count < 2:
        raise ValueError("holds fewer than two values")
    low, high = sorted((start, start + (count - 1) * step))
    integer = all(number == int(number) for number in (low, step)) and (
        "int" in sweep.tags or all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
    )
    if "int" in sweep.tags and not integer:
        raise ValueError("an integer range has whole numbers")
    log = "log" in sweep.tags
    if log and not (integer and abs(step) == 1):
        raise ValueError("a log scale has no steps; use tag(log, interval(a, b))")
    number = int if integer else float
    return Dimension(key, number(low), number(high), None if log else number(abs(step)), log, integer)
