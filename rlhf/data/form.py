"""What one kind of collected data looks like: how its rows are read, and the way from there to a `TextData`.

The modules that do the work (sources, tables, assemble) import `datasets`, which takes seconds and may be absent, so
nothing imports them before a data set of this kind is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.config.packages import DATASETS
from rlhf.data.examples import DataError, Demonstration, Example, Parse, Preference, Prompt, TextData, UnknownForm
from rlhf.data.messages import has_columns, kind_of


@dataclass(frozen=True)
class Form:
    """How the rows of a data set become examples. Both functions raise MalformedRow."""

    name: str
    """Names the rules in the cache of converted tables: rules that differ need names that differ."""
    examples: Parse
    """The pairs of a row, () where it has no preference to teach; or its prompt, of data without pairs."""
    demonstration: Callable[[Any], Demonstration]
    """The SFT text of a row of `dataset.sft_path` or `dataset.sft_hub`."""
    _: KW_ONLY
    kind: type[Preference] | type[Prompt] = Preference
    """What `examples` makes."""
    found: Callable[[Any, Example], str] = lambda row, example: ""
    """What to say of the columns of the first row, and of the example that was made of it."""
    prompts_of_sft_texts: bool = True
    """Whether RL prompts are those of the SFT texts where these are a data set of their own."""
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
    if not isinstance(row, dict):
        raise UnknownForm(f"the row is {kind_of(row)}, not an object with the columns {', '.join(columns)}")
    present = [row[column] for column in columns if isinstance(row.get(column), str)]
    if len(present) < len(columns):
        raise UnknownForm(
            f"{has_columns(row)}; it must have {', '.join(columns)} as texts, or use dataset=preferences, which reads "
            "other forms"
        )
    return present
