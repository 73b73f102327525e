"""Rows of .json, .jsonl and their .gz files, one at a time, each with its file and line."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlhf.data.examples import DataError
from rlhf.errors import reason

JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
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
                yield from _list_rows(file.read().decode("utf-8-sig"), path, option)
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


def _list_rows(text: str, path: Path, option: str) -> Iterator[Row]:
    """The items of one list, decoded one at a time: only its text is in memory."""

    def next_symbol(at: int) -> int:
        blanks = _BLANKS.match(text, at)
        assert blanks is not None
        return blanks.end()

    decode = json.JSONDecoder().raw_decode
    at = next_symbol(0)
    if text[at : at + 1] != "[":
        raise DataError(f"{option}={path}: must hold a list of rows; a row a line is .jsonl")
    line, counted = 1, 0
    try:
        at = next_symbol(at + 1)
        for number in itertools.count(1):
            if number == 1 and text[at : at + 1] == "]":
                break
            line, counted = line + text.count("\n", counted, at), at
            value, end = decode(text, at)
            yield Row(value, f"{path}:{line} (row {number})")
            at = next_symbol(end)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter or ']'", text, at)
            at = next_symbol(at + 1)
        if (end := next_symbol(at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:
        # Nobody can say where the next row begins: a broken list is refused whole.
        line = error.lineno if isinstance(error, json.JSONDecodeError) else line
        raise DataError(f"{path}:{line}: {_not_json(error)}; mend the list") from None
