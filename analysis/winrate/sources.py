"""`NAME=SOURCE` arguments -> `Model`s: what each model answered to each prompt.

A source is a run folder, of whose samples.jsonl one evaluation counts (the last, or with `@first` the first: the SFT
policy before RL), or a JSONL file with `prompt`, `response` and optionally `reference` and scores. A file whose rows
have a `step` is read like a run's samples.jsonl. A pattern stands for all that it matches: no shell expands
`apa=runs/default/apa-*`.

The runs of one model are seeds of one setting: those that no comparison would take are left out with the reason, and
runs that differ in more than the seed are refused.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.labels import label_values
from analysis.load import RunRecord, is_run, load_run
from analysis.metrics import json_lines
from analysis.plain import whole_text
from analysis.winrate.errors import WinrateError
from rlhf.runs.state import SAMPLES

Which = Literal["first", "last"]

_NOT_IN_NAMES = frozenset(":,=@/")
# What shapes the policy before RL: of first evaluations nothing else is compared.
_BEFORE_RL = ("dataset.", "model.", "sft.")
_OPTIONS_NAMED = 4


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
    seed: int | None = None  # of a run; None of a file


@dataclass(frozen=True)
class Model:
    """A name and one source per seed."""

    name: str
    sources: tuple[Source, ...]
    left_out: tuple[str, ...] = ()
    """Runs that do not count, and why; one line each."""


@dataclass(frozen=True)
class _Place:
    """What one part of an argument stands for."""

    path: Path
    which: Which
    record: RunRecord | None
    """Of a run."""


def read_models(arguments: Sequence[str], *, include_unfinished: bool = False) -> list[Model]:
    """The models of the command line, in its order.

    Args:
        include_unfinished: count runs, too, that have not ended well, as long as their config tells what they are.

    Raises:
        WinrateError: fewer than two, a name twice, a source that is not there or not in form; runs of one model that
            are none of one setting, or of one seed; none of them finished.
    """
    models = [_read_model(argument, include_unfinished) for argument in arguments]
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


def _read_model(argument: str, include_unfinished: bool) -> Model:
    name, equals, texts = argument.partition("=")
    if not equals or not name or not texts or _NOT_IN_NAMES & set(name):
        raise WinrateError(f"{argument}: write NAME=SOURCE, such as apa=runs/default/apa-s0-fcb5736b")
    name = whole_text(name)
    places = [place for text in texts.split(",") for place in _places(text)]
    reasons = [None if one.record is None else _why_not(one.record, include_unfinished) for one in places]
    left_out = [f"{one.path}: {reason}" for one, reason in zip(places, reasons, strict=True) if reason]
    used = [one for one, reason in zip(places, reasons, strict=True) if not reason]
    if not used:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise WinrateError(f"{name}: no finished run: {left_out[0]}{more}")
    _check_one_setting(name, used)
    return Model(name, tuple(_read_source(one) for one in used), tuple(left_out))


def _places(text: str) -> list[_Place]:
    """One, or of a pattern as many as it matches, in the order of their names."""
    which: Which = "last"
    if text.endswith(("@first", "@last")):
        text, _, ending = text.rpartition("@")
        which = "first" if ending == "first" else "last"
    if not glob.has_magic(text) or Path(text).exists():
        return [_place(Path(text), which)]
    found = [Path(match) for match in sorted(glob.glob(text))]
    if not found:
        raise WinrateError(f"{text}: matches no run folder and no file; `ls {Path(text).parent}` shows what is there")
    folders = [path for path in found if path.is_dir()]  # a run's lock may lie beside it
    return [_place(path, which) for path in folders or found]


def _place(path: Path, which: Which) -> _Place:
    """A run's samples.jsonl stands for the run."""
    folder = path.parent if path.name == SAMPLES and path.is_file() else path
    return _Place(path, which, load_run(folder) if folder.is_dir() and is_run(folder) else None)


def _why_not(record: RunRecord, include_unfinished: bool) -> str | None:
    """Why a run does not count, in the words of the report."""
    open_ended = record.status not in ("finished", "corrupt") and record.config and record.seed is not None
    if record.reason is None or (include_unfinished and open_ended and (record.folder / SAMPLES).is_file()):
        return None
    return f"{record.reason} (--include-unfinished takes it in)" if open_ended else record.reason


def _check_one_setting(name: str, places: Sequence[_Place]) -> None:
    """One setting, and each seed once: several settings would count as seeds."""
    runs = [(one, one.record) for one in places if one.record is not None]
    first = bool(runs) and all(one.which == "first" for one, _ in runs)
    differing = {
        key: list(dict.fromkeys(map(str, values)))
        for key, values in label_values([record.config for _, record in runs]).items()
        if not first or key.startswith(_BEFORE_RL)
    }
    if differing:
        said = [f"{key} is {_listed(values)}" for key, values in differing.items()]
        more = f" and {len(said) - _OPTIONS_NAMED} more" if len(said) > _OPTIONS_NAMED else ""
        raise WinrateError(
            f"{name}: its {len(runs)} runs are not of one setting: {'; '.join(said[:_OPTIONS_NAMED])}{more}; "
            "give each setting a name of its own"
        )
    seeds: dict[tuple[int | None, Which], Path] = {}
    for one, record in runs:
        before = seeds.setdefault((record.seed, one.which), one.path)
        if before is not one.path:
            raise WinrateError(f"{name}: {before} and {one.path} are both of seed {record.seed}; give one of them")


def _listed(values: Sequence[str]) -> str:
    more = len(values) - _OPTIONS_NAMED
    return " or ".join([*values[:_OPTIONS_NAMED], *([f"{more} more"] if more > 0 else [])])


def _read_source(place: _Place) -> Source:
    path, which = place.path, place.which
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
        answers[prompt] = Answer(response, whole_text(reference) if isinstance(reference, str) else None, row)
    if not answers:
        raise WinrateError(f"{file}: holds no responses; give a run that has been evaluated")
    return Source(path, which, step, answers, duplicates, place.record.seed if place.record else None)


def _step_of(rows: Sequence[tuple[int, Mapping[str, Any]]], which: Which) -> int | None:
    steps = [row["step"] for _, row in rows if isinstance(row.get("step"), int)]
    if not steps:
        return None
    return min(steps) if which == "first" else max(steps)


def _numbered_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers, blank lines not counted; a cut-off last line is left
    out, since the run that writes it may be going on."""
    try:
        rows, bad_lines = json_lines(path)
    except OSError as error:
        raise WinrateError(f"{path}: cannot be read ({error.strerror})") from error
    if bad_lines and bad_lines[0] < len(rows) + len(bad_lines):
        raise WinrateError(f"{path}: line {bad_lines[0]} is not a JSON object; mend the file")
    return list(enumerate(rows, start=1))


def _text(path: Path, number: int, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise WinrateError(f"{path}: line {number} has no text {field!r}; each line needs it")
    return whole_text(value)
