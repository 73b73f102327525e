"""`python -m analysis report runs/<sweep>`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep_folder", type=Path, help="a sweep's folder, such as runs/default")


def run(options: argparse.Namespace) -> int:
    """Write the report and print its table."""
    from rich.console import Console

    from analysis.report import summary_table, write_report

    files = write_report(options.sweep_folder)
    console = Console()
    console.print(summary_table(files.comparison))
    console.print(str(files.html), soft_wrap=True, markup=False, highlight=False)
    return 0
