"""Rows of .json, .jsonl and their .gz files, one at a time, each with its file and line."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rlhf.data.examples import DataError
from rlhf.errors import reason

JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
CHUNK = 2**20
"""Characters of a .json list that are read at once."""

_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Row:
    value: Any
    where: str
    """file:line, or what comes nearest to it."""
    problem: str | None = None
    """Why there is no value."""


def json_rows(path: Path, option: str) -> Iterator[Row]:
    """A .jsonl file has a row a line; a .json file is one list of rows.

    Raises:
        DataError: the file cannot be read. `option` is what named it.
    """
    try:
        with _opened(path) as file:
            if ".jsonl" in path.suffixes:
                yield from _line_rows(file, path)
            else:
                with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
                    yield from _list_rows(text, path, option)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise DataError(f"{option}={path}: cannot be read ({why}); give a readable file") from None


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _line_rows(file: BinaryIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield Row(json.loads(line.decode("utf-8-sig")), where)
        except UnicodeDecodeError as error:
            yield Row(None, where, f"not UTF-8 ({error})")
        except (ValueError, RecursionError) as error:
            yield Row(None, where, _not_json(error))


def _not_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg})"
    if isinstance(error, RecursionError):
        return "not a row (nested too deeply)"
    return f"not a row ({reason(error)})"  # as a number of more digits than Python reads


def _list_rows(file: TextIO, path: Path, option: str) -> Iterator[Row]:
    reader = _ListReader(file)
    if reader.symbol() != "[":
        raise DataError(f"{option}={path}: must hold a list of rows; a row a line is .jsonl")
    try:
        for number, (value, line) in enumerate(reader.items(), start=1):
            yield Row(value, f"{path}:{line} (row {number})")
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        # Nobody can say where the next row begins: a broken list is refused whole.
        raise DataError(f"{path}:{reader.line}: {_not_json(error)}; mend the list") from None


class _ListReader:
    """Decodes the items of one JSON list while no more than an item and a chunk of it is in memory."""

    def __init__(self, file: TextIO) -> None:
        self.line = 1
        self._file = file
        self._text = ""
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode

    def items(self) -> Iterator[tuple[Any, int]]:
        """(item, its first line); the next symbol is the list's opening bracket."""
        self._advance(self._at + 1)
        if self.symbol() != "]":
            while True:
                self.symbol()
                line = self.line
                yield self._value(), line
                if self.symbol() != ",":
                    break
                self._advance(self._at + 1)
        if self.symbol() != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter or ']'", self._text, self._at)
        self._advance(self._at + 1)
        if self.symbol():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def symbol(self) -> str:
        """The next character that is not blank, which stays; "" at the end of the file."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None
            self._advance(blanks.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(CHUNK):
                return ""

    def _value(self) -> Any:
        size = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                start = self._at
                if self._read(size):  # perhaps the item goes on
                    size *= 2
                    continue
                self.line += error.doc.count("\n", start, error.pos)
                raise
            if end < len(self._text) or not self._read(CHUNK):  # at the end of a chunk, 12 may be the start of 123
                self._advance(end)
                return value

    def _read(self, size: int) -> bool:
        chunk = self._file.read(size)
        if chunk:
            self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def _advance(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end
