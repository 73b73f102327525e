"""Judgements -> win rates, position bias and agreement between orders."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.winrate.intervals import Rate, seeds_rate, share_rate
from analysis.winrate.judgements import Judgement


@dataclass(frozen=True)
class PairResult:
    """Two models, seen from model_a. wins + ties + losses + inconsistent + unparsed = comparisons."""

    model_a: str
    model_b: str
    prompts: int  # with at least one comparison that counts
    comparisons: int  # prompts x seeds
    wins: int
    ties: int  # both orders say so, or the responses are the same text
    losses: int
    inconsistent: int  # each order prefers the other model: a score of one half, like a tie
    unparsed: int  # an order without verdict; not part of the rate
    identical: int  # among the ties, those that nobody was asked about
    win_rate: Rate | None
    """Mean over prompts of the mean score over seeds; None where nothing counts. The interval says how it might come
    out with other prompts and, from 3 seeds on, with other seeds."""
    position_bias: Rate | None
    agreement: Rate | None
    seeds: int = 1
    """Of runs that met; places, where sources are files."""


@dataclass(frozen=True)
class Results:
    """All pairs, and the judge's habits over all of them."""

    pairs: tuple[PairResult, ...]
    position_bias: Rate | None
    """Share of verdicts for what was shown first, among those for either; 0.5 is no bias. None for a judge that sees no
    order."""
    agreement: Rate | None
    """Share of comparisons with two verdicts of which both orders say the same. None for a judge that sees no order."""


def summarise(judgements: Sequence[Judgement]) -> Results:
    """Pairs in the order in which they first come."""
    by_pair: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_pair[judgement.comparison.model_a, judgement.comparison.model_b].append(judgement)
    pairs = tuple(_pair(model_a, model_b, members) for (model_a, model_b), members in by_pair.items())
    return Results(pairs, _position_bias(judgements), _agreement(judgements))


def _pair(model_a: str, model_b: str, judgements: Sequence[Judgement]) -> PairResult:
    outcomes = Counter(judgement.outcome for judgement in judgements)
    scores = {(one.comparison.prompt, one.comparison.seed): one.score for one in judgements if one.score is not None}
    return PairResult(
        model_a=model_a,
        model_b=model_b,
        prompts=len({prompt for prompt, _ in scores}),
        comparisons=len(judgements),
        wins=outcomes["win"],
        ties=outcomes["tie"],
        losses=outcomes["loss"],
        inconsistent=outcomes["inconsistent"],
        unparsed=outcomes["unparsed"],
        identical=sum(judgement.comparison.identical for judgement in judgements),
        win_rate=seeds_rate(scores) if scores else None,
        position_bias=_position_bias(judgements),
        agreement=_agreement(judgements),
        seeds=len({seed for _, seed in scores}),
    )


def _position_bias(judgements: Sequence[Judgement]) -> Rate | None:
    return _share_by_prompt(
        (judgement.comparison.prompt, verdict == "A")
        for judgement in judgements
        for verdict in judgement.verdicts_by_place
        if verdict != "TIE"
    )


def _agreement(judgements: Sequence[Judgement]) -> Rate | None:
    return _share_by_prompt(
        (judgement.comparison.prompt, judgement.orders_agree)
        for judgement in judgements
        if len(judgement.verdicts_by_place) == 2
    )


def _share_by_prompt(cases: Iterable[tuple[str, bool]]) -> Rate | None:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for prompt, counted in cases:
        counts[prompt][0] += counted
        counts[prompt][1] += 1
    if not counts:
        return None
    return share_rate([counted for counted, _ in counts.values()], [total for _, total in counts.values()])
