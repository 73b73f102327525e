"""`NAME=SOURCE` arguments -> comparisons: what each model answered, which prompts all share, whose responses meet.

A source is a run folder, of whose samples.jsonl one evaluation counts (the last, or with `@first` the first: the SFT
policy before RL), or a JSONL file with `prompt`, `response` and optionally `reference` and scores. A file whose rows
have a `step` is read like a run's samples.jsonl. A pattern stands for all that it matches: no shell expands
`apa=runs/default/apa-*`.

The runs of one model are seeds of one setting: those that no comparison would take are left out with the reason, and
runs that differ in more than the seed are refused.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import WinrateError
from analysis.labels import label_values
from analysis.load import RunRecord, is_run, load_run
from analysis.run_files import json_lines, whole_text
from rlhf.runs.state import SAMPLES

Pair = tuple[str, str]

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
    first: bool  # whether its first evaluation counts, rather than the last
    record: RunRecord | None  # of a run
    step: int | None  # of the evaluation that was taken; None for a file without steps
    answers: Mapping[str, Answer]  # by prompt, in the file's order
    duplicates: int  # rows left out since an earlier one has the same prompt

    @property
    def seed(self) -> int | None:
        return self.record.seed if self.record else None


@dataclass(frozen=True)
class Model:
    """A name and one source per seed."""

    name: str
    sources: tuple[Source, ...]
    left_out: tuple[str, ...] = ()  # runs that do not count, and why; one line each

    @property
    def by_seed(self) -> dict[int, Source]:
        """Empty where not every source is a run."""
        seeds = {source.seed: source for source in self.sources if source.seed is not None}
        return seeds if len(seeds) == len(self.sources) else {}


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt; judged in both orders."""

    model_a: str
    model_b: str
    seed: int  # of the runs that meet; without one (files, or no seed in common) the place of their meeting, from 0
    prompt: str
    reference: str | None
    answer_a: Answer
    answer_b: Answer

    @property
    def identical(self) -> bool:
        """The same text twice is a tie that nobody need be asked about."""
        return self.answer_a.response == self.answer_b.response


@dataclass(frozen=True)
class Matching:
    """The prompts that every source of every model answered, and what was left out."""

    prompts: tuple[str, ...]  # those judged, in the order of the first model's first source
    references: Mapping[str, str]  # of the prompts that have one
    shared: int  # answered by every source
    missing: int  # answered by some sources only
    duplicated: int  # rows left out since an earlier one of the same source has the same prompt
    without_reference: int  # shared, but left out for lack of a reference where one is needed
    limited: int  # left out by --limit

    def describe(self) -> str:
        """One line for the user."""
        parts = [f"{self.missing} missing in some source", f"{self.duplicated} duplicated"]
        parts.append(f"{self.without_reference} without reference")
        if self.limited:
            parts.append(f"{self.limited} beyond --limit")
        return f"prompts: {self.shared} shared by all models ({', '.join(parts)}); {len(self.prompts)} judged"


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


def _read_model(argument: str, include_unfinished: bool) -> Model:
    name, equals, texts = argument.partition("=")
    if not equals or not name or not texts or _NOT_IN_NAMES & set(name):
        raise WinrateError(f"{argument}: write NAME=SOURCE, such as apa=runs/default/apa-s0-fcb5736b")
    name = whole_text(name)
    places = [place for text in texts.split(",") for place in _places(text)]
    used, left_out = [], []
    for path, first in places:
        # A run's samples.jsonl stands for the run.
        folder = path.parent if path.name == SAMPLES and path.is_file() else path
        record = load_run(folder) if folder.is_dir() and is_run(folder) else None
        reason = None if record is None else _why_not(record, include_unfinished)
        if reason:
            left_out.append(f"{path}: {reason}")
        else:
            used.append((path, first, record))
    if not used:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise WinrateError(f"{name}: no finished run: {left_out[0]}{more}")
    _check_one_setting(name, [(path, first, record) for path, first, record in used if record is not None])
    return Model(name, tuple(_read_source(*place) for place in used), tuple(left_out))


