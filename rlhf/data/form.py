"""What one kind of collected data looks like: how its rows are read, and the way from there to a `TextData`.

The modules that do the work (sources, tables, assemble) import `datasets`, which takes seconds and may be absent, so
nothing imports them before a data set of this kind is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.config.packages import DATASETS
from rlhf.data.examples import DataError, Demonstration, MalformedRow, Parse, TextData


@dataclass(frozen=True)
class Form:
    """How the rows of a data set become examples. Both functions raise MalformedRow."""

    name: str
    """Names the rules in the cache of converted tables: rules that differ need names that differ."""
    preferences: Parse
    """The pairs of a row; () where it has no preference to teach."""
    demonstration: Callable[[Any], Demonstration]
    """The SFT text of a row of `dataset.sft_path` or `dataset.sft_hub`."""
    max_pairs_per_prompt: int | None = None
    stop_strings: Callable[[Sequence[str]], Sequence[str]] = lambda prompts: ()
    """What ends a response to such prompts beside the EOS."""


def load_form(config: DatasetConfig, parts: Collection[str], form: Form) -> TextData:
    """A data set from files or from the hub, whichever `config` names."""
    if problem := DATASETS.missing_for(config.name):
        raise DataError(problem)
    from rlhf.data.assemble import assemble

    return assemble(config, parts, form)


def texts(row: Any, *columns: str) -> list[str]:
    """The texts in some columns of a row."""
    values = [row.get(column) for column in columns] if isinstance(row, dict) else []
    present = [value for value in values if isinstance(value, str)]
    if len(present) < len(columns):
        listed = " and ".join([", ".join(columns[:-1]), columns[-1]]).removeprefix(" and ")
        raise MalformedRow(f"a row must be an object with the text{'s' if len(columns) > 1 else ''} {listed}")
    return present
