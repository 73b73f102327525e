"""Models -> comparisons: which prompts all of them answered, and whose responses meet."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.winrate.errors import WinrateError
from analysis.winrate.sources import Answer, Model, Source

Pair = tuple[str, str]


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
    names = ", ".join(model.name for model in models)
    if not shared:
        raise WinrateError(f"no prompt was answered by all of {names}; give sources with the same prompts")
    references = {}
    for prompt in shared:
        candidates = [extra_references.get(prompt), *(source.answers[prompt].reference for source in sources)]
        found = next((reference for reference in candidates if reference is not None), None)
        if found is not None:
            references[prompt] = found
    usable = [prompt for prompt in shared if prompt in references or not needs_reference]
    if not usable:
        raise WinrateError(
            f"none of the {len(shared)} shared prompts has a reference answer; give --references FILE.jsonl"
        )
    chosen = usable[:limit]
    return Matching(
        prompts=tuple(chosen),
        references=references,
        shared=len(shared),
        missing=len(everything) - len(shared),
        duplicated=sum(source.duplicates for source in sources),
        without_reference=len(shared) - len(usable),
        limited=len(usable) - len(chosen),
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
        unknown = next((name for name in (first, second) if name not in names), None)
        if not colon or unknown is not None or first == second:
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
        Comparison(
            model_a=first,
            model_b=second,
            seed=seed,
            prompt=prompt,
            reference=matching.references.get(prompt),
            answer_a=source_a.answers[prompt],
            answer_b=source_b.answers[prompt],
        )
        for first, second in pairs
        for prompt in matching.prompts
        for seed, source_a, source_b in _meetings(by_name[first], by_name[second])
    ]


def meeting_notes(models: Sequence[Model], pairs: Sequence[Pair]) -> list[str]:
    """Where the two models of a pair have not the same seeds: what was done about it."""
    by_name = {model.name: model for model in models}
    notes = []
    for first, second in pairs:
        own, other = (_by_seed(by_name[name]) for name in (first, second))
        one_for_all = len(own) != len(other) and 1 in (len(own), len(other))
        if not own or not other or one_for_all or own.keys() == other.keys():
            continue
        met = [f"{a.seed} with {b.seed}" for _, a, b in _meetings(by_name[first], by_name[second])]
        if own.keys() & other.keys():
            sides = ((first, own.keys() - other.keys()), (second, other.keys() - own.keys()))
            lone = [f"{seed} of {name}" for name, seeds in sides for seed in sorted(seeds)]
            notes.append(f"{first} vs {second}: not the same seeds; left out without a counterpart: {', '.join(lone)}")
        elif not any(source.which == "first" for source in (*own.values(), *other.values())):  # before RL is no seed
            notes.append(f"{first} vs {second}: no seed in common; in the order given {', '.join(met)}")
    return notes


def _meetings(first: Model, second: Model) -> list[tuple[int, Source, Source]]:
    """(seed, source of the first, source of the second)."""
    own, other = _by_seed(first), _by_seed(second)
    if min(len(own), len(other)) > 1 and (common := own.keys() & other.keys()):
        return [(seed, own[seed], other[seed]) for seed in sorted(common)]
    count = max(len(first.sources), len(second.sources))
    if min(len(first.sources), len(second.sources)) not in (1, count):
        raise WinrateError(
            f"{first.name} has {len(first.sources)} sources and {second.name} {len(second.sources)}; "
            "give both the same number, or one of them a single one"
        )
    many = second if len(first.sources) == 1 else first
    known = _by_seed(many) if 1 in (len(first.sources), len(second.sources)) else {}
    seeds = list(known) or list(range(count))
    a, b = (model.sources * count if len(model.sources) == 1 else model.sources for model in (first, second))
    return list(zip(seeds, a, b, strict=True))


def _by_seed(model: Model) -> dict[int, Source]:
    """Empty where not every source is a run."""
    found = {source.seed: source for source in model.sources if source.seed is not None}
    return found if len(found) == len(model.sources) else {}
