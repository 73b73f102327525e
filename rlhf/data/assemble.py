"""Tables of pairs and of SFT texts -> TextData: what is held out, in which order, how many."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import (
    DataError,
    Demonstration,
    Dropped,
    Example,
    Mapped,
    Parse,
    Preference,
    Prompt,
    TextData,
    of_size,
)
from rlhf.data.sources import Part, Source, Wanted, hub_source, local_source
from rlhf.data.tables import BadRows, Index, Table, View, distinct_prompts, shuffled, table_of
from rlhf.errors import printable

if TYPE_CHECKING:
    from rlhf.data.form import Form

HELD_OUT_SHARE = 0.2
SAMPLE = 100
"""Prompts that tell which form a data set has."""
LISTED_FILES = 5
"""Of a split, in what is said of it."""


@dataclass(frozen=True)
class Tables:
    """One kind of examples; `held_out` is None where the source has no such part."""

    source: Source
    train: Table
    held_out: Table | None

    def summary(self, held_out: Index) -> str:
        """Which splits were read, how many rows each had and in which columns, how much is held out, what is not read.

        Args:
            held_out: the key of every prompt that is.
        """
        source, said = (
            self.source,
            f"a fifth of the prompts held out ({len(np.intersect1d(self.train.keys, held_out)):,})",
        )
        if self.held_out is not None and source.held_out is not None:
            said = f"held out: {_rows_of(source.held_out, self.held_out)}"
        form = f" of {self.train.form}" if self.train.form else ""
        if self.train.kind is Prompt:
            form += (
                f", {len(View(self.train, np.arange(len(self.train))).with_text('response').index):,} with an answer"
            )
        line = f"data: {source.option}={source.place}: {_rows_of(source.train, self.train)}{form}; {said}"
        for what, names in (("other columns", self.columns()), ("not read", source.unread)):
            line += f"; {what}: {', '.join(map(printable, names))}" if names else ""
        return line

    def columns(self) -> tuple[str, ...]:
        """The other columns of all rows."""
        both = (self.train, self.held_out) if self.held_out is not None else (self.train,)
        return tuple(dict.fromkeys(name for table in both for name in table.columns))


def _rows_of(part: Part, table: Table) -> str:
    files = list(part.files[:LISTED_FILES])
    if more := part.files[LISTED_FILES:]:
        files.append(f"{len(more)} more")
    listed = f" from {', '.join(map(printable, files))}" if len(part.files) > 1 else ""
    return f"{printable(part.name)} {table.num_read:,} rows{listed}"


def assemble(config: DatasetConfig, wanted: Collection[str], form: Form) -> TextData:
    """A source's own test part is held out; without one, a fifth of the prompts, with all of their rows.

    Prompts that are held out, of pairs or of SFT texts, are dropped from the training parts of both. Where there are
    no SFT texts, the preferred answers are, or the prompts' own. RL prompts are those of the SFT texts where the form
    says so, and the source's own otherwise; their answers are the references.
    """
    bad_rows = BadRows(config.max_bad_rows)
    if (source := _source(config)) is None:
        raise DataError("dataset.path: neither it nor dataset.hub says where the data is; give one of them")
    own = _tables(source, form.kind, form.examples, form, bad_rows)
    tables = [own]
    if config.has_sft_texts and (source := _source(config, "sft_")):
        tables.append(_tables(source, Demonstration, lambda row: [form.demonstration(row)], form, bad_rows))
    held_out = _held_out_keys(tables, config.seed)
    train, test = (side.at_most(form.max_pairs_per_prompt) for side in _sides(own, held_out, f"{config.seed} order"))
    if not len(train.index) and not len(test.index):
        what = "prompt" if form.kind is Prompt else "pair of answers"
        raise DataError(f"{own.source.option}={own.source.place}: has no {what}; give it some rows")
    preferred = "response" if form.kind is Prompt else "chosen"
    asked = [side.at_most(1) for side in (train, test)]
    dropped = _dropped(tables, held_out)
    pairs: list[Sequence[Preference]] = [(), ()]
    if form.kind is Prompt:
        dropped += Dropped(repeated=sum(len(a.index) - len(b.index) for a, b in zip((train, test), asked, strict=True)))
    else:
        pairs = [side.examples(lambda row: Preference(**row), own.columns()) for side in (train, test)]
    prompts = [_demonstrations(side, preferred, own) for side in asked]
    answers = [_demonstrations(side.with_text(preferred).at_most(1), preferred, own) for side in (train, test)]
    if len(tables) > 1:
        sides = [side.at_most(1) for side in _sides(tables[1], held_out, f"{config.seed} order of SFT texts")]
        answers = [_demonstrations(side, "response", tables[1]) for side in sides]
        if form.prompts_of_sft_texts:
            prompts = [_demonstrations(side.with_text("prompt"), "response", tables[1]) for side in sides]
    elif "sft" in wanted and not len(answers[0]):
        raise DataError(
            f"{own.source.option}={own.source.place}: its rows have no answers, which SFT and reward.normalize learn "
            "from; type model.sft=false and reward.normalize=none, name their column as dataset.columns.response (and "
            "that of the prompts as dataset.columns.prompt), or give dataset.sft_path"
        )
    data = TextData(
        sft=answers[0],
        test_sft=answers[1],
        pairs=pairs[0],
        test_pairs=pairs[1],
        prompts=prompts[0],
        eval_prompts=prompts[1],
        dropped=dropped,
        stop_strings=form.stop_strings([prompts[0][i].prompt for i in range(min(len(prompts[0]), SAMPLE))]),
        sources=tuple(each.summary(held_out) for each in tables),
    )
    if any(each.held_out is None for each in tables):
        return of_size(data, config, wanted, "a fifth of the prompts")
    return of_size(data, config, wanted, "the data's own test part")


def _demonstrations(side: View, answer: str, tables: Tables) -> Mapped[Any, Demonstration]:
    def make(row: dict[str, Any]) -> Demonstration:
        return Demonstration(row["prompt"], row[answer], row["columns"], row["messages"])

    return side.examples(make, tables.columns())


def _source(config: DatasetConfig, prefix: str = "") -> Source | None:
    """Where the data lies, or with the prefix "sft_" SFT texts of their own; None where no option says so."""

    def option(name: str) -> str | None:
        return getattr(config, prefix + name)

    wanted = Wanted(option("split"), option("test_split"), f"dataset.{prefix}")
    if (path := option("path")) is not None:
        return local_source(Path(path), f"dataset.{prefix}path", wanted)
    if (hub := option("hub")) is None:
        return None
    return hub_source(hub, f"dataset.{prefix}hub", wanted, option("hub_config"))


def _tables(source: Source, kind: type[Example], parse: Parse, form: Form, bad_rows: BadRows) -> Tables:
    train, held_out = (
        None if part is None else table_of(part, kind, parse, form=form.name, bad_rows=bad_rows, found=form.found)
        for part in (source.train, source.held_out)
    )
    assert train is not None
    return Tables(source, train, held_out)


def _held_out_keys(tables: Sequence[Tables], seed: int) -> Index:
    """Of every prompt that is held out."""
    keys = [each.held_out.keys for each in tables if each.held_out is not None]
    if undivided := [each.train for each in tables if each.held_out is None]:
        prompts = shuffled(distinct_prompts(undivided), f"{seed} split")
        share = max(round(HELD_OUT_SHARE * len(prompts)), min(2, len(prompts) - 1))  # an evaluation has two halves
        keys.append(prompts[:share])
    return np.unique(np.concatenate(keys))


def _sides(tables: Tables, held_out: Index, seed: str) -> tuple[View, View]:
    """(trained on, held out), in the order that the seed gives."""
    trained = ~np.isin(tables.train.keys, held_out)
    table, rows = tables.train, np.flatnonzero(~trained)
    if tables.held_out is not None:
        table, rows = tables.held_out, np.arange(len(tables.held_out))
    draws = random.Random(seed)
    return View(tables.train, shuffled(np.flatnonzero(trained), draws)), View(table, shuffled(rows, draws))


def _dropped(tables: Sequence[Tables], held_out: Index) -> Dropped:
    total = Dropped()
    for each in tables:
        total += each.train.dropped
        if each.held_out is not None:
            overlap = int(np.isin(each.train.keys, held_out).sum())
            total += each.held_out.dropped + Dropped(held_out=overlap)
    return total
