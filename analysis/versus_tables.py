"""What `compare` prints: for each KL the settings and their pairs, in one order, and what the intervals conclude."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.statistics import MIN_SEEDS_STUDENT, Versus
from analysis.tables import interval_text, number
from rlhf.terminal import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from analysis.versus import Match, MatchedComparison, Side

# Of a pair of names that fit into a line of 80.
_LONGEST_NAME = 10
_LEGEND = (
    "Reward gained: the most that a run's reward rose above the initial policy's at or below this KL. KL efficiency: "
    "the mean of that gain over the square root of KL, from 0 to this KL. A run beats a run: the share of pairs of "
    "runs in which the first has more. Sure of the sign: one-sided confidence that the difference has the sign shown; "
    "50 % is no evidence, and it is no p-value. [ ]: 95 % interval over seeds, ( ): min to max of two. Runs count as "
    "independent, also where two sides share seeds."
)
_THREE_SEEDS = "With 3 seeds against 3 the interval of `a run beats a run` covers about 90 %, not 95."
_MOST_CONCLUSIONS = 10


def print_comparison(found: MatchedComparison, console: Console) -> None:
    """Tables and sentences: first at the KL that every run spent, where there is one, then at the budget."""
    for match in reversed(found.matches):
        console.print(_sides_table(found, match), _pairs_table(found, match))
        lines = conclusions(found, match) if match is found.matches[-1] else []
        for line in [*lines, *_continued(found, match)]:
            tell(console, line)
        tell(console, "")
    three = any(len(side.setting.runs) == MIN_SEEDS_STUDENT for side in found.sides)
    legend = f"{_LEGEND} {_THREE_SEEDS}" if three else _LEGEND
    tell(console, textwrap.fill(legend, console.width, break_on_hyphens=False))


def conclusions(found: MatchedComparison, match: Match) -> list[str]:
    """A sentence for each pair on the reward gained, from the interval of its difference; the first ten."""
    names = [side.name for side in found.sides]
    said = (_conclusion(names[a], names[b], gain) for a, b, gain, _ in match.pairs[:_MOST_CONCLUSIONS])
    return [f"Within {match.kl:.3g} nats, {one}." for one in said]


def _continued(found: MatchedComparison, match: Match) -> list[str]:
    """A line on runs that never spent the KL."""
    short = [f"{count} of {side.name}" for side, count in zip(found.sides, match.short, strict=True) if count]
    if not short:
        return []
    never = f"Runs that never spent {match.kl:.3g} nats: {', '.join(short)}"
    return [f"{never}; beyond their last KL their gain counts as constant, which favours runs that spent more."]


def _conclusion(first: str, second: str, gain: Versus) -> str:
    difference = f"difference {_difference(gain)}"
    if gain.low is None or gain.high is None:
        why = f"fewer than {MIN_SEEDS_STUDENT} seeds" if gain.probability_low is None else "the seeds do not differ"
        return f"{first} and {second} have no interval to conclude from ({difference}; {why})"
    if gain.low > 0.0 or gain.high < 0.0:
        more, less = (first, second) if gain.low > 0.0 else (second, first)
        low, high = sorted((abs(gain.low), abs(gain.high)))
        return f"{more} gained {number(abs(gain.difference))}{_bounds(low, high, 3)} more reward than {less}"
    return f"{first} and {second} are not told apart ({difference} includes 0)"


def _sides_table(found: MatchedComparison, match: Match) -> Table:
    title = f"within {match.kl:.3g} nats, {match.why}"
    table = _table(title, "", "seeds", "last KL", "reward gained", "KL efficiency")
    shorts = _short_names(found.sides)
    for index, side in enumerate(found.sides):
        name = side.name if shorts[index] == side.name else f"{shorts[index]}: {side.name}"
        measured = (interval_text(one[index]) for one in (match.gains, match.efficiencies))
        table.add_row(name, str(len(side.setting.runs)), number(side.setting.kl.mean, 2), *measured)
    return table


def _pairs_table(found: MatchedComparison, match: Match) -> Table:
    table = _table(None, "", "in", "difference", "a run beats a run", "sure of\nthe sign")
    shorts = _short_names(found.sides)
    for a, b, gain, efficiency in match.pairs:
        several = min(len(found.sides[place].setting.runs) for place in (a, b)) > 1
        for measure, one in (("reward", gain), ("efficiency", efficiency)):
            probability = number(one.probability if several else None, 2)
            probability += _bounds(one.probability_low, one.probability_high, 2)
            pair = f"{shorts[a]} \N{MINUS SIGN} {shorts[b]}" if one is gain else ""
            table.add_row(pair, measure, _difference(one), probability, _sure(one))
    return table


def _sure(one: Versus) -> str:
    if one.better is None:
        return number(None)
    share = max(one.better, 1.0 - one.better)
    return "> 99.9%" if share > 0.999 else f"{share:.1%}"


def _difference(one: Versus) -> str:
    return number(one.difference) + _bounds(one.low, one.high, 3)


def _bounds(low: float | None, high: float | None, digits: int) -> str:
    return "" if low is None or high is None else f" [{number(low, digits)}, {number(high, digits)}]"


def _short_names(sides: Sequence[Side]) -> list[str]:
    """Their names, or letters where a pair of names would not fit into a line of 80."""
    names = [side.name for side in sides]
    return names if max(map(len, names)) <= _LONGEST_NAME else [_letters(index) for index in range(len(names))]


def _letters(index: int) -> str:
    """A to Z, AA, AB ..."""
    before = _letters(index // 26 - 1) if index >= 26 else ""
    return before + chr(ord("A") + index % 26)


def _table(title: str | None, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", collapse_padding=True)
    for column in columns:
        table.add_column(column, no_wrap=bool(column), overflow="fold", min_width=0 if column else 5)
    return table
