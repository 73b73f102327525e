"""Tables of pairs and of SFT texts -> TextData: what is held out, in which order, how many."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import DataError, Demonstration, Dropped, Preference, TextData, of_size
from rlhf.data.form import Form, Parse
from rlhf.data.sources import Part, Source, Wanted, hub_source, local_source
from rlhf.data.tables import (
    BadRows,
    Index,
    Table,
    View,
    at_most_of_each,
    demonstration,
    distinct_prompts,
    preference,
    preferred,
    shuffled,
    table_of,
)
from rlhf.errors import printable

HELD_OUT_SHARE = 0.2
SAMPLE = 100
"""Prompts that tell which form a data set has."""
LISTED_FILES = 5
"""Of a split, in what is said of it."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """One kind of examples; `held_out` is None where the source has no such part."""

    source: Source
    train: Table
    held_out: Table | None

    @property
    def told(self) -> str:
        """Which splits were read, how many rows each had, and which were not."""
        source, of_own = self.source, "a fifth of the prompts held out"
        if self.held_out is not None and source.held_out is not None:
            of_own = f"held out: {_rows_of(source.held_out, self.held_out)}"
        unread = f"; not read: {', '.join(map(printable, source.unread))}" if source.unread else ""
        return f"data: {source.option}={source.place}: {_rows_of(source.train, self.train)}; {of_own}{unread}"


def _rows_of(part: Part, table: Table) -> str:
    few = [
        *part.files[:LISTED_FILES],
        *([f"{len(part.files) - LISTED_FILES} more"] if part.files[LISTED_FILES:] else []),
    ]
    files = f" from {', '.join(map(printable, few))}" if len(part.files) > 1 else ""
    return f"{printable(part.name)} {table.num_read:,} rows{files}"


@dataclasses.dataclass(frozen=True)
class Side:
    """The rows of a table that are trained on, or those held out, in the order that the seed gives."""

    table: Table
    index: Index

    def view(self, make: Callable[[dict[str, str]], Any]) -> View[Any]:
        return View(self.table, self.index, make)

    def at_most(self, limit: int | None) -> Side:
        """With the first `limit` rows of each prompt."""
        if limit is None:
            return self
        return Side(self.table, self.index[at_most_of_each(self.table.keys[self.index], limit)])


def assemble(config: DatasetConfig, wanted: Collection[str], form: Form) -> TextData:
    """A source's own test part is held out; without one, a fifth of the prompts, with all of their rows.

    Prompts that are held out, of pairs or of SFT texts, are dropped from the training parts of both. Where there are
    no SFT texts, the preferred answers are. RL prompts are those of the SFT texts, whose answers are the references.
    """
    pairs = _pairs(config, form)
    answers = _answers(config, form, BadRows(config.max_bad_rows, _malformed(pairs)))
    given = [pairs] if answers is None else [pairs, answers]
    held_out = _held_out_keys(given, config.seed)
    sides = _sides(pairs, held_out, f"{config.seed} order")
    train, test = (side.at_most(form.max_pairs_per_prompt) for side in sides)
    if not len(train.index) and not len(test.index):
        named = f"dataset.hub={config.hub}" if config.path is None else f"dataset.path={config.path}"
        raise DataError(f"{named}: has no pair of answers; give it some rows")
    make = preferred
    answer_sides: Sequence[Side] = (train, test)
    if answers is not None:
        make = demonstration
        answer_sides = _sides(answers, held_out, f"{config.seed} order of SFT texts")
    train_answers, test_answers = (side.at_most(1).view(make) for side in answer_sides)
    parts = TextData(
        sft=train_answers,
        test_sft=test_answers,
        pairs=train.view(preference),
        test_pairs=test.view(preference),
        prompts=train_answers,
        eval_prompts=test_answers,
        dropped=_dropped(given, held_out),
        stop_strings=form.stop_strings([train_answers[i].prompt for i in range(min(len(train_answers), SAMPLE))]),
        sources=tuple(parts.told for parts in given),
    )
    whole = any(one.held_out is None for one in given)
    of_own = "a fifth of the prompts" if whole else "the data's own test part"
    return of_size(parts, config, wanted, of_own, HELD_OUT_SHARE if whole else None)


def _pairs(config: DatasetConfig, form: Form) -> Parts:
    wanted = Wanted(config.split, config.test_split)
    if config.path is not None:
        source = local_source(Path(config.path), "dataset.path", wanted)
    elif config.hub is not None:
        source = hub_source(config.hub, "dataset.hub", wanted, config.hub_config)
    else:
        raise DataError("dataset.path: neither it nor dataset.hub says where the pairs are; give one of them")
    return _parts(source, Preference, form.preferences, form.name, BadRows(config.max_bad_rows))


def _answers(config: DatasetConfig, form: Form, bad_rows: BadRows) -> Parts | None:
    """SFT texts of their own. Local pairs do without the hub's."""
    if config.sft_path is None and (config.path is not None or config.sft_hub is None):
        return None
    wanted = Wanted(config.sft_split, config.sft_test_split, "dataset.sft_")
    if config.sft_path is not None:
        source = local_source(Path(config.sft_path), "dataset.sft_path", wanted)
    else:
        assert config.sft_hub is not None
        source = hub_source(config.sft_hub, "dataset.sft_hub", wanted, config.sft_hub_config)
    return _parts(source, Demonstration, lambda row: [form.demonstration(row)], form.name, bad_rows)


def _parts(
    source: Source,
    kind: type[Demonstration | Preference],
    parse: Parse,
    form: str,
    bad_rows: BadRows,
) -> Parts:
    train = table_of(source.train, kind, parse, form=form, bad_rows=bad_rows)
    if source.held_out is None:
        return Parts(source, train, None)
    bad_rows = BadRows(bad_rows.allowed, bad_rows.elsewhere + train.dropped.malformed)
    return Parts(source, train, table_of(source.held_out, kind, parse, form=form, bad_rows=bad_rows))


def _malformed(parts: Parts) -> int:
    return parts.train.dropped.malformed + (0 if parts.held_out is None else parts.held_out.dropped.malformed)


def _held_out_keys(given: Sequence[Parts], seed: int) -> Index:
    """Of every prompt that is held out."""
    keys = [parts.held_out.keys for parts in given if parts.held_out is not None]
    whole = [parts.train for parts in given if parts.held_out is None]
    if whole:
        prompts = shuffled(distinct_prompts(whole), f"{seed} split")
        keys.append(prompts[: round(HELD_OUT_SHARE * len(prompts))])
    return np.unique(np.concatenate(keys))


def _sides(parts: Parts, held_out: Index, seed: str) -> tuple[Side, Side]:
    """(trained on, held out)."""
    trained = ~np.isin(parts.train.keys, held_out)
    if parts.held_out is None:
        table, rows = parts.train, np.flatnonzero(~trained)
    else:
        table, rows = parts.held_out, np.arange(len(parts.held_out))
    draws = random.Random(seed)
    return Side(parts.train, shuffled(np.flatnonzero(trained), draws)), Side(table, shuffled(rows, draws))


def _dropped(given: Sequence[Parts], held_out: Index) -> Dropped:
    total = Dropped()
    for parts in given:
        total += parts.train.dropped
        if parts.held_out is not None:
            overlap = int(np.isin(parts.train.keys, held_out).sum())
            total += parts.held_out.dropped + Dropped(held_out=overlap)
    return total
