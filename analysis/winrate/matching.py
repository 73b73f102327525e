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
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import WinrateError
from analysis.labels import label_values
from analysis.load import RunRecord, is_run, load_run
from analysis.run_files import json_lines, whole_text
from rlhf.errors import printable
from rlhf.files import file_errors
from rlhf.runs.state import SAMPLES

Row = Mapping[str, Any]
Pair = tuple[str, str]

_NOT_IN_NAMES = frozenset(":,=@/")
# What shapes the policy before RL: of first evaluations nothing else is compared.
_BEFORE_RL = ("dataset.", "model.", "sft.")


@dataclass(frozen=True)
class Source:
    """One run or file."""

    path: Path  # as the user gave it
    first: bool  # whether its first evaluation counts, rather than the last
    seed: int | None  # of a run
    step: int | None  # of the evaluation that was taken; None for a file without steps
    answers: Mapping[str, Row]  # prompt -> its row: `response`, maybe `reference` and scores
    duplicates: int  # rows left out since an earlier one has the same prompt


Models = Mapping[str, Sequence[Source]]
"""By name, in the order of the command line; a source per seed."""


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt; judged in both orders."""

    model_a: str
    model_b: str
    seed: int  # of the runs that meet; without one (files, or no seed in common) the place of their meeting, from 0
    prompt: str
    reference: str | None
    response_a: str
    response_b: str
    row_a: Row  # where response_a comes from: scores are looked up there
    row_b: Row

    @property
    def identical(self) -> bool:
        """The same text twice is a tie that nobody need be asked about."""
        return self.response_a == self.response_b


def read_models(arguments: Sequence[str], *, include_unfinished: bool = False) -> tuple[Models, list[str]]:
    """The models, and a line for each run that does not count.

    Args:
        include_unfinished: count runs, too, that have not ended well, as long as their config tells what they are.

    Raises:
        WinrateError: fewer than two, a name twice, a source that is not there or not in form; runs of one model that
            are none of one setting, or of one seed; none of them finished.
    """
    models: dict[str, list[Source]] = {}
    left_out: list[str] = []
    for argument in arguments:
        name, _, texts = argument.partition("=")
        name = printable(name)
        if not name or not texts or _NOT_IN_NAMES & set(name):
            raise WinrateError(f"{argument}: write NAME=SOURCE, such as apa=runs/default/apa-s0-fcb5736b")
        if name in models:
            raise WinrateError(f"{name}= is given twice; put the seeds of one model behind commas: {name}=RUN1,RUN2")
        models[name] = _read_model(name, texts, include_unfinished, left_out)
    if len(models) < 2:
        raise WinrateError("a comparison needs two models or more: sft=RUN@first apa=RUN")
    return models, list(dict.fromkeys(left_out))


def _read_model(name: str, texts: str, include_unfinished: bool, left_out: list[str]) -> list[Source]:
    used, not_used = [], []
    for path, first in (place for text in texts.split(",") for place in _places(text)):
        # A run's samples.jsonl stands for the run.
        folder = path.parent if path.name == SAMPLES and path.is_file() else path
        record = load_run(folder) if folder.is_dir() and is_run(folder) else None
        if record and (reason := _why_not(record, include_unfinished)):
            not_used.append(f"{path}: {reason}")
        else:
            used.append((path, first, record))
    if not used:
        more = f" and {len(not_used) - 1} more" if len(not_used) > 1 else ""
        raise WinrateError(f"{name}: no finished run: {not_used[0]}{more}")
    left_out += not_used
    _check_one_setting(name, [(path, first, record) for path, first, record in used if record])
    return [_read_source(*place) for place in used]


def _places(text: str) -> list[tuple[Path, bool]]:
    """(path, whether its first evaluation counts): one, or of a pattern as many as it matches, by name."""
    first = text.endswith("@first")
    text = text.removesuffix("@first").removesuffix("@last")
    if not glob.has_magic(text) or Path(text).exists():
        return [(Path(text), first)]
    found = [Path(match) for match in sorted(glob.glob(text))]
    if not found:
        raise WinrateError(f"{text}: matches no run folder and no file; `ls {Path(text).parent}` shows what is there")
    return [(path, first) for path in [path for path in found if path.is_dir()] or found]  # without runs' locks


def _why_not(record: RunRecord, include_unfinished: bool) -> str | None:
    """Why a run does not count, in the words of the report."""
    open_ended = record.status not in ("finished", "corrupt") and record.config and record.seed is not None
    if record.reason is None or (include_unfinished and open_ended and (record.folder / SAMPLES).is_file()):
        return None
    return f"{record.reason} (--include-unfinished takes it in)" if open_ended else record.reason


def _check_one_setting(name: str, runs: Sequence[tuple[Path, bool, RunRecord]]) -> None:
    """One setting, and each seed once: several settings would count as seeds."""
    before_rl = all(first for _, first, _ in runs)
    differing = [
        f"{key} is {' or '.join(dict.fromkeys(map(str, values)))}"
        for key, values in label_values([record.config for _, _, record in runs]).items()
        if not before_rl or key.startswith(_BEFORE_RL)
    ]
    if differing:
        said = textwrap.shorten("; ".join(differing), 200, placeholder=" ...")
        raise WinrateError(f"{name}: its runs are not of one setting: {said}; give each setting a name of its own")
    seeds: dict[tuple[int | None, bool], Path] = {}
    for path, first, record in runs:
        if (before := seeds.setdefault((record.seed, first), path)) is not path:
            raise WinrateError(f"{name}: {before} and {path} are both of seed {record.seed}; give one of them")


def _read_source(path: Path, first: bool, record: RunRecord | None) -> Source:
    file = path / SAMPLES if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {SAMPLES}" if path.is_dir() else "no such run folder or JSONL file"
        raise WinrateError(f"{path}: {what}; give a run's folder, such as runs/default/apa-s0-fcb5736b, or a file")
    rows = _read_rows(file, "response")
    steps = [row["step"] for row in rows if isinstance(row.get("step"), int)]
    if first and not steps:
        raise WinrateError(f"{path}@first: its rows have no step, so there is no first evaluation; leave @first out")
    step = None if not steps else min(steps) if first else max(steps)
    counted = [row for row in rows if row.get("step") == step or step is None]
    if not counted:
        raise WinrateError(f"{file}: holds no responses; give a run that has been evaluated")
    answers = {row["prompt"]: row for row in reversed(counted)}  # of a prompt that stands there twice the first counts
    in_order = {row["prompt"]: answers[row["prompt"]] for row in counted}
    return Source(path, first, record.seed if record else None, step, in_order, len(counted) - len(answers))


def read_references(path: Path) -> dict[str, str]:
    """Prompt -> reference answer; of a prompt that stands there twice the first counts."""
    return {row["prompt"]: row["reference"] for row in reversed(_read_rows(path, "reference"))}


def _read_rows(path: Path, needed: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, each with `prompt` and what is needed; a cut-off last line is left out, since
    the run that writes it may be going on."""
    with file_errors(path, "read it"):
        rows, bad_lines = json_lines(path)
    if bad_lines and bad_lines[0] < len(rows) + len(bad_lines):
        raise WinrateError(f"{path}: line {bad_lines[0]} is not a JSON object; mend the file")
    for number, row in enumerate(rows, start=1):
        row |= {name: whole_text(value) for name, value in row.items() if isinstance(value, str)}
        if lacking := [name for name in ("prompt", needed) if not isinstance(row.get(name), str)]:
            raise WinrateError(f"{path}: line {number} has no text {lacking[0]!r}; each line needs it")
    return rows


