"""`NAME=SOURCE` arguments -> `Model`s: what each model answered to each prompt.

A source is a run folder, of whose samples.jsonl one evaluation counts (the last, or with `@first` the first: the SFT
policy before RL), or a JSONL file with `prompt`, `response` and optionally `reference` and scores. A file whose rows
have a `step`, such as a samples.jsonl, is read like a run's. A pattern stands for all that it matches: no shell expands
`apa=runs/default/apa-*`.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.winrate.errors import WinrateError

Which = Literal["first", "last"]

SAMPLES = "samples.jsonl"
_NOT_IN_NAMES = frozenset(":,=@/")


@dataclass(frozen=True)
class Answer:
    """One response, with the row that it came from: scores are looked up there."""

    response: str
    reference: str | None
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """One run or file."""

    path: Path  # as the user gave it
    which: Which
    step: int | None  # of the evaluation that was taken; None for a file without steps
    answers: Mapping[str, Answer]  # by prompt, in the file's order
    duplicates: int  # rows left out since an earlier one has the same prompt


@dataclass(frozen=True)
class Model:
    """A name and one source per seed."""

    name: str
    sources: tuple[Source, ...]


def read_models(arguments: Sequence[str]) -> list[Model]:
    """The models of the command line, in its order.

    Raises:
        WinrateError: fewer than two, a name twice, a source that is not there or not in form.
    """
    models = [_read_model(argument) for argument in arguments]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise WinrateError(f"{name}= is given twice; put the seeds of one model behind commas: {name}=RUN1,RUN2")
    if len(models) < 2:
        raise WinrateError("a comparison needs two models or more: sft=RUN@first apa=RUN")
    return models


def read_references(path: Path) -> dict[str, str]:
    """Prompt -> reference answer; of a prompt that stands there twice the first counts."""
    references: dict[str, str] = {}
    for number, row in _numbered_rows(path):
        prompt, reference = (_text(path, number, row, field) for field in ("prompt", "reference"))
        references.setdefault(prompt, reference)
    return references


def output_home(source: Source) -> Path:
    """Where results lie unless the user says otherwise: the sweep folder of a run, the folder of a file."""
    return source.path.resolve().parent


def _read_model(argument: str) -> Model:
    name, equals, places = argument.partition("=")
    if not equals or not name or not places or _NOT_IN_NAMES & set(name):
        raise WinrateError(f"{argument}: write NAME=SOURCE, such as apa=runs/default/apa-s0-fcb5736b")
    sources = [source for place in places.split(",") for source in _read_sources(place)]
    return Model(without_half_surrogates(name), tuple(sources))


def _read_sources(place: str) -> list[Source]:
    """One, or of a pattern as many as it matches, in the order of their names."""
    which: Which = "last"
    if place.endswith(("@first", "@last")):
        place, _, ending = place.rpartition("@")
        which = "first" if ending == "first" else "last"
    if not glob.has_magic(place) or Path(place).exists():
        return [_read_source(Path(place), which)]
    found = [Path(match) for match in sorted(glob.glob(place))]
    if not found:
        raise WinrateError(f"{place}: matches no run folder and no file; `ls {Path(place).parent}` shows what is there")
    folders = [path for path in found if path.is_dir()]  # a run's lock may lie beside it
    return [_read_source(path, which) for path in folders or found]


def _read_source(path: Path, which: Which) -> Source:
    file = path / SAMPLES if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {SAMPLES}" if path.is_dir() else "no such run folder or JSONL file"
        raise WinrateError(f"{path}: {what}; give a run's folder, such as runs/default/apa-s0-fcb5736b, or a file")
    rows = _numbered_rows(file)
    step = _step_of(rows, which)
    if step is None and which == "first":
        raise WinrateError(f"{path}@first: its rows have no step, so there is no first evaluation; leave @first out")
    answers: dict[str, Answer] = {}
    duplicates = 0
    for number, row in rows:
        if step is not None and row.get("step") != step:
            continue
        prompt, response = (_text(file, number, row, field) for field in ("prompt", "response"))
        if prompt in answers:
            duplicates += 1
            continue
        reference = row.get("reference")
        answers[prompt] = Answer(
            response, without_half_surrogates(reference) if isinstance(reference, str) else None, row
        )
    if not answers:
        raise WinrateError(f"{file}: holds no responses; give a run that has been evaluated")
    return Source(path, which, step, answers, duplicates)


def _step_of(rows: Sequence[tuple[int, Mapping[str, Any]]], which: Which) -> int | None:
    steps = [row["step"] for _, row in rows if isinstance(row.get("step"), int)]
    if not steps:
        return None
    return min(steps) if which == "first" else max(steps)


def _numbered_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers; a cut-off last line is left out, since the run that
    writes it may be going on."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise WinrateError(f"{path}: cannot be read ({error.strerror})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append((number, row))
        elif number < len(lines):  # the last piece has no newline behind it
            raise WinrateError(f"{path}: line {number} is not a JSON object; mend the file")
    return rows


def _text(path: Path, number: int, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise WinrateError(f"{path}: line {number} has no text {field!r}; each line needs it")
    return without_half_surrogates(value)


def without_half_surrogates(text: str) -> str:
    """Half surrogate pairs, which JSON and file names can hold and UTF-8 cannot, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
