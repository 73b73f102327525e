"""What a data set is, as text. Imports no torch."""

from __future__ import annotations

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
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    """What else the row has, by column: for rewards, which may need a reference answer."""
    messages: str = field(default="", repr=False)
    """JSON of the conversation that `prompt` is the plain text of; "" where the data has a text."""


class Prompt(Demonstration):
    """A prompt whose `response` may be "": nothing is imitated."""


class TextAlone(Demonstration):
    """A text to imitate without a prompt: `prompt` is ""."""


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which `chosen` was preferred."""

    prompt: str
    chosen: str
    rejected: str
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    """As a `Demonstration` has them."""
    messages: str = field(default="", repr=False)
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
    repeated: int = 0
    """Rows of prompts that came before."""

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


class MalformedRow(ValueError):
    """What is wrong with a row; whoever reads the file knows where it stands."""


class UnknownForm(MalformedRow):
    """A row that lacks the columns that are read: which it has, and the option that helps."""


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
    system: str = ""
    """What is put before every prompt that has no system text of its own."""
    sources: Sequence[str] = ()
    """Lines for the log: where rows were read from and in which form, and which part has fewer than was asked for."""


PARTS: dict[str, str | None] = {
    "sft": "num_sft",
    "test_sft": None,
    "pairs": "num_pairs",
    "test_pairs": "num_test_pairs",
    "prompts": "num_prompts",
    "eval_prompts": "num_eval_prompts",
}
"""The parts of a `TextData`, each with the option of `dataset` that bounds it."""


def of_size(data: TextData, config: DatasetConfig, parts: Collection[str], held_out: str) -> TextData:
    """The first examples of each part, as many as `config` asks for (null: all) or as there are; `sources` says where
    there are fewer.

    Args:
        parts: those that are wanted; the others become empty.
        held_out: which share of the data is held out: "a fifth of the prompts".

    Raises:
        DataError: one of them has none, or there is not one evaluation prompt for each half.
    """
    kept: dict[str, Sequence[Any]] = dict.fromkeys(PARTS, ())
    fewer = []
    for part in parts:
        option = PARTS[part]
        there = len(getattr(data, part))
        size = asked = there if option is None or getattr(config, option) is None else getattr(config, option)
        size = min(there, asked)
        if part == "eval_prompts" and size < asked:
            size -= size % 2
        if size == 0:
            named = f"dataset={config.name}" if option is None else f"dataset.{option}={asked}"
            needed = "2, one for each half" if part == "eval_prompts" else "1"
            raise DataError(
                f"{named}: the data has {there} of them, {held_out} being held out, and needs {needed}; give it more "
                "rows, or a test part of its own (dataset.test_split)"
            )
        if size < asked:
            fewer.append(f"dataset.{option}={size} in place of {asked:,}")
        kept[part] = getattr(data, part)[:size]
    line = [f"data: smaller than asked for, {held_out} being held out: {', '.join(fewer)}"] if fewer else []
    return replace(data, **kept, sources=(*data.sources, *line))