def match_prompts(
    models: Models, extra_references: Mapping[str, str], *, needs_reference: bool, limit: int | None
) -> tuple[dict[str, str | None], dict[str, int]]:
    """The prompts that every source of every model answered, by exact text, each with its reference: that of
    `extra_references`, else the first of a source. And how many prompts there are and why others are left out.

    Raises:
        WinrateError: no prompt is left.
    """
    sources = list(itertools.chain.from_iterable(models.values()))
    everything = dict.fromkeys(prompt for source in sources for prompt in source.answers)
    shared = [prompt for prompt in everything if all(prompt in source.answers for source in sources)]
    if not shared:
        raise WinrateError(f"no prompt was answered by all of {', '.join(models)}; give sources with the same prompts")
    references: dict[str, str | None] = {}
    for prompt in shared:
        known = [extra_references.get(prompt), *(source.answers[prompt].get("reference") for source in sources)]
        reference = next((one for one in known if isinstance(one, str)), None)
        if reference is not None or not needs_reference:
            references[prompt] = reference
    if not references:
        raise WinrateError(f"none of the {len(shared)} shared prompts has a reference answer; give --references FILE")
    judged = dict(itertools.islice(references.items(), limit))
    return judged, {
        "judged": len(judged),
        "shared": len(shared),
        "missing": len(everything) - len(shared),
        "duplicated": sum(source.duplicates for source in sources),
        "without_reference": len(shared) - len(references),
        "beyond_limit": len(references) - len(judged),
    }


