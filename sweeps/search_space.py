"""One searched option: what `interval()`, `range()` or `tag(log, ...)` on the command line means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

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
