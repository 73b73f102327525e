"""Tables of pairs and of SFT texts -> TextData: what is held out, in which order, how many."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import DataError, Demonstration, Dropped, Example, Parse, Preference, TextData, of_size
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

    def summary(self) -> str:
        """Which splits were read, how many rows each had, and which were not."""
        source, held_out = self.source, "a fifth of the prompts held out"
        if self.held_out is not None and source.held_out is not None:
            held_out = f"held out: {_rows_of(source.held_out, self.held_out)}"
        unread = f"; not read: {', '.join(map(printable, source.unread))}" if source.unread else ""
        return f"data: {source.option}={source.place}: {_rows_of(source.train, self.train)}; {held_out}{unread}"


def _rows_of(part: Part, table: Table) -> str:
    files = list(part.files[:LISTED_FILES])
    if more := part.files[LISTED_FILES:]:
        files.append(f"{len(more)} more")
    listed = f" from {', '.join(map(printable, files))}" if len(part.files) > 1 else ""
    return f"{printable(part.name)} {table.num_read:,} rows{listed}"


def assemble(config: DatasetConfig, wanted: Collection[str], form: Form) -> TextData:
    """A source's own test part is held out; without one, a fifth of the prompts, with all of their rows.

    Prompts that are held out, of pairs or of SFT texts, are dropped from the training parts of both. Where there are
    no SFT texts, the preferred answers are. RL prompts are those of the SFT texts, whose answers are the references.
    """
    bad_rows = BadRows(config.max_bad_rows)
    pairs = _tables(_pairs_source(config), Preference, form.preferences, form.name, bad_rows)
    tables = [pairs]
    if source := _sft_source(config):
        tables.append(_tables(source, Demonstration, lambda row: [form.demonstration(row)], form.name, bad_rows))
    held_out = _held_out_keys(tables, config.seed)
    limit = form.max_pairs_per_prompt
    train, test = (side.at_most(limit) for side in _sides(pairs, held_out, f"{config.seed} order"))
    if not len(train.index) and not len(test.index):
        place = f"dataset.hub={config.hub}" if config.path is None else f"dataset.path={config.path}"
        raise DataError(f"{place}: has no pair of answers; give it some rows")
    preferred, sides = "chosen", (train, test)
    if len(tables) > 1:
        preferred, sides = "response", _sides(tables[1], held_out, f"{config.seed} order of SFT texts")
    answers, test_answers = (
        side.at_most(1).examples(lambda row: Demonstration(row["prompt"], row[preferred])) for side in sides
    )
    data = TextData(
        sft=answers,
        test_sft=test_answers,
        pairs=train.examples(lambda row: Preference(row["prompt"], row["chosen"], row["rejected"])),
        test_pairs=test.examples(lambda row: Preference(row["prompt"], row["chosen"], row["rejected"])),
        prompts=answers,
        eval_prompts=test_answers,
        dropped=_dropped(tables, held_out),
        stop_strings=form.stop_strings([answers[i].prompt for i in range(min(len(answers), SAMPLE))]),
        sources=tuple(each.summary() for each in tables),
    )
    if any(each.held_out is None for each in tables):
        return of_size(data, config, wanted, "a fifth of the prompts", HELD_OUT_SHARE)
    return of_size(data, config, wanted, "the data's own test part")


def _pairs_source(config: DatasetConfig) -> Source:
    wanted = Wanted(config.split, config.test_split)
    if config.path is not None:
        return local_source(Path(config.path), "dataset.path", wanted)
    if config.hub is not None:
        return hub_source(config.hub, "dataset.hub", wanted, config.hub_config)
    raise DataError("dataset.path: neither it nor dataset.hub says where the pairs are; give one of them")


def _sft_source(config: DatasetConfig) -> Source | None:
    """Where SFT texts of their own lie. Local pairs do without the hub's."""
    if config.sft_path is None and (config.path is not None or config.sft_hub is None):
        return None
    wanted = Wanted(config.sft_split, config.sft_test_split, "dataset.sft_")
    if config.sft_path is not None:
        return local_source(Path(config.sft_path), "dataset.sft_path", wanted)
    return hub_source(str(config.sft_hub), "dataset.sft_hub", wanted, config.sft_hub_config)


def _tables(source: Source, kind: type[Example], parse: Parse, form: str, bad_rows: BadRows) -> Tables:
    made = [table_of(p, kind, parse, form=form, bad_rows=bad_rows) for p in (source.train, source.held_out) if p]
    return Tables(source, made[0], made[1] if source.held_out is not None else None)


def _held_out_keys(tables: Sequence[Tables], seed: int) -> Index:
    """Of every prompt that is held out."""
    keys = [each.held_out.keys for each in tables if each.held_out is not None]
    if undivided := [each.train for each in tables if each.held_out is None]:
        prompts = shuffled(distinct_prompts(undivided), f"{seed} split")
        keys.append(prompts[: round(HELD_OUT_SHARE * len(prompts))])
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