def _places(text: str) -> list[tuple[Path, bool]]:
    """(path, whether its first evaluation counts): one, or of a pattern as many as it matches, by name."""
    first = text.endswith("@first")
    if text.endswith(("@first", "@last")):
        text = text.rpartition("@")[0]
    if not glob.has_magic(text) or Path(text).exists():
        return [(Path(text), first)]
    found = [Path(match) for match in sorted(glob.glob(text))]
    if not found:
        raise WinrateError(f"{text}: matches no run folder and no file; `ls {Path(text).parent}` shows what is there")
    folders = [path for path in found if path.is_dir()]  # a run's lock may lie beside it
    return [(path, first) for path in folders or found]


def _why_not(record: RunRecord, include_unfinished: bool) -> str | None:
    """Why a run does not count, in the words of the report."""
    open_ended = record.status not in ("finished", "corrupt") and record.config and record.seed is not None
    if record.reason is None or (include_unfinished and open_ended and (record.folder / SAMPLES).is_file()):
        return None
    return f"{record.reason} (--include-unfinished takes it in)" if open_ended else record.reason


def _check_one_setting(name: str, runs: Sequence[tuple[Path, bool, RunRecord]]) -> None:
    """One setting, and each seed once: several settings would count as seeds."""
    before_rl = bool(runs) and all(first for _, first, _ in runs)
    differing = {
        key: list(dict.fromkeys(map(str, values)))
        for key, values in label_values([record.config for _, _, record in runs]).items()
        if not before_rl or key.startswith(_BEFORE_RL)
    }
    if differing:
        said = [f"{key} is {_listed(values)}" for key, values in differing.items()]
        more = f" and {len(said) - _OPTIONS_NAMED} more" if len(said) > _OPTIONS_NAMED else ""
        raise WinrateError(
            f"{name}: its {len(runs)} runs are not of one setting: {'; '.join(said[:_OPTIONS_NAMED])}{more}; "
            "give each setting a name of its own"
        )
    seeds: dict[tuple[int | None, bool], Path] = {}
    for path, first, record in runs:
        before = seeds.setdefault((record.seed, first), path)
        if before is not path:
            raise WinrateError(f"{name}: {before} and {path} are both of seed {record.seed}; give one of them")


def _listed(values: Sequence[str]) -> str:
    more = len(values) - _OPTIONS_NAMED
    return " or ".join([*values[:_OPTIONS_NAMED], *([f"{more} more"] if more > 0 else [])])


def _read_source(path: Path, first: bool, record: RunRecord | None) -> Source:
    file = path / SAMPLES if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {SAMPLES}" if path.is_dir() else "no such run folder or JSONL file"
        raise WinrateError(f"{path}: {what}; give a run's folder, such as runs/default/apa-s0-fcb5736b, or a file")
    rows = _numbered_rows(file)
    steps = [row["step"] for _, row in rows if isinstance(row.get("step"), int)]
    if first and not steps:
        raise WinrateError(f"{path}@first: its rows have no step, so there is no first evaluation; leave @first out")
    step = None if not steps else min(steps) if first else max(steps)
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
    return Source(path, first, record, step, answers, duplicates)


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


def match_prompts(
    models: Sequence[Model], extra_references: Mapping[str, str], *, needs_reference: bool, limit: int | None
) -> Matching:
    """Match by prompt, the exact text. `extra_references` go before those in the sources.

    Raises:
        WinrateError: no prompt is left.
    """
    sources = [source for model in models for source in model.sources]
    everything = dict.fromkeys(prompt for source in sources for prompt in source.answers)
    shared = [prompt for prompt in everything if all(prompt in source.answers for source in sources)]
    if not shared:
        names = ", ".join(model.name for model in models)
        raise WinrateError(f"no prompt was answered by all of {names}; give sources with the same prompts")
    references = {}
    for prompt in shared:
        candidates = [extra_references.get(prompt), *(source.answers[prompt].reference for source in sources)]
        references |= {prompt: reference for reference in candidates[::-1] if reference is not None}  # noqa: B035
    usable = [prompt for prompt in shared if prompt in references or not needs_reference]
    if not usable:
        raise WinrateError(
            f"none of the {len(shared)} shared prompts has a reference answer; give --references FILE.jsonl"
        )
    return Matching(
        prompts=tuple(usable[:limit]),
        references=references,
        shared=len(shared),
        missing=len(everything) - len(shared),
        duplicated=sum(source.duplicates for source in sources),
        without_reference=len(shared) - len(usable),
        limited=len(usable) - len(usable[:limit]),
    )


