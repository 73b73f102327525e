"""`python -m analysis compare A B ...`: any runs or sweeps against one another, within the KL that all runs reached."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.compared import Comparison, SettingSummary
from analysis.errors import AnalysisError
from analysis.load import RunRecord, SweepFolderError, label_runs, load_folders
from analysis.matched import check_nats, matched_settings
from analysis.notes import optimum_notes, short_run_notes
from analysis.statistics import shares_draws, versus
from analysis.summary import budget_notes, compare, together
from analysis.tables import explanation, interval_text, number, spread_table, write_csv
from analysis.verdict import Pair, Verdict, verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Of a pair of names that fit into a line of 80.
_LONGEST_NAME = 10
_LEGEND = (
    "Reward gained: the most that a run's reward rose above the initial policy's at or below this KL. KL efficiency: "
    "the mean of that gain over the square root of KL, from 0 to this KL. A run beats a run: the share of pairs of "
    "runs in which the first has more. p: two-sided, adjusted by Holm for the number of pairs. "
)
_PAIRED = "Runs are paired by prompt and, where both have the same, by seed. "
_INDEPENDENT = "Runs count as independent. "


@dataclass(frozen=True)
class MatchedComparison:
    """Settings of one or several sweeps within one KL."""

    comparison: Comparison
    """Its settings in the order of the folders, named by sweep where there are several."""
    answer: Verdict
    """Its pairs are in the report's order, the higher first."""
    notes: tuple[str, ...]

    @property
    def kl(self) -> float:
        """Nats."""
        return self.comparison.settings[0].headline.kl_budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis compare`."""
    parser.add_argument("folders", type=Path, nargs="+", help="sweeps' or runs' folders; runs are taken together")
    parser.add_argument("--kl", type=float, help="nats at which to compare; otherwise the most that every run reached")
    parser.add_argument("--target-kl", type=float, help="choose each algorithm's setting nearest to this last KL, nats")
    parser.add_argument("--all-settings", action="store_true", help="compare every setting, not one per algorithm")
    parser.add_argument("--csv", type=Path, help="write the pairs there, too")


def run(options: argparse.Namespace) -> int:
    """Print the comparison.

    Raises:
        AnalysisError: there are not two things to compare, or not all reached the KL asked for.
    """
    from rlhf.terminal import NARROWEST, tell
    from rlhf.terminal import console as made_console

    check_nats("--kl", options.kl)
    check_nats("--target-kl", options.target_kl)
    found = compare_folders(options.folders, options.kl, options.target_kl, options.all_settings)
    console = made_console(narrowest=NARROWEST)
    print_comparison(found, console)
    for note in found.notes:
        tell(console, f"note: {note}")
    if options.csv:
        rows = csv_rows(found)
        write_csv(options.csv, rows, list(rows[0]))
        tell(console, str(options.csv))
    return 0


def compare_folders(
    folders: Sequence[Path], kl: float | None = None, target_kl: float | None = None, all_settings: bool = False
) -> MatchedComparison:
    """Settings from each sweep, and from all single runs together, within `kl` or the most that every run reached.

    Raises:
        SweepFolderError: a folder is none, or fewer than two settings have a finished run.
        AnalysisError: some run did not reach `kl`.
    """
    sources = records_by_sweep(folders)
    sides: dict[str, SettingSummary] = {}
    source_of: dict[str, str] = {}
    notes: list[str] = []
    empty: list[Comparison] = []
    for source, records in sources.items():
        comparison = compare(records)
        empty += [comparison] * any(one.stayed for one in comparison.excluded)
        prefix = f"{source}: " if len(sources) > 1 else ""
        notes += [f"{prefix}left out: {item.record.id}: {item.reason}" for item in comparison.excluded]
        # The budgets of the data set are not those of this comparison.
        own = comparison.settings
        others = {*short_run_notes(own), *budget_notes(own), *optimum_notes(own)}
        notes += [prefix + note for note in comparison.notes if note not in others]
        for setting in comparison.settings:
            sides[f"{prefix}{setting.name}"] = setting
            source_of[f"{prefix}{setting.name}"] = source
    groups = {(source_of[name], setting.algo) for name, setting in sides.items()}
    chooses = not all_settings and 1 < len(groups) < len(sides)
    if target_kl is not None and not chooses:
        notes.append("--target-kl: not used: all settings are compared, as asked or since there is no choice to make")
    if chooses:
        names = {id(setting): name for name, setting in sides.items()}
        matched = matched_settings(
            list(sides.values()),
            target_kl,
            group=lambda one: (source_of[names[id(one)]], one.algo),
            name=lambda one: names[id(one)],
        )
        chosen = set(map(id, matched.settings))
        sides = {name: setting for name, setting in sides.items() if id(setting) in chosen}
        notes.append(matched.text)
    if len(sides) < 2:
        there = next(iter(sides), "nothing")
        stayed = "; ".join(dict.fromkeys(one.nothing for one in empty))
        said = stayed or "give more folders"
        raise SweepFolderError(f"two settings with finished runs are needed, and there is {there}; {said}")
    if kl is not None:
        _check_reached(sides, kl)
    found = together(sides, kl)
    notes = list(dict.fromkeys([*notes, *found.notes]))
    return MatchedComparison(found, verdict(found), tuple(notes))


def _check_reached(sides: dict[str, SettingSummary], kl: float) -> None:
    """Raises: AnalysisError: a run did not reach so much."""
    short = {name: sum(not run.curve.reaches(kl) for run in one.runs) for name, one in sides.items()}
    if any(short.values()):
        least = min(run.curve.largest_kl for one in sides.values() for run in one.runs)
        listed = ", ".join(f"{count} of {name}" for name, count in short.items() if count)
        raise AnalysisError(f"--kl: runs that never reached {kl:g} nats: {listed}; give at most {least:.3g}")


def records_by_sweep(folders: Sequence[Path]) -> dict[str, list[RunRecord]]:
    """Records by sweep; single runs under the name ""."""
    found = load_folders(folders)
    single = [record for folder, records in found for record in records if record.folder == folder]
    sweeps = [(folder, records) for folder, records in found if all(record.folder != folder for record in records)]
    names = [folder.name for folder, _ in sweeps]
    sources = {folder.name if names.count(folder.name) == 1 else str(folder): records for folder, records in sweeps}
    if single:
        sources["runs" if sweeps else ""] = label_runs(single)
    return sources


def csv_rows(found: MatchedComparison) -> list[dict[str, Any]]:
    """A row per pair."""
    return [
        {
            "a": pair.first.name,
            "b": pair.second.name,
            "seeds_a": len(pair.first.runs),
            "seeds_b": len(pair.second.runs),
            "kl": found.kl,
            "measure": "kl_efficiency",
            "difference": pair.difference,
            "low": pair.low,
            "high": pair.high,
            "p_holm": pair.p_value,
            "probability": _probability(pair, found.kl),
        }
        for pair in found.answer.pairs
    ]


def print_comparison(found: MatchedComparison, console: Console) -> None:
    """The verdict, then its tables."""
    from rlhf.terminal import tell

    for text in filter(None, (found.answer.sentence, found.answer.detail)):
        tell(console, textwrap.fill(text, console.width, break_on_hyphens=False))
    console.print(_sides_table(found), _pairs_table(found))
    if spreads := spread_table(found.comparison):
        console.print(spreads)
    settings = found.comparison.settings
    paired = found.comparison.crossed or any(shares_draws(setting.replicates) for setting in settings)
    basis = (_PAIRED if paired else _INDEPENDENT) + explanation(settings)
    tell(console, textwrap.fill(_LEGEND + basis, console.width, break_on_hyphens=False))


def _sides_table(found: MatchedComparison) -> Table:
    settings = found.comparison.settings
    shares = ["share of\nthe optimum"] if any(setting.headline.share for setting in settings) else []
    table = _table(f"within {found.kl:.3g} nats", "", "seeds", "last KL", "reward gained", "KL efficiency", *shares)
    shorts = _short_names(settings)
    for setting, short in zip(settings, shorts, strict=True):
        at = setting.headline
        name = setting.name if short == setting.name else f"{short}: {setting.name}"
        share = [] if not shares else ["" if at.share is None else f"{at.share.mean:.0%}"]
        measured = (interval_text(one) for one in (at.gain, at.kl_efficiency))
        table.add_row(name, str(len(setting.runs)), number(setting.kl.mean, 2), *measured, *share)
    return table


def _pairs_table(found: MatchedComparison) -> Table:
    table = _table(None, "", "difference in\nKL efficiency", "a run beats a run", "p")
    shorts = dict(zip(map(id, found.comparison.settings), _short_names(found.comparison.settings), strict=True))
    for pair in found.answer.pairs:
        several = min(len(side.runs) for side in (pair.first, pair.second)) > 1
        table.add_row(
            f"{shorts[id(pair.first)]} \N{MINUS SIGN} {shorts[id(pair.second)]}",
            pair.text,
            number(_probability(pair, found.kl) if several else None, 2),
            number(None) if pair.p_value is None else "< 0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}",
        )
    return table


def _probability(pair: Pair, kl: float) -> float:
    first, second = ([run.efficiency(kl) for run in side.runs] for side in (pair.first, pair.second))
    return versus(first, second).probability


def _short_names(settings: Sequence[SettingSummary]) -> list[str]:
    """Their names, or letters where a pair of names would not fit into a line of 80."""
    names = [setting.name for setting in settings]
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
