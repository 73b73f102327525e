"""Command line: `python -m analysis report runs/<sweep>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.load import SweepFolderError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 for a folder that cannot be reported on (as argparse for a bad command)."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description="What did the runs show?")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="tables, figures and one HTML page of a sweep, written into its folder")
    report.add_argument("sweep_folder", type=Path, help="a sweep's folder, such as runs/default")
    options = parser.parse_args(arguments)
    try:
        return _report(options.sweep_folder)
    except SweepFolderError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2


def _report(sweep_folder: Path) -> int:
    from rich.console import Console

    from analysis.report import summary_table, write_report

    files = write_report(sweep_folder)
    console = Console()
    console.print(summary_table(files.comparison))
    console.print(str(files.html), soft_wrap=True, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
