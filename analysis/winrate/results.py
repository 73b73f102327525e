"""Judgements -> win rates, position bias and agreement between orders."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analysis.errors import AnalysisError
from analysis.winrate.intervals import Rate, seeds_rate, share_rate
from analysis.winrate.matching import Comparison
from analysis.winrate.prompt import Reply, Verdict

Outcome = Literal["win", "tie", "loss", "inconsistent", "unparsed"]

WINRATES = "winrates.csv"
_FORWARD: dict[Verdict, float] = {"A": 1.0, "TIE": 0.5, "B": 0.0}
_COUNTS = ("prompts", "seeds", "comparisons", "wins", "ties", "losses", "inconsistent", "unparsed", "identical")


@dataclass(frozen=True)
class Asked:
    """One order of a comparison: the verdict by place (A is what was shown first) and what it came from."""

    verdict: Verdict | None  # None: no answer had one
    replies: tuple[Reply, ...] = ()  # one per attempt; none where nobody was asked
    refusal: str = ""  # why the server would not answer


@dataclass(frozen=True)
class Judgement:
    """A comparison in both orders: `forward` shows model_a's response first, `backward` model_b's."""

    comparison: Comparison
    forward: Asked
    backward: Asked

    @property
    def score(self) -> float | None:
        """Mean of the two orders for model_a, a win 1, a tie 0.5, a loss 0; None where one has no verdict."""
        first, second = self.forward.verdict, self.backward.verdict
        if first is None or second is None:
            return None
        return (_FORWARD[first] + 1.0 - _FORWARD[second]) / 2.0

    @property
    def outcome(self) -> Outcome:
        """For model_a: a win above 0.5 (both orders, or one and a tie), a loss below; at 0.5 a tie where both orders
        say so, and `inconsistent` where each order prefers another model."""
        if self.score is None:
            return "unparsed"
        if self.score != 0.5:
            return "win" if self.score > 0.5 else "loss"
        return "tie" if self.forward.verdict == "TIE" else "inconsistent"

    @property
    def orders_agree(self) -> bool:
        """Both orders say the same of the models."""
        return self.score in (0.0, 1.0) or self.outcome == "tie"

    @property
    def verdicts_by_place(self) -> tuple[Verdict, ...]:
        """Those a judge gave after it saw the responses in an order."""
        return tuple(asked.verdict for asked in (self.forward, self.backward) if asked.verdict and asked.replies)


@dataclass(frozen=True)
class PairResult:
    """Two models, seen from model_a. wins + ties + losses + inconsistent + unparsed = comparisons."""

    model_a: str
    model_b: str
    prompts: int  # with at least one comparison that counts
    seeds: int  # of runs that met; places, where sources are files
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
        seeds=len({seed for _, seed in scores}),
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


def pair_row(pair: PairResult) -> dict[str, object]:
    """A line of winrates.csv."""
    row: dict[str, object] = {"model_a": pair.model_a, "model_b": pair.model_b}
    row |= {name: getattr(pair, name) for name in _COUNTS}
    for name, prefix in (("win_rate", ""), ("position_bias", "position_bias_"), ("agreement", "agreement_")):
        rate: Rate | None = getattr(pair, name)
        row |= {name: rate and rate.value, f"{prefix}ci_low": rate and rate.low, f"{prefix}ci_high": rate and rate.high}
    return row


def read_winrates(folders: Sequence[Path]) -> tuple[list[PairResult], str]:
    """The pairs that `python -m analysis winrate` wrote into all folders, and who judged them.

    Raises:
        AnalysisError: a folder has no win rates, or several; or the judges are not the same.
    """
    files = list(dict.fromkeys(_winrates_file(folder).resolve() for folder in folders))
    judges = {_judge(file.parent) for file in files}
    if len(judges) > 1:
        raise AnalysisError(f"judged by {' and '.join(sorted(judges))}: one figure has one judge; give one of them")
    return [pair for file in files for pair in _read_pairs(file)], judges.pop()


def _winrates_file(folder: Path) -> Path:
    if (folder / WINRATES).is_file():
        return folder / WINRATES
    found = sorted(folder.glob(f"winrate/*/{WINRATES}"))
    if len(found) > 1:
        raise AnalysisError(f"{folder}: several {WINRATES}; give one of {', '.join(str(one.parent) for one in found)}")
    if not found:
        raise AnalysisError(f"{folder}: has no {WINRATES}; `python -m analysis winrate --help` says how to make it")
    return found[0]


def _judge(folder: Path) -> str:
    try:
        return str(json.loads((folder / "winrate.json").read_bytes())["judge"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unnamed judge"


def _read_pairs(file: Path) -> list[PairResult]:
    """Counts that other judges do not make are 0."""
    pairs = []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                counts = {name: int(row.get(name) or 0) for name in _COUNTS}
                low, high = (float(row[name]) if row[name] else None for name in ("ci_low", "ci_high"))
                rate = Rate(float(row["win_rate"]), low, high, counts["prompts"]) if row["win_rate"] else None
                pairs.append(
                    PairResult(
                        row["model_a"], row["model_b"], **counts, win_rate=rate, position_bias=None, agreement=None
                    )
                )
    except (KeyError, TypeError, ValueError) as error:
        raise AnalysisError(f"{file}: not a table of win rates ({error}); make it again") from error
    if not pairs:
        raise AnalysisError(f"{file}: has no pair; make it again")
    return pairs
