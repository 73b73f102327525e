"""Where collected data lies: a file, a folder or the hub, each as a training part and perhaps a held-out one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from rlhf.config.identity import fingerprint
from rlhf.data.examples import DataError
from rlhf.data.rows import JSON_SUFFIXES, Row, json_rows
from rlhf.errors import reason

SUFFIXES = (*JSON_SUFFIXES, ".parquet")
HELD_OUT_NAMES = ("test", "validation", "valid", "valid1", "eval", "evaluation", "dev")
"""The part of a source that is held out: the first of these that it has. Any other part but train is left alone."""

_PART_FILE = re.compile(rf"(train|{'|'.join(sorted(HELD_OUT_NAMES, key=len, reverse=True))})(?![a-z0-9])")
_UNREADABLE = (OSError, ValueError, KeyError, DatasetsError)  # what `datasets` and pyarrow raise; ArrowInvalid is one


@dataclass(frozen=True)
class Part:
    """Rows that belong together."""

    fingerprint: str
    """Changes with the rows."""
    rows: Callable[[], Iterable[Row]]


@dataclass(frozen=True)
class Source:
    option: str
    """What named it, for errors: dataset.path, dataset.hub, ..."""
    train: Part
    held_out: Part | None
    """None: a share of `train` has to be held out."""


def local_source(path: Path, option: str) -> Source:
    """A file, a `save_to_disk` folder, or a folder with files train*, test* and so on.

    Raises:
        DataError: it is none of them, or cannot be read.
    """
    if path.is_file() or not path.exists():
        return Source(option, _file_part([path], option), None)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = _saved(path, option)
        parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return _source(
            {str(name): _dataset_part(part, f"{path} {name}") for name, part in parts.items()}, option, str(path)
        )
    files: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        if file.name.endswith(SUFFIXES) and (match := _PART_FILE.match(file.name)):
            files.setdefault(match[1], []).append(file)
    return _source({name: _file_part(listed, option) for name, listed in files.items()}, option, str(path))


def hub_source(name: str, option: str) -> Source:
    """A data set of the hub, kept by `datasets` in its own cache; `owner/name/folder` is one folder of it."""
    owner, _, rest = name.partition("/")
    repository, _, folder = rest.partition("/")
    try:
        parts = datasets.load_dataset(f"{owner}/{repository}" if rest else owner, data_dir=folder or None)
    except (*_UNREADABLE, RuntimeError) as error:
        raise DataError(
            f"{option}={name}: the hub did not give it ({reason(error)}); "
            f"set {option.replace('hub', 'path')} to local files"
        ) from None
    return _source({str(part): _dataset_part(rows, f"{name} {part}") for part, rows in parts.items()}, option, name)


def _source(parts: dict[str, Part], option: str, place: str) -> Source:
    held_out = next((parts[name] for name in HELD_OUT_NAMES if name in parts), None)
    if "train" not in parts:
        raise DataError(
            f"{option}={place}: has no training part ({', '.join(parts) or 'nothing that can be read'}); give a "
            "save_to_disk folder, or files called train and test with one of " + " ".join(SUFFIXES)
        )
    return Source(option, parts["train"], held_out)


def _file_part(files: list[Path], option: str) -> Part:
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{option}={path}: not a {', '.join(SUFFIXES)} file or a save_to_disk folder")

    def rows() -> Iterator[Row]:
        for path in files:
            yield from _parquet_rows(path, option) if path.suffix == ".parquet" else json_rows(path, option)

    # A file beyond some size is known by its two ends: when and where it was written says the rest.
    states = [(str(path.resolve()), path.stat().st_mtime_ns, fingerprint(str(path))) for path in files if path.exists()]
    return Part(hashlib.sha256(json.dumps(states).encode()).hexdigest(), rows)


def _parquet_rows(path: Path, option: str) -> Iterator[Row]:
    try:
        streamed = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from _dataset_rows(streamed, str(path))
    except _UNREADABLE as error:
        raise DataError(f"{option}={path}: cannot be read ({reason(error)}); give a readable file") from None


def _saved(path: Path, option: str) -> datasets.Dataset | datasets.DatasetDict:
    try:
        return datasets.load_from_disk(str(path))
    except _UNREADABLE as error:
        raise DataError(f"{option}={path}: cannot be read ({reason(error)}); save it again") from None


def _dataset_part(rows: datasets.Dataset, name: str) -> Part:
    return Part(rows._fingerprint, lambda: _dataset_rows(rows, name))


def _dataset_rows(rows: Iterable[Any], name: str) -> Iterator[Row]:
    return (Row(value, f"{name}, row {number}") for number, value in enumerate(rows, start=1))
