"""Figure 1 from what `python -m analysis winrate` wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.load import SweepFolderError
from analysis.paper_figures.table import PAIRS
from analysis.winrate.intervals import Rate
from analysis.winrate.results import PairResult

FILE = "winrates.csv"


def read_winrates(folders: Sequence[Path]) -> tuple[list[PairResult], str]:
    """The pairs of all folders, and who judged them.

    Raises:
        SweepFolderError: a folder has no win rates, or several; or the judges are not the same.
    """
    files = list(dict.fromkeys(_file(folder).resolve() for folder in folders))
    judges = {_judge(file.parent) for file in files}
    if len(judges) > 1:
        raise SweepFolderError(f"judged by {' and '.join(sorted(judges))}: one figure has one judge; give one of them")
    return [pair for file in files for pair in _pairs(file)], judges.pop()


def missing_pairs(pairs: Sequence[PairResult]) -> list[str]:
    """The paper's pairs that are not there, whatever the models are called besides."""
    there = [{pair.model_a.lower(), pair.model_b.lower()} for pair in pairs]
    gaps = []
    for first, second in PAIRS:
        if not any({_algo(name) for name in names} == {first, second} for names in there):
            gaps.append(f"figure 1 shows {first} vs {second}; no such pair was judged")
    return gaps


def _algo(name: str) -> str:
    """Which of the paper's models a name is of."""
    return next((algo for algo in ("sft", "ppo", "apa") if algo in name), name)


def _file(folder: Path) -> Path:
    if (folder / FILE).is_file():
        return folder / FILE
    found = sorted(folder.glob(f"winrate/*/{FILE}"))
    if len(found) > 1:
        raise SweepFolderError(f"{folder}: several {FILE}; give one of {', '.join(str(one.parent) for one in found)}")
    if not found:
        raise SweepFolderError(f"{folder}: has no {FILE}; `python -m analysis winrate --help` says how to make it")
    return found[0]


def _judge(folder: Path) -> str:
    try:
        return str(json.loads((folder / "winrate.json").read_bytes())["judge"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unnamed judge"


def _pairs(file: Path) -> list[PairResult]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    try:
        pairs = [_pair(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise SweepFolderError(f"{file}: not a table of win rates ({error}); make it again") from error
    if not pairs:
        raise SweepFolderError(f"{file}: has no pair; make it again")
    return pairs


def _pair(row: Mapping[str, str]) -> PairResult:
    """Counts that other judges do not make are 0."""
    prompts, wins, ties, losses = (int(row[name]) for name in ("prompts", "wins", "ties", "losses"))
    inconsistent, unparsed, identical = (int(row.get(n) or 0) for n in ("inconsistent", "unparsed", "identical"))
    low, high = (float(row[name]) if row[name] else None for name in ("ci_low", "ci_high"))
    return PairResult(
        model_a=row["model_a"],
        model_b=row["model_b"],
        prompts=prompts,
        comparisons=wins + ties + losses + inconsistent + unparsed,
        wins=wins,
        ties=ties,
        losses=losses,
        inconsistent=inconsistent,
        unparsed=unparsed,
        identical=identical,
        win_rate=Rate(float(row["win_rate"]), low, high, prompts) if row["win_rate"] else None,
        position_bias=None,
        agreement=None,
    )
