"""What a data set is, as text. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar, overload

from rlhf.config.dataset import DatasetConfig
from rlhf.errors import UserError

In = TypeVar("In")
Out = TypeVar("Out")


Columns = Mapping[str, Sequence[Any]]
"""What else the rows have that texts were made of: one entry for each text, by the column's name."""
NO_COLUMNS: Columns = MappingProxyType({})


class DataError(UserError, ValueError):
    """The user's mistake about data, in one line that names the option or the file and what to do."""

    label, exit_code = "data error", 2


@dataclass(frozen=True)
class Demonstration:
    """A prompt and an answer worth imitating; both as the model sees them, blanks included."""

    prompt: str
    response: str
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else the row has, by column: for rewards, which may need a reference answer."""


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which `chosen` was preferred."""

    prompt: str
    chosen: str
    rejected: str
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """As a `Demonstration` has them."""


@dataclass(frozen=True)
class Dropped:
    """Rows of a source that no example was made of, by reason."""

    malformed: int = 0
    """Skipped as dataset.max_bad_rows allows."""
    empty_prompts: int = 0
    no_preference: int = 0
    """An empty answer, two equal ones, or no answer that scores higher than another."""
    held_out: int = 0
    """Training rows whose prompt is among the held-out ones."""
    cut_answers: int = 0
    """Answers of which one turn was kept, since a dialogue goes on behind it. Their rows are not dropped."""
    named: tuple[str, ...] = ()
    """The first of the malformed ones: where each stands and what is wrong with it."""

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


class MalformedRow(ValueError):
    """What is wrong with a row; whoever reads the file knows where it stands."""


Example = Demonstration | Preference
Parse = Callable[[Any], Sequence[Example | Dropped]]
"""A row -> its examples, and counts of what was left out of them. It raises MalformedRow."""


class Mapped(Sequence[Out], Generic[In, Out]):
    """A sequence of which each item is made when it is asked for."""

    def __init__(self, items: Sequence[In], make: Callable[[In], Out]) -> None:
        self._items = items
        self._make = make

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Out: ...
    @overload
    def __getitem__(self, index: slice) -> Mapped[In, Out]: ...
    def __getitem__(self, index: int | slice) -> Out | Mapped[In, Out]:
        if isinstance(index, slice):
            return Mapped(self._items[index], self._make)
        return self._make(self._items[index])


def columns_of(examples: Sequence[Demonstration]) -> dict[str, list[Any]]:
    """The columns of all of them, None where a row lacks one."""
    names = dict.fromkeys(name for example in examples for name in example.columns)
    return {name: [example.columns.get(name) for example in examples] for name in names}


Verifier = Callable[[Sequence[str], Sequence[str], Columns], list[float]]
"""(prompts, responses, their columns) -> 1 for each right response, 0 for a wrong one."""
GoldScorer = Callable[[Sequence[str], Sequence[str]], list[float]]
"""(prompts, responses) -> a score per response; what made-up labels follow. Evaluation alone may call it."""


@dataclass(frozen=True)
class TextData:
    """A data set. The three held-out parts share no prompt with what is trained on.

    Large sets are sequences that read an example from disk when it is asked for: take those you need.
    """

    sft: Sequence[Demonstration] = ()
    test_sft: Sequence[Demonstration] = ()
    pairs: Sequence[Preference] = ()
    test_pairs: Sequence[Preference] = ()
    prompts: Sequence[Demonstration] = ()
    """RL prompts; `response` is the reference answer, "" where the data has none."""
    eval_prompts: Sequence[Demonstration] = ()
    gold: GoldScorer | None = None
    best_gold: float | None = None
    """The best mean gold reward that any policy can reach on `eval_prompts`."""
    verify: Verifier | None = None
    """What reward=verifiable goes by; None: a comparison with the column that has the answer."""
    words: Sequence[str] = ()
    """Every word of a made-up language, for the tokenizer of `model.source=random`; () for natural text."""
    dropped: Dropped = Dropped()
    stop_strings: Sequence[str] = ()
    """What ends a response in the form that the prompts have; dataset.stop_strings replaces them."""
    sources: Sequence[str] = ()
    """A line for each place that rows were read from: its splits and how many rows each had."""


PARTS: dict[str, str | None] = {
    "sft": "num_sft",
    "test_sft": None,
    "pairs": "num_pairs",
    "test_pairs": "num_test_pairs",
    "prompts": "num_prompts",
    "eval_prompts": "num_eval_prompts",
}
"""The parts of a `TextData`, each with the option of `dataset` that bounds it."""
_HELD_OUT = ("num_test_pairs", "num_eval_prompts")


def of_size(
    data: TextData, config: DatasetConfig, parts: Collection[str], held_out: str, share: float | None = None
) -> TextData:
    """The first examples of each part, as many as `config` asks for (null: all).

    Args:
        parts: those that are wanted; the others become empty.
        held_out: which share of the data is held out: "a fifth of the prompts".
        share: that as a number; None: the data has a part of its own.

    Raises:
        DataError: there are too few; one line that names all options to set.
    """
    bounded = {part: option for part, option in PARTS.items() if option is not None and part in parts}
    there = {option: len(getattr(data, part)) for part, option in bounded.items()}
    asked = {option: getattr(config, option) for option in bounded.values()}
    short = {option: number for option, number in there.items() if number < (asked[option] or 1)}
    if short:
        wrong = [f"{_typed(option, asked[option])}: the data has {there[option] or 'none'} of them" for option in short]
        fitting = {option: number - number % 2 * (option == "num_eval_prompts") for option, number in short.items()}
        typed = " ".join(_typed(option, number) for option, number in fitting.items())
        wanted = max((asked[option] or 1 for option in short if option in _HELD_OUT), default=0)
        enough = f" ({math.ceil(wanted / share):,} prompts are enough)" if wanted and share else ""
        remedy = f"type {typed}, or give it more rows" if all(fitting.values()) else "give it more rows"
        raise DataError(f"{'; '.join(wrong)}; {held_out} is held out{enough}; {remedy}")
    unwanted = {part: () for part in PARTS if part not in parts}
    return replace(data, **unwanted, **{part: getattr(data, part)[: asked[bounded[part]]] for part in bounded})


def _typed(option: str, number: int | None) -> str:
    return f"dataset.{option}={'null' if number is None else number}"
