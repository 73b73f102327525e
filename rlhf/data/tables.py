"""Examples as Arrow tables on disk, mapped into memory: of a set of any size, only what is looked at is in RAM.

A part of a source is read once, row by row: every row is checked, brought into the one form that training reads, and
written to the cache of `datasets` (HF_DATASETS_CACHE). Later runs find the table there.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
from numpy.typing import NDArray

from rlhf.data.examples import (
    DataError,
    Demonstration,
    Dropped,
    Example,
    MalformedRow,
    Mapped,
    Parse,
    Preference,
    Prompt,
    TextAlone,
    UnknownForm,
)
from rlhf.data.rows import Row
from rlhf.data.sources import Part
from rlhf.errors import FileError, reason
from rlhf.files import file_errors, read_json_object, remedy_for
from rlhf.waiting import locked

NAMED = 10
"""Malformed rows that are named one by one; the others are counted."""
ROWS_AT_ONCE = 1000

Index = NDArray[np.int64]
Out = TypeVar("Out")


@dataclass(frozen=True)
class Table:
    """Examples in the order of their source."""

    rows: datasets.Dataset
    keys: Index
    """A hash of each row's prompt: equal prompts have equal ones."""
    dropped: Dropped
    num_read: int
    """Rows of the source."""
    form: str = ""
    """What is to be said of its columns."""
    columns: tuple[str, ...] = ()
    """Names of the other columns, of all rows together."""
    kind: type[Example] = Preference

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class View:
    """Rows of a table in some order."""

    table: Table
    index: Index

    def at_most(self, limit: int | None) -> View:
        """The first `limit` rows of each prompt."""
        if limit is None:
            return self
        keys = self.table.keys[self.index]
        order = np.argsort(keys, kind="stable")
        place = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])  # among those of its prompt
        return View(self.table, self.index[np.sort(order[place < limit])])

    def with_text(self, column: str) -> View:
        """The rows whose `column` is not empty."""
        there = compute.not_equal(self.table.rows.data.column(column), "")  # pyright: ignore[reportAttributeAccessIssue]
        return View(self.table, self.index[there.to_numpy()[self.index]])

    def examples(self, make: Callable[[dict[str, Any]], Out], columns: Sequence[str] = ()) -> Mapped[Any, Out]:
        """What `make` makes of each row, when it is asked for.

        Args:
            columns: the other columns that every row is to have.
        """
        index: Any = self.index

        def example(at: Any) -> Out:
            row: dict[str, Any] = self.table.rows[int(at)]
            row["columns"] = {**dict.fromkeys(columns), **json.loads(row["columns"] or "{}")}
            return make(row)

        return Mapped(index, example)


@dataclass
class BadRows:
    """How many malformed rows a data set may have, and how many the tables that were read before have."""

    allowed: int
    elsewhere: int = 0

    def check(self, dropped: Dropped) -> None:
        """A table's own, which refuse the data where there are too many."""
        bad = self.elsewhere + dropped.malformed
        if dropped.malformed and bad > self.allowed:
            one_more = min(max(self.allowed - self.elsewhere, 0), len(dropped.named) - 1)
            others = f" ({bad} malformed rows so far)" if bad > 1 else ""
            raise DataError(
                f"{dropped.named[one_more]}; mend or drop it, or raise dataset.max_bad_rows={self.allowed}{others}"
            )


def table_of(
    part: Part,
    kind: type[Example],
    parse: Parse,
    *,
    form: str,
    bad_rows: BadRows,
    found: Callable[[Any, Example], str] = lambda row, example: "",
) -> Table:
    """The examples that `parse` finds in the rows of `part`, from the cache if they are there.

    Args:
        found: what to say of the columns of the first row that an example is made of.

    Raises:
        DataError: more rows are malformed than may be; the one too many is named.
    """
    folder = _cache_folder(part, kind, form)
    try:
        with file_errors(folder.parent, "make it"):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{folder}.lock"), "converts this data"):  # runs that start together convert it once
            if not folder.exists():
                partial = folder.with_suffix(".partial")
                with file_errors(partial, "write it"):
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir()
                    _convert(part, kind, parse, partial, bad_rows, found)
                    os.replace(partial, folder)
    except FileError as error:
        why = os.strerror(error.errno) if error.errno else "no reason given"
        remedy = "" if error.errno == errno.ENOTDIR else f"{remedy_for(error)}, or "
        raise DataError(f"{folder}: cannot be written ({why}); {remedy}set HF_DATASETS_CACHE to a folder") from error
    return _read(folder, kind, bad_rows)


def _read(folder: Path, kind: type[Example], bad_rows: BadRows) -> Table:
    try:
        counts: dict[str, Any] = read_json_object(folder / "dropped.json") or {}
        num_read, said = int(counts.pop("num_read")), str(counts.pop("form"))
        others = tuple(map(str, counts.pop("columns")))
        counts["named"] = tuple(counts["named"])
        dropped = Dropped(**counts)
        rows = datasets.Dataset.from_file(str(folder / "rows.arrow"))
        keys = rows.data.column("key").to_numpy()
        columns = rows.select_columns([field.name for field in dataclasses.fields(kind)])
    except Exception as error:  # whatever pyarrow and datasets raise on damaged files
        raise DataError(f"{folder}: the converted data is damaged ({reason(error)}); delete this folder") from error
    bad_rows.check(dropped)
    bad_rows.elsewhere += dropped.malformed
    return Table(columns, keys, dropped, num_read, said, others, kind)