def read_pairs(text: str | None, names: Sequence[str]) -> list[Pair]:
    """`sft:apa,sft:ppo` -> pairs; None is every pair, in the models' order (SFT-PPO, SFT-APA, PPO-APA).

    Raises:
        WinrateError: a name that no model has, a model against itself, or a pair twice.
    """
    if text is None:
        return list(itertools.combinations(names, 2))
    pairs: list[Pair] = []
    for part in text.split(","):
        first, _, second = part.strip().partition(":")
        if first == second or not {first, second} <= set(names):
            raise WinrateError(f"--pairs {part}: write NAME:NAME with two of {', '.join(names)}")
        if (first, second) in pairs or (second, first) in pairs:
            raise WinrateError(f"--pairs {part}: this pair is given twice")
        pairs.append((first, second))
    return pairs


def make_comparisons(
    models: Models, pairs: Sequence[Pair], references: Mapping[str, str | None]
) -> tuple[list[Comparison], list[str]]:
    """Every prompt x seed of every pair, and what was done where the two models have not the same seeds.

    Raises:
        WinrateError: both models of a pair have several sources and no seed in common, but not the same number.
    """
    comparisons, notes = [], []
    for pair in pairs:
        meetings, note = _meetings(pair, models[pair[0]], models[pair[1]])
        notes += [f"{pair[0]} vs {pair[1]}: {note}"] if note else []
        for prompt, reference in references.items():
            for seed, first, second in meetings:
                rows = first.answers[prompt], second.answers[prompt]
                responses = rows[0]["response"], rows[1]["response"]
                comparisons.append(Comparison(*pair, seed, prompt, reference, *responses, *rows))
    return comparisons, notes


def _meetings(
    names: Pair, first: Sequence[Source], second: Sequence[Source]
) -> tuple[list[tuple[int, Source, Source]], str]:
    """(seed, source of the first, source of the second), and a note. Runs meet those of their own seed, where the two
    models have any in common; otherwise sources meet in the order given. A single source meets each of the other's."""
    ours, theirs = _by_seed(first), _by_seed(second)
    common = sorted(ours.keys() & theirs.keys())
    if common and min(len(first), len(second)) > 1:
        sides = zip(names, (ours, theirs), strict=True)
        lone = [f"{seed} of {name}" for name, seeds in sides for seed in sorted(seeds.keys() - set(common))]
        note = f"not the same seeds; left out without a counterpart: {', '.join(lone)}" if lone else ""
        return [(seed, ours[seed], theirs[seed]) for seed in common], note
    most, fewest = max(len(first), len(second)), min(len(first), len(second))
    if fewest not in (1, most):
        raise WinrateError(
            f"{names[0]} has {len(first)} sources and {names[1]} {len(second)}; "
            "give both the same number, or one of them a single one"
        )
    seeds = list((theirs if len(first) == 1 else ours) if fewest == 1 else ()) or range(most)
    a, b = ([*model] * (most // len(model)) for model in (first, second))
    met = list(zip(seeds, a, b, strict=True))
    if not ours or not theirs or len(first) != len(second) or common or any(one.first for one in (*a, *b)):
        return met, ""  # before RL is no seed
    return met, "no seed in common; in the order given " + ", ".join(f"{x.seed} with {y.seed}" for _, x, y in met)


def _by_seed(sources: Sequence[Source]) -> dict[int, Source]:
    """Empty where not every source is a run with a seed of its own."""
    seeds = {source.seed: source for source in sources if source.seed is not None}
    return seeds if len(seeds) == len(sources) else {}
