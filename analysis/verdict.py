"""The answer in words: who is above whom within the KL that every run reached, and who is not told apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compared import Comparison, Contender
from analysis.crossed import crossed_difference, holm, sampled_axes
from analysis.envelope import Envelope
from analysis.replicates import drawn_text, interval_texts, listed
from analysis.statistics import shares_draws, versus

ALPHA = 0.05
MOST_ROWS = 8
"""Of more settings a sentence would be a list; the table has them."""


@dataclass(frozen=True)
class Pair:
    """Two of what is compared, at the common budget, the higher first."""

    first: Contender
    second: Contender
    difference: float  # of KL efficiency, units of reward, at least 0
    low: float | None  # 95% interval; None where there is none
    high: float | None
    p_value: float | None  # two-sided, adjusted by Holm for the number of pairs; None where there is none

    @property
    def told_apart(self) -> bool:
        return self.p_value is not None and self.p_value < ALPHA

    @property
    def text(self) -> str:
        ends = "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.difference:.3f}{ends}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Verdict:
    sentence: str
    """The answer."""
    detail: str
    """By how much, and what it rests on; empty where there is no answer."""
    pairs: tuple[Pair, ...]
    """All of them, by falling KL efficiency; none where nothing can be compared."""


def verdict(comparison: Comparison, envelopes: Sequence[Envelope] = ()) -> Verdict:
    """What the runs say: of the frontiers, where there are some, or of the settings. Without a common budget, or with
    one setting, that there is nothing to compare."""
    settings: list[Contender] = sorted(envelopes or comparison.settings, key=_efficiency, reverse=True)
    if not settings:
        return Verdict(comparison.nothing, "", ())
    reached = "which every frontier reaches" if envelopes else "which every run reached"
    head = f"Within {settings[0].headline.kl_budget:g} nats, {reached}: {_ranking(settings)}."
    basis = " ".join(part for part in (_knobs(envelopes), _basis(comparison, settings)) if part)
    if len(settings) == 1:
        return Verdict(head, basis, ())
    found = pairs(comparison, settings)
    if len(settings) > MOST_ROWS:
        told = sum(pair.told_apart for pair in found)
        return Verdict(f"{head} {told} of {len(found)} pairs are told apart.", basis, tuple(found))
    differences = "; ".join(f"{pair.first.name} \N{MINUS SIGN} {pair.second.name} {_by(pair)}" for pair in found)
    several = sum(pair.p_value is not None for pair in found) > 1
    holm_said = " (each interval for itself, p by Holm's method for all)" if several else ""
    detail = f"Differences{holm_said}: {differences}. {basis}"
    return Verdict(" ".join([head, *_clauses(settings, found)]), detail, tuple(found))


def _efficiency(setting: Contender) -> float:
    return setting.headline.kl_efficiency.mean


def _knobs(envelopes: Sequence[Envelope]) -> str:
    """What the frontiers are the best of."""
    if not envelopes:
        return ""
    listed = ", ".join(
        f"{len(one.settings)} of {' and '.join(one.knobs)} ({one.name})" if one.knobs else f"1 setting ({one.name})"
        for one in envelopes
    )
    return f"Frontiers: the upper envelope over training and over values of the KL knob: {listed}."


def _ranking(settings: Sequence[Contender]) -> str:
    shown = settings if len(settings) <= MOST_ROWS else settings[:3]
    parts = []
    for setting in shown:
        share = setting.headline.share
        of_possible = "" if share is None else f" ({share.mean:.0%} of what is possible)"
        value = f"{_efficiency(setting):.2f}{of_possible}".replace("-", "\N{MINUS SIGN}")
        parts.append(f"{setting.name} {value}")
    more = len(settings) - len(shown)
    return ", ".join(parts) + (f" and {more} lower" if more else "")


def _basis(comparison: Comparison, settings: Sequence[Contender]) -> str:
    text = f"Reward gained per response, mean over the budget; {drawn_text(settings)} each"
    over, few = interval_texts(settings, comparison.crossed)
    if comparison.crossed:
        text += f", {settings[0].runs[0].curve.gains_of_prompts.shape[1]} prompts"
    elif not over:
        return f"{text}: too few for an interval."
    else:
        text += f"; intervals over {over} alone"
    return f"{text}; {few}." if few else f"{text}."


def pairs(comparison: Comparison, settings: Sequence[Contender]) -> list[Pair]:
    """Each against each of the settings that follow it, in KL efficiency."""
    values = {id(one): _values(comparison, one) for one in settings}
    found = [
        (first, second, _difference(comparison, first, second, values[id(first)], values[id(second)]))
        for first, second in itertools.combinations(settings, 2)
    ]
    adjusted = iter(holm([p for _, _, (_, _, _, p) in found if p is not None]))
    return [
        Pair(first, second, value, low, high, None if p is None else next(adjusted))
        for first, second, (value, low, high, p) in found
    ]


def _values(comparison: Comparison, one: Contender) -> np.ndarray:
    """(S, P) KL efficiency, of each run the parts of its prompts where runs share them, (S, 1) otherwise."""
    budget = one.headline.kl_budget
    if comparison.crossed:
        return np.array([run.curve.efficiency(budget) for run in one.runs])
    return np.array([[run.efficiency(budget)] for run in one.runs])


def _difference(
    comparison: Comparison, first: Contender, second: Contender, ours: np.ndarray, theirs: np.ndarray
) -> tuple[float, float | None, float | None, float | None]:
    """Value, interval and p-value."""
    if comparison.crossed or any(shares_draws(side.replicates) for side in (first, second)):
        one = crossed_difference(ours, theirs, first.replicates, second.replicates)
        both = set(sampled_axes(first.replicates)) & set(sampled_axes(second.replicates))
        # An interval of no width would claim certainty.
        known = one.standard_error > 0.0 and (comparison.crossed or bool(both))
        return (one.value, one.low, one.high, one.p_value) if known else (one.value, None, None, None)
    other = versus(ours[:, 0].tolist(), theirs[:, 0].tolist())
    p = None if other.better is None else 2.0 * min(other.better, 1.0 - other.better)
    return other.difference, other.low, other.high, p


def _clauses(settings: Sequence[Contender], found: Sequence[Pair]) -> list[str]:
    """First who is above whom, those who are above the same together; then who is not told apart. Seeds too few to
    speak for others speak for these runs."""
    below: dict[tuple[str, ...], list[str]] = {}
    for setting in settings:
        under = tuple(pair.second.name for pair in found if pair.first is setting and pair.told_apart)
        if under:
            below.setdefault(under, []).append(setting.name)
    alone = not set.intersection(*(set(sampled_axes(setting.replicates)) for setting in settings))
    of_these = "In these runs " if alone else ""
    clauses = []
    for under, names in below.items():
        clauses.append(f"{of_these}{listed(names)} {'is' if len(names) == 1 else 'are'} above {listed(under)}.")
    open_pairs = [pair for pair in found if not pair.told_apart]
    if open_pairs:
        said = [f"{pair.first.name} and {pair.second.name}" for pair in open_pairs]
        clauses.append(f"Not told apart: {'; '.join(said)}.")
    return clauses


def _by(pair: Pair) -> str:
    if pair.p_value is None:
        return pair.text
    return f"{pair.text} (p < 0.001)" if pair.p_value < 0.001 else f"{pair.text} (p {pair.p_value:.2g})"