def _cache_folder(part: Part, kind: type, form: str) -> Path:
    name = json.dumps([_rules(), part.fingerprint, kind.__name__, form])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "apa_rlhf"
    return cache / hashlib.sha256(name.encode()).hexdigest()[:24]


@functools.cache
def _rules() -> str:
    """Of this package's code: tables that other rules made are not read again."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _convert(
    part: Part,
    kind: type[Example],
    parse: Parse,
    folder: Path,
    bad_rows: BadRows,
    found: Callable[[Any, Example], str],
) -> None:
    """Write rows.arrow and dropped.json."""
    texts = [(field.name, pa.string()) for field in dataclasses.fields(kind)]
    schema = pa.schema([*texts, ("key", pa.int64())])
    dropped, num_read, form = Dropped(), 0, None
    columns: dict[str, None] = {}

    def examples() -> Iterator[dict[str, Any]]:
        nonlocal dropped, num_read, form
        for row in part.rows():
            num_read += 1
            for example in _examples_of(row, parse, form is None):
                if isinstance(example, Dropped):
                    dropped += example
                    dropped = dataclasses.replace(dropped, named=dropped.named[:NAMED])
                    bad_rows.check(dropped)
                    continue
                form = found(row.value, example) if form is None else form
                columns.update(dict.fromkeys(example.columns))
                # What JSON does not know, as dates, becomes a text.
                others = json.dumps(example.columns, default=str) if example.columns else ""
                yield {**vars(example), "columns": others, "key": prompt_key(_question(example))}

    rows = examples()
    batches = iter(lambda: list(itertools.islice(rows, ROWS_AT_ONCE)), [])
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in itertools.chain(batches, [[]]):  # an empty one too, lest there be none
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    said = {"num_read": num_read, "form": form or "", "columns": [*columns]}
    (folder / "dropped.json").write_text(json.dumps({**said, **dataclasses.asdict(dropped)}))


def _examples_of(row: Row, parse: Parse, first: bool) -> list[Example | Dropped]:
    """Each example of a row, or why there is none.

    Raises:
        DataError: the `first` rows have a form that is not read, and no number of bad rows would mend that.
    """
    examples: Sequence[Example | Dropped] = ()
    problem = row.problem
    if problem is None:
        try:
            examples = parse(row.value)
            for example in examples:
                if not isinstance(example, Dropped):
                    "".join(value for value in vars(example).values() if isinstance(value, str)).encode()
        except MalformedRow as error:
            if first and isinstance(error, UnknownForm):
                raise DataError(f"{row.where}: {error}") from None
            problem = str(error)
        except UnicodeEncodeError:
            problem = "a text holds half a surrogate pair"
    if problem is not None:
        return [Dropped(malformed=1, named=(f"{row.where}: {problem}",))]
    return [_unless_empty(example) for example in examples] or [Dropped(no_preference=1)]


def _unless_empty(example: Example | Dropped) -> Example | Dropped:
    if isinstance(example, Dropped):
        return example
    if not example.prompt.strip() and not isinstance(example, TextAlone):
        return Dropped(empty_prompts=1)
    if isinstance(example, Demonstration):
        return example if example.response.strip() or isinstance(example, Prompt) else Dropped(no_preference=1)
    teaches = example.chosen.strip() and example.rejected.strip()
    return example if teaches and example.chosen.rstrip() != example.rejected.rstrip() else Dropped(no_preference=1)


def _question(example: Example) -> str:
    """By which prompts are told apart: one message of the user is the same as its text. Texts without a prompt are no
    answers to the same one."""
    if isinstance(example, TextAlone):
        return example.response
    messages = json.loads(example.messages) if example.messages else []
    return messages[0]["content"] if len(messages) == 1 else example.prompt


def prompt_key(prompt: str) -> int:
    """64 bits that tell prompts apart: two of ten million agree by chance with probability 3e-6."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "little", signed=True)


def shuffled(index: Index, draws: random.Random | str) -> Index:
    """`index` in the order in which `draws`, or a generator of that seed, shuffles a list of this length."""
    order = array("q", index.astype(np.int64).tobytes())
    (random.Random(draws) if isinstance(draws, str) else draws).shuffle(order)
    return np.frombuffer(order, dtype=np.int64)


def distinct_prompts(tables: Sequence[Table]) -> Index:
    """The key of each prompt once, in the order of the prompts' texts."""
    chunks = [chunk for table in tables for chunk in table.rows.data.column("prompt").chunks]
    prompts = pa.chunked_array(chunks, pa.string())
    order = compute.sort_indices(prompts).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]  # made on import
    keys = np.concatenate([table.keys for table in tables])[order]
    return keys[np.sort(np.unique(keys, return_index=True)[1])]
