"""`python -m analysis compare A B ...`: any runs or sweeps against one another at equal KL."""

from __future__ import annotations

import argparse
import dataclasses
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.load import RunRecord, SweepFolderError, label_runs, load_folders
from analysis.matched import check_nats, matched_settings
from analysis.statistics import MIN_SEEDS_STUDENT, Interval, Versus, interval, versus
from analysis.summary import SettingSummary, compare, scale_notes, short_run_notes
from analysis.tables import interval_text, number, write_csv
from rlhf.terminal import NARROWEST, tell
from rlhf.terminal import console as made_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# From here on intervals that leave out 0 by chance are to be expected.
_MANY_PAIRS = 10
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


@dataclass(frozen=True)
class Side:
    """One of those compared: the runs of one setting in one of the folders."""

    name: str
    source: str
    """Of which sweep; "" for runs given one by one."""
    setting: SettingSummary


@dataclass(frozen=True)
class Match:
    """All sides at one KL: the reward that each of their runs gained within it."""

    kl: float  # nats
    why: str
    gains: tuple[Interval, ...]  # by side
    efficiencies: tuple[Interval, ...]
    short: tuple[int, ...]  # runs of each side that never spent so much: their gain is continued as a constant
    pairs: tuple[tuple[int, int, Versus, Versus], ...]  # two sides, the first against the second in gain, in E(K)


@dataclass(frozen=True)
class MatchedComparison:
    sides: tuple[Side, ...]
    matches: tuple[Match, ...]
    notes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", help="sweeps' or runs' folders; runs are taken together")
    parser.add_argument("--kl", type=float, help="nats at which to compare; otherwise the data set's KL budget")
    parser.add_argument("--target-kl", type=float, help="choose each algorithm's setting nearest to this last KL, nats")
    parser.add_argument("--all-settings", action="store_true", help="compare every setting, not one per algorithm")
    parser.add_argument("--csv", type=Path, help="write the pairs there, too")


def run(options: argparse.Namespace) -> int:
    """Print the comparison.

    Raises:
        AnalysisError: there are not two things to compare, or no KL to compare them at.
    """
    check_nats("--kl", options.kl)
    check_nats("--target-kl", options.target_kl)
    found = compare_folders(options.folders, options.kl, options.target_kl, options.all_settings)
    console = made_console(narrowest=NARROWEST)
    print_comparison(found, console)
    for note in dict.fromkeys(found.notes):
        tell(console, f"note: {note}")
    if options.csv:
        rows = csv_rows(found)
        write_csv(options.csv, rows, list(rows[0]))
        tell(console, str(options.csv))
    return 0


def compare_folders(
    folders: Sequence[Path], kl: float | None = None, target_kl: float | None = None, all_settings: bool = False
) -> MatchedComparison:
    """Sides from each sweep, and from all single runs together; at the budget, and at the KL that every run spent.

    Raises:
        SweepFolderError: a folder is none, or fewer than two settings have a finished run.
    """
    sources = _sources(folders)
    sides: list[Side] = []
    notes: list[str] = []
    for name, records in sources.items():
        comparison = compare(records)
        prefix = f"{name}: " if len(sources) > 1 else ""
        notes += [f"{prefix}left out: {item.record.id}: {item.reason}" for item in comparison.excluded]
        # How many runs fell short is told for the KL at hand, by the tables.
        short = short_run_notes(comparison.settings)
        notes += [prefix + note for note in comparison.notes if note not in short]
        sides += [Side(f"{prefix}{setting.name}", name, setting) for setting in comparison.settings]
    groups = {(side.source, side.setting.algo) for side in sides}
    chooses = not all_settings and 1 < len(groups) < len(sides)
    if target_kl is not None and not chooses:
        notes.append("--target-kl: not used: all settings are compared, as asked or since there is no choice to make")
    if chooses:
        by_setting = {id(side.setting): side for side in sides}
        matched = matched_settings(
            [side.setting for side in sides],
            target_kl,
            group=lambda one: (by_setting[id(one)].source, one.algo),
            name=lambda one: by_setting[id(one)].name,
        )
        chosen = set(map(id, matched.settings))
        sides = [side for side in sides if id(side.setting) in chosen]
        notes.append(matched.text)
    if len(sides) < 2:
        there = sides[0].name if sides else "nothing"
        raise SweepFolderError(f"two settings with finished runs are needed, and there is {there}; give more folders")
    if len(sources) > 1:
        notes += scale_notes([side.setting.runs[0].record.config for side in sides])
    if (pairs := math.comb(len(sides), 2)) >= _MANY_PAIRS:
        notes.append(
            f"{pairs} pairs, each with a 95 % interval of its own, not widened for their number: by chance one in "
            "20 leaves out 0"
        )
    return MatchedComparison(tuple(sides), _matches(sides, kl), tuple(notes))


def _sources(folders: Sequence[Path]) -> dict[str, list[RunRecord]]:
    """Records by sweep; single runs under the name ""."""
    found = load_folders(folders)
    single = [record for folder, records in found for record in records if record.folder == folder]
    sweeps = [(folder, records) for folder, records in found if all(record.folder != folder for record in records)]
    names = [folder.name for folder, _ in sweeps]
    sources = {folder.name if names.count(folder.name) == 1 else str(folder): records for folder, records in sweeps}
    if single:
        sources["runs" if sweeps else ""] = label_runs(single)
    return sources


def _matches(sides: Sequence[Side], kl: float | None) -> tuple[Match, ...]:
    if kl is not None:
        return (_match(sides, kl, "as asked"),)
    budget = min(side.setting.headline.kl_budget for side in sides)
    matches = [_match(sides, budget, "the KL budget")]
    spent = min(run.curve.largest_kl for side in sides for run in side.setting.runs)
    if 0.0 < spent < budget:
        matches.append(_match(sides, spent, "the most that every run spent"))
    return tuple(matches)


def _match(sides: Sequence[Side], kl: float, why: str) -> Match:
    gains = [[float(run.curve.gain(kl)) for run in side.setting.runs] for side in sides]
    efficiencies = [[run.curve.efficiency(kl) for run in side.setting.runs] for side in sides]
    return Match(
        kl=kl,
        why=why,
        gains=tuple(interval(one) for one in gains),
        efficiencies=tuple(interval(one) for one in efficiencies),
        short=tuple(sum(not run.curve.reaches(kl) for run in side.setting.runs) for side in sides),
        pairs=tuple(
            (a, b, versus(gains[a], gains[b]), versus(efficiencies[a], efficiencies[b]))
            for a, b in combinations(range(len(sides)), 2)
        ),
    )


def csv_rows(found: MatchedComparison) -> list[dict[str, Any]]:
    """A row per pair, KL and measure (gain, kl_efficiency)."""
    rows = []
    for match in found.matches:
        for a, b, gain, efficiency in match.pairs:
            for measure, one in (("gain", gain), ("kl_efficiency", efficiency)):
                sides = {"a": found.sides[a].name, "b": found.sides[b].name}
                seeds = {"seeds_a": len(found.sides[a].setting.runs), "seeds_b": len(found.sides[b].setting.runs)}
                rows.append({**sides, **seeds, "kl": match.kl, "measure": measure, **dataclasses.asdict(one)})
    return rows


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
