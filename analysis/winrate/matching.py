"""Models -> comparisons: which prompts all of them answered, and whose responses meet."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.winrate.errors import WinrateError
from analysis.winrate.sources import Answer, Model

Pair = tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt; judged in both orders."""

    model_a: str
    model_b: str
    seed: int  # place among the seeds of the pair, from 0
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
    """Every prompt x seed of every pair. Seeds meet in the order given; a single source meets each of the other's.

    Raises:
        WinrateError: both models of a pair have several seeds, but not the same number.
    """
    by_name = {model.name: model for model in models}
    comparisons = []
    for first, second in pairs:
        sources_a, sources_b = by_name[first].sources, by_name[second].sources
        count = max(len(sources_a), len(sources_b))
        if min(len(sources_a), len(sources_b)) not in (1, count):
            raise WinrateError(
                f"{first} has {len(sources_a)} sources and {second} {len(sources_b)}; "
                "give both the same number, or one of them a single one"
            )
        for prompt in matching.prompts:
            for seed in range(count):
                comparisons.append(
                    Comparison(
                        model_a=first,
                        model_b=second,
                        seed=seed,
                        prompt=prompt,
                        reference=matching.references.get(prompt),
                        answer_a=sources_a[seed if len(sources_a) > 1 else 0].answers[prompt],
                        answer_b=sources_b[seed if len(sources_b) > 1 else 0].answers[prompt],
                    )
                )
    return comparisons
