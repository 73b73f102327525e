"""Rows of .json, .jsonl, .csv, .tsv and their .gz files, one at a time, each with its file and line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.examples import DataError
from rlhf.errors import printable, reason

TEXT_SUFFIXES = tuple(f"{name}{packed}" for name in (".json", ".jsonl", ".csv", ".tsv") for packed in ("", ".gz"))
_BLANKS = re.compile(r"[ \t\r\n]*")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""With which such a file begins."""
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    value: Any
    where: str
    """file:line, or what comes nearest to it."""
    problem: str | None = None
    """Why there is no value."""


def text_rows(path: Path, option: str) -> Iterator[Row]:
    """A row a line, of .jsonl and of a .json that is no list; the items of a .json that is one list, or an object that
    holds one; the lines of a .csv or .tsv below its header, whose values are texts. UTF-8, or UTF-16 with its mark.

    Raises:
        DataError: the file cannot be read. `option` is what named it.
    """
    with (
        cannot_be_read(f"{option}={path}", OSError, EOFError, zlib.error, UnicodeError, csv.Error),
        gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file,
    ):
        if ".jsonl" in path.suffixes:
            yield from _line_rows(_lines(file), path)
        elif ".json" in path.suffixes:
            yield from _json_rows(path, _text(file.read()), option)
        else:
            yield from _table_rows(_lines(file), path, option)


@contextlib.contextmanager
def cannot_be_read(place: str, *errors: type[Exception], remedy: str = "give a readable file") -> Iterator[None]:
    """Turn what reading raises into one line that names the option and its value.

    Raises:
        DataError: the body raised one of `errors`.
    """
    try:
        yield
    except errors as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise DataError(f"{place}: cannot be read ({why}); {remedy}") from None


def _text(content: bytes) -> str:
    return content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")


def _lines(file: gzip.GzipFile | io.BufferedReader) -> Iterator[bytes]:
    """Lines in UTF-8, whatever the file is written in."""
    start = file.read(2)
    file.seek(0)
    if start not in _UTF_16:
        return iter(file)
    # No other character than \n ends a line of JSON: a text may hold those that Python takes for one.
    return (line.encode() for line in io.TextIOWrapper(file, "utf-16", newline="\n"))


def _table_rows(lines: Iterable[bytes], path: Path, option: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # texts are longer than Python expects
    texts = (line.decode("utf-8-sig" if not number else "utf-8") for number, line in enumerate(lines))
    header = next(texts, "")
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(itertools.chain([header], texts), delimiter=delimiter, strict=True)
    names = next(reader, [])
    if len({*names}) < len(names) or not all(name.strip() for name in names) or not names:
        raise DataError(
            f"{option}={path}: its first line must name the columns, each once, and is {printable(header.strip())!r}"
        )
    for cells in reader:
        if not cells:
            continue
        where = f"{path}:{reader.line_num}"
        problem = None if len(cells) == len(names) else f"{len(cells)} cells, and the first line names {len(names)}"
        yield Row(None if problem else dict(zip(names, cells, strict=True)), where, problem)


def _line_rows(lines: Iterable[bytes], path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield Row(json.loads(line.rstrip(b"\r\n").decode("utf-8-sig")), where)
        except UnicodeDecodeError as error:
            yield Row(None, where, f"not UTF-8 ({error})")
        except (ValueError, RecursionError) as error:
            yield Row(None, where, _not_json(error))


def _not_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg.removesuffix(' at')} at character {error.colno} of the line)"
    if isinstance(error, RecursionError):
        return "not a row (nested too deeply)"
    return f"not a row ({reason(error)})"  # as a number of more digits than Python reads


def _json_rows(path: Path, text: str, option: str) -> Iterator[Row]:
    """Rows of a list, of an object with one list of objects, or of a row a line."""
    start = _next_symbol(text, 0)
    if text[start : start + 1] == "[":
        yield from _list_rows(text, path)
        return
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{path}:{line}: {_not_json(error)}; give a list of rows, or a row a line") from None
    if _next_symbol(text, end) < len(text):
        yield from _line_rows((line.encode() for line in io.StringIO(text, newline="\n")), path)
        return
    lists = {
        str(name): items
        for name, items in (value.items() if isinstance(value, dict) else ())
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
    }
    if len(lists) != 1:
        found = f"holds lists of rows called {', '.join(map(printable, lists))}" if lists else "holds no list of rows"
        raise DataError(
            f"{option}={path}: {found}; give one list, a row a line, or a folder with a file for each split"
        )
    ((name, items),) = lists.items()
    yield from (Row(item, f"{path} ({printable(name)}, row {number})") for number, item in enumerate(items, start=1))


def _next_symbol(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    assert blanks is not None
    return blanks.end()


def _list_rows(text: str, path: Path) -> Iterator[Row]:
    """The items of one list, decoded one at a time: only its text is in memory."""
    decode = json.JSONDecoder().raw_decode
    line, counted = 1, 0
    try:
        at = _next_symbol(text, _next_symbol(text, 0) + 1)
        for number in itertools.count(1):
            if number == 1 and text[at : at + 1] == "]":
                break
            line, counted = line + text.count("\n", counted, at), at
            value, end = decode(text, at)
            yield Row(value, f"{path}:{line} (row {number})")
            at = _next_symbol(text, end)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter or ']'", text, at)
            at = _next_symbol(text, at + 1)
        if (end := _next_symbol(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:
        # Nobody can say where the next row begins: a broken list is refused whole.
        line = error.lineno if isinstance(error, json.JSONDecodeError) else line
        raise DataError(f"{path}:{line}: {_not_json(error)}; mend the list") from None
