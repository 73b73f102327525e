"""`python -m analysis report runs/<sweep>`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import AnalysisError
from analysis.load import RunRecord

if TYPE_CHECKING:
    from analysis.findings import Findings

NOTHING_COMPARED = 1
_MOST_REASONS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep_folder", type=Path, nargs="?", help="a sweep's folder, such as runs/default")
    parser.add_argument("--from-wandb", action="store_true", help="read the runs' W&B files, not metrics.jsonl")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs from W&B's server")
    parser.add_argument("--group", help="with --wandb: the sweep's name")
    parser.add_argument("--output", type=Path, help="write there; otherwise into the sweep's folder")


def run(options: argparse.Namespace) -> int:
    """Write the report and print its table; 1 where there was no run to compare.

    Raises:
        AnalysisError: no such runs, or options that do not go together.
    """
    from analysis.report import summary_table, write_report
    from rlhf.terminal import NARROWEST, tell
    from rlhf.terminal import console as made_console

    folder, records = _source(options)
    files = write_report(folder, records, options.output)
    console = made_console(narrowest=NARROWEST)
    console.print(summary_table(files.comparison, console.width))
    if options.from_wandb or options.wandb is not None:
        tell(console, "note: read from W&B, which keeps no versions and no samples: the page lacks both")
    for text in _said(files.findings):
        tell(console, text)
    tell(console, str(files.html))
    return 0 if files.comparison.settings else NOTHING_COMPARED


def _said(found: Findings) -> list[str]:
    """Below the table: notes, why runs were left out, diagnoses."""
    from analysis.report import first_lines, problem_lines

    excluded = [f"left out: {item.record.id}: {item.reason}" for item in found.comparison.excluded]
    return [
        *(f"note: {note}" for note in found.comparison.notes),
        *first_lines(excluded, _MOST_REASONS, "runs.csv has all"),
        *problem_lines(found),
    ]


def _source(options: argparse.Namespace) -> tuple[Path, Sequence[RunRecord] | None]:
    """The folder that names the report, and the runs where they are not read from it."""
    if options.wandb is None:
        if options.sweep_folder is None or options.group is not None:
            raise AnalysisError("give a sweep's folder, such as runs/default, or --wandb ENTITY/PROJECT --group SWEEP")
        if not options.from_wandb:
            return options.sweep_folder, None
        from analysis.wandb_rows import load_wandb_offline

        return options.sweep_folder, load_wandb_offline(options.sweep_folder)
    if options.group is None or options.output is None or options.sweep_folder is not None:
        raise AnalysisError("--wandb: needs --group SWEEP and --output FOLDER, and no sweep folder")
    from analysis.wandb_rows import load_wandb_server

    return Path(options.group), load_wandb_server(options.wandb, options.group)
