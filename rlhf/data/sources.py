"""Where collected data lies: a file, a folder or the hub, in splits: one is trained on, one may be held out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from rlhf.config.identity import fingerprint
from rlhf.data.examples import DataError
from rlhf.data.rows import TEXT_SUFFIXES, Row, cannot_be_read, text_rows
from rlhf.errors import printable, reason

SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")
ROWS_AT_ONCE = 1000
TRAIN = "train"
HELD_OUT_NAMES = ("test", "validation", "valid", "valid1", "eval", "evaluation", "dev")
"""The split of a source that is held out where no option names one: the first of these that it has."""

# What stands behind a split's name where its rows lie in several files: train-00000-of-00002, train_1.
_SHARD = re.compile(r"([-_]\d+)(-of-\d+)?$")
_UNREADABLE = (OSError, ValueError, KeyError, DatasetsError)  # what `datasets` and pyarrow raise; ArrowInvalid is one


@dataclass(frozen=True)
class Part:
    """A split: rows that belong together."""

    name: str
    fingerprint: str
    """Changes with the rows."""
    rows: Callable[[], Iterable[Row]]
    files: tuple[str, ...] = ()
    """That its rows are read from, where it is known."""


@dataclass(frozen=True)
class Wanted:
    """Which splits of a source are read, and the options that say so, for errors."""

    train: str | None = None
    """None: TRAIN."""
    held_out: str | None = None
    """None: the first of HELD_OUT_NAMES that is there."""
    prefix: str = "dataset."
    """Of the options: dataset. or dataset.sft_."""


@dataclass(frozen=True)
class Source:
    option: str
    """What named it, for errors: dataset.path, dataset.hub, ..."""
    place: str
    """The value of that option."""
    train: Part
    held_out: Part | None
    """None: a share of `train` has to be held out."""
    unread: tuple[str, ...] = ()
    """Its other splits."""


def local_source(path: Path, option: str, wanted: Wanted = Wanted()) -> Source:
    """A file, a `save_to_disk` folder, or a folder with a file for each split or each shard of one.

    Raises:
        DataError: it is none of them, or cannot be read.
    """
    if path.is_file() or not path.exists():
        return _only(_file_part(TRAIN, [path], option), option, str(path), wanted)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        with cannot_be_read(f"{option}={path}", *_UNREADABLE, remedy="save it again"):
            saved = datasets.load_from_disk(str(path))
        if not isinstance(saved, datasets.DatasetDict):
            return _only(_dataset_part(TRAIN, saved, str(path)), option, str(path), wanted)
        parts = {str(name): _dataset_part(str(name), rows, f"{path} {name}") for name, rows in saved.items()}
        return _source(parts, option, str(path), wanted)
    files: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        if file.name.endswith(SUFFIXES) and file.is_file():
            files.setdefault(_split_of(file), []).append(file)
    parts = {name: _file_part(name, listed, option, path) for name, listed in files.items()}
    return _source(parts, option, str(path), wanted)


def hub_source(name: str, option: str, wanted: Wanted = Wanted(), configuration: str | None = None) -> Source:
    """A data set of the hub, kept by `datasets` in its own cache; `owner/name/folder` is one folder of it.

    Args:
        configuration: one of those that the data set has; None: its only or default one.

    Raises:
        DataError: the hub did not give it, or it has other splits.
    """
    owner, _, rest = name.partition("/")
    repository, _, folder = rest.partition("/")
    repository = f"{owner}/{repository}" if rest else owner
    try:
        parts = datasets.load_dataset(repository, configuration, data_dir=folder or None)
    except Exception as error:  # whatever `datasets`, the hub client or their HTTP library raise
        raise DataError(
            f"{option}={name}: the hub did not give it ({_why(error, repository)}); set {wanted.prefix}hub_config to "
            f"one of its configurations, {wanted.prefix}path to local files, or HF_TOKEN where access must be granted"
        ) from None
    named = {str(part): _dataset_part(str(part), rows, f"{name} {part}") for part, rows in parts.items()}
    return _source(named, option, name, wanted)


def _why(error: Exception, repository: str) -> str:
    """With every configuration to choose from, where that is what is missing."""
    if not isinstance(error, ValueError):
        return reason(error)
    try:
        names = datasets.get_dataset_config_names(repository)
    except Exception:  # as above
        return reason(error)
    return reason(error) if len(names) < 2 else f"its configurations are {', '.join(map(printable, names))}"


def _split_of(file: Path) -> str:
    stem = file.name.removesuffix(next(suffix for suffix in reversed(SUFFIXES) if file.name.endswith(suffix)))
    return _SHARD.sub("", stem)


def _only(part: Part, option: str, place: str, wanted: Wanted) -> Source:
    """A source that has no splits to choose from."""
    for name, value in (("split", wanted.train), ("test_split", wanted.held_out)):
        if value is not None:
            raise DataError(f"{wanted.prefix}{name}={value}: {option}={place} has no splits; leave it null")
    return Source(option, place, part, None)


def _source(parts: dict[str, Part], option: str, place: str, wanted: Wanted) -> Source:
    there = ", ".join(map(printable, parts))
    if not parts:
        raise DataError(
            f"{option}={place}: holds no rows; give a file, a save_to_disk folder, or a folder with files called train "
            "and test, with one of " + " ".join(SUFFIXES)
        )
    train, held_out = wanted.train or TRAIN, wanted.held_out
    if train not in parts:
        raise DataError(f"{option}={place}: has no split {train}, but {there}; name one as {wanted.prefix}split")
    if held_out is None:
        held_out = next((name for name in HELD_OUT_NAMES if name in parts and name != train), None)
    elif held_out not in parts:
        raise DataError(
            f"{option}={place}: has no split {held_out}, but {there}; name one as {wanted.prefix}test_split, or leave "
            "it null"
        )
    elif held_out == train:
        raise DataError(f"{wanted.prefix}test_split={held_out}: is what is trained on; name another, or leave it null")
    unread = tuple(sorted(set(parts) - {train, held_out}))
    return Source(option, place, parts[train], None if held_out is None else parts[held_out], unread)


def _file_part(name: str, files: list[Path], option: str, folder: Path | None = None) -> Part:
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{option}={path}: not a {', '.join(SUFFIXES)} file or a save_to_disk folder")

    def rows() -> Iterator[Row]:
        for path in files:
            kinds = {".parquet": _parquet_rows, ".arrow": _arrow_rows}
            yield from kinds.get(path.suffix, text_rows)(path, option)

    # A file beyond some size is known by its two ends: when and where it was written says the rest.
    states = [(str(path.resolve()), path.stat().st_mtime_ns, fingerprint(str(path))) for path in files if path.exists()]
    listed = tuple(str(path if folder is None else path.relative_to(folder)) for path in files)
    return Part(name, hashlib.sha256(json.dumps(states).encode()).hexdigest(), rows, listed)


def _parquet_rows(path: Path, option: str) -> Iterator[Row]:
    with cannot_be_read(f"{option}={path}", *_UNREADABLE), pq.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=ROWS_AT_ONCE)
        yield from _dataset_rows((row for batch in batches for row in batch.to_pylist()), str(path))


def _arrow_rows(path: Path, option: str) -> Iterator[Row]:
    """Of Arrow's file format or, as `datasets` writes it, of its stream."""
    with cannot_be_read(f"{option}={path}", *_UNREADABLE), pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            batches = iter(pa.ipc.open_stream(file))
        firsts = ((batch, first) for batch in batches for first in range(0, batch.num_rows, ROWS_AT_ONCE))
        parts = (batch.slice(first, ROWS_AT_ONCE) for batch, first in firsts)
        yield from _dataset_rows((row for part in parts for row in part.to_pylist()), str(path))


def _dataset_part(name: str, rows: datasets.Dataset, where: str) -> Part:
    return Part(name, rows._fingerprint, lambda: _dataset_rows(rows, where))


def _dataset_rows(rows: Iterable[Any], name: str) -> Iterator[Row]:
    return (Row(value, f"{name}, row {number}") for number, value in enumerate(rows, start=1))
