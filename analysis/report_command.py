"""`python -m analysis report runs/<sweep>`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.load import RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep_folder", type=Path, nargs="?", help="a sweep's folder, such as runs/default")
    parser.add_argument("--from-wandb", action="store_true", help="read the runs' W&B files, not metrics.jsonl")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs from W&B's server")
    parser.add_argument("--group", help="with --wandb: the sweep's name")
    parser.add_argument("--output", type=Path, help="write there; otherwise into the sweep's folder")


def run(options: argparse.Namespace) -> int:
    """Write the report and print its table.

    Raises:
        AnalysisError: no such runs, or options that do not go together.
    """
    from rich.console import Console

    from analysis.report import summary_table, write_report

    folder, records = _source(options)
    files = write_report(folder, records, options.output)
    console = Console()
    console.print(summary_table(files.comparison))
    for diagnosis in files.findings.diagnoses:
        console.print(diagnosis.text, markup=False, highlight=False)
    console.print(str(files.html), soft_wrap=True, markup=False, highlight=False)
    return 0


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
