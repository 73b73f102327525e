"""`python -m analysis compare A B ...`: any runs or sweeps against one another at equal KL."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from analysis.load import RunRecord, SweepFolderError, label_runs, load_folders
from analysis.matched import check_nats, matched_settings
from analysis.statistics import Interval, Versus, interval, versus
from analysis.summary import SettingSummary, compare, scale_notes, short_run_notes
from analysis.tables import write_csv

# From here on intervals that leave out 0 by chance are to be expected.
_MANY_PAIRS = 10


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
    from analysis.versus_tables import print_comparison
    from rlhf.terminal import NARROWEST, tell
    from rlhf.terminal import console as made_console

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