def read_pairs(text: str | None, models: Sequence[Model]) -> list[Pair]:
    """`sft:apa,sft:ppo` -> pairs; None is every pair, in the models' order (SFT-PPO, SFT-APA, PPO-APA).

    Raises:
        WinrateError: a name that no model has, a model against itself, or a pair twice.
    """
    names = [model.name for model in models]
    if text is None:
        return list(itertools.combinations(names, 2))
    pairs: list[Pair] = []
    for part in text.split(","):
        first, colon, second = part.strip().partition(":")
        if not colon or first == second or not {first, second} <= set(names):
            raise WinrateError(f"--pairs {part}: write NAME:NAME with two of {', '.join(names)}")
        if (first, second) in pairs or (second, first) in pairs:
            raise WinrateError(f"--pairs {part}: this pair is given twice")
        pairs.append((first, second))
    return pairs


def make_comparisons(models: Sequence[Model], pairs: Sequence[Pair], matching: Matching) -> list[Comparison]:
    """Every prompt x seed of every pair. Runs meet those of their own seed, where the two models have any in common;
    otherwise sources meet in the order given. A single source meets each of the other's.

    Raises:
        WinrateError: both models of a pair have several sources and no seed in common, but not the same number.
    """
    by_name = {model.name: model for model in models}
    return [
        Comparison(first, second, seed, prompt, matching.references.get(prompt), a.answers[prompt], b.answers[prompt])
        for first, second in pairs
        for prompt in matching.prompts
        for seed, a, b in _meetings(by_name[first], by_name[second])
    ]


def meeting_notes(models: Sequence[Model], pairs: Sequence[Pair]) -> list[str]:
    """Where the two models of a pair have not the same seeds: what was done about it."""
    by_name = {model.name: model for model in models}
    notes = []
    for first, second in pairs:
        ours, theirs = by_name[first].by_seed, by_name[second].by_seed
        single = len(ours) != len(theirs) and 1 in (len(ours), len(theirs))
        if not ours or not theirs or single or ours.keys() == theirs.keys():
            continue
        if ours.keys() & theirs.keys():
            sides = ((first, ours.keys() - theirs.keys()), (second, theirs.keys() - ours.keys()))
            lone = [f"{seed} of {name}" for name, seeds in sides for seed in sorted(seeds)]
            notes.append(f"{first} vs {second}: not the same seeds; left out without a counterpart: {', '.join(lone)}")
        elif not any(source.first for source in (*ours.values(), *theirs.values())):  # before RL is no seed
            met = [f"{a.seed} with {b.seed}" for _, a, b in _meetings(by_name[first], by_name[second])]
            notes.append(f"{first} vs {second}: no seed in common; in the order given {', '.join(met)}")
    return notes


def _meetings(first: Model, second: Model) -> list[tuple[int, Source, Source]]:
    """(seed, source of the first, source of the second)."""
    ours, theirs = first.by_seed, second.by_seed
    if min(len(ours), len(theirs)) > 1 and (common := ours.keys() & theirs.keys()):
        return [(seed, ours[seed], theirs[seed]) for seed in sorted(common)]
    counts = len(first.sources), len(second.sources)
    if min(counts) not in (1, max(counts)):
        raise WinrateError(
            f"{first.name} has {counts[0]} sources and {second.name} {counts[1]}; "
            "give both the same number, or one of them a single one"
        )
    many = second if counts[0] == 1 else first
    seeds = list(many.by_seed if 1 in counts else ()) or list(range(max(counts)))
    a, b = (model.sources * max(counts) if len(model.sources) == 1 else model.sources for model in (first, second))
    return list(zip(seeds, a, b, strict=True))
