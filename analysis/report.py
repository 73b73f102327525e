"""`python -m analysis report runs/<sweep>`: CSV files, figures and one page, written into the sweep's folder."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.compared import Comparison
from analysis.diagnoses import diagnose
from analysis.errors import AnalysisError
from analysis.findings import Findings, findings
from analysis.load import RunRecord, SweepFolderError, load_run, load_sweep
from analysis.measures import ClaimsTable
from analysis.page_texts import problems
from analysis.statistics import Interval
from analysis.summary import compare
from analysis.tables import KL_EFFICIENCY_COLUMNS, kl_efficiency_rows, run_rows, spread_table, summary_table, write_csv

__all__ = ["problem_lines", "spread_table", "summary_table", "write_report"]

NOTHING_COMPARED = 1
_MOST_REASONS = 5
_MOST_DIAGNOSES = 10
_SCRATCH = ".report-"
_ABANDONED = 3600.0  # seconds after which no report is still writing
_CLAIMS = ("mean_gain", "samples_to_target", "largest_fall", "spread")
_CLAIMS_COLUMNS = (
    *("algo", "label", "seeds", "horizon", "target", "runs_at_target"),
    *(f"{name}{end}" for name in _CLAIMS for end in ("", "_ci_low", "_ci_high")),
)


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote, and the findings behind it."""

    findings: Findings
    runs_csv: Path
    kl_efficiency_csv: Path
    claims_csv: Path
    diagnoses_txt: Path
    figures: tuple[Path, ...]  # PNG and SVG
    html: Path

    @property
    def comparison(self) -> Comparison:
        """For `summary_table`."""
        return self.findings.comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep_folder", type=Path, nargs="?", help="a sweep's folder, such as runs/default")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs from W&B's server")
    parser.add_argument("--group", help="with --wandb: the sweep's name")
    parser.add_argument("--output", type=Path, help="write there; otherwise into the sweep's folder")


def run(options: argparse.Namespace) -> int:
    """Write the report and print its table; 1 where there was no run to compare.

    Raises:
        AnalysisError: no such runs, or options that do not go together.
    """
    from rlhf.terminal import NARROWEST, tell
    from rlhf.terminal import console as made_console

    folder, records = _source(options)
    files = write_report(folder, records, options.output)
    console = made_console(narrowest=NARROWEST)
    console.print(*filter(None, (summary_table(files.comparison, console.width), spread_table(files.comparison))))
    for line in (files.findings.verdict.sentence, files.findings.verdict.detail):
        tell(console, line)
    if options.wandb is not None:
        tell(console, "note: read from W&B, which keeps no versions and no samples: the page lacks both")
    for text in _said(files.findings):
        tell(console, text)
    tell(console, str(files.html))
    return 0 if files.comparison.settings else NOTHING_COMPARED


def _said(found: Findings) -> list[str]:
    """Below the table: notes, why runs were left out, diagnoses."""
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
        return options.sweep_folder, None
    if options.group is None or options.output is None or options.sweep_folder is not None:
        raise AnalysisError("--wandb: needs --group SWEEP and --output FOLDER, and no sweep folder")
    from analysis.wandb_run import load_wandb_server

    return Path(options.group), load_wandb_server(options.wandb, options.group)


def write_report(
    sweep_folder: Path, records: Sequence[RunRecord] | None = None, output: Path | None = None
) -> ReportFiles:
    """Read every run of the sweep and write tables, figures and report.html into its folder.

    Each file is written under another name first and then put in its place, so that a reader, or a report cut short,
    never leaves half a file.

    Args:
        records: the runs, where they were read from elsewhere; the sweep folder then only gives the title.
        output: the folder to write into instead of the sweep's.

    Raises:
        analysis.load.SweepFolderError: the folder does not exist or holds no runs.
        OSError: the folder cannot be written.
    """
    folder = Path(sweep_folder)
    if records is None:
        records = load_sweep(folder)
    if not records:
        raise SweepFolderError(f"{folder}: no runs to report on")
    found = findings(compare(records))
    target = folder if output is None else Path(output)
    target.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target) as scratch:
        _write(Path(scratch), folder.resolve().name, target, found)
        paths = {path.name: path.replace(target / path.name) for path in sorted(Path(scratch).iterdir())}
    return ReportFiles(
        findings=found,
        runs_csv=paths["runs.csv"],
        kl_efficiency_csv=paths["kl_efficiency.csv"],
        claims_csv=paths["claims.csv"],
        diagnoses_txt=paths["diagnoses.txt"],
        figures=tuple(path for path in paths.values() if path.suffix in (".png", ".svg")),
        html=paths["report.html"],
    )


def problem_lines(found: Findings) -> list[str]:
    """What went wrong in a sweep and what to try, the first few; empty where no problem was found."""
    return first_lines([diagnosis.text for diagnosis in found.diagnoses], _MOST_DIAGNOSES, "diagnoses.txt has all")


def single_run_lines(folder: Path) -> list[str]:
    """The same of one run, by its folder."""
    found = diagnose(compare([load_run(folder)]))
    return first_lines([diagnosis.text for diagnosis in found], _MOST_DIAGNOSES, "the report has all")


def first_lines(lines: Sequence[str], most: int, where: str) -> list[str]:
    """At most so many, and where the others are."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {more} more; {where}"] if more > 0 else [])]


def _remove_abandoned(target: Path) -> None:
    """Folders of reports that were killed while they wrote."""
    for path in target.glob(f"{_SCRATCH}*"):
        if path.is_dir() and not path.is_symlink() and path.stat().st_mtime < time.time() - _ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, name: str, target: Path, found: Findings) -> None:
    # These take a second to import; a table alone does not need them.
    from analysis.charts import charts
    from analysis.charts_training import training_figure
    from analysis.drawing import save_figure
    from analysis.page import render_page

    comparison = found.comparison
    rows = run_rows(comparison)
    write_csv(folder / "runs.csv", rows, list(rows[0]))
    write_csv(folder / "kl_efficiency.csv", kl_efficiency_rows(comparison.settings), KL_EFFICIENCY_COLUMNS)
    write_csv(folder / "claims.csv", claims_rows(found.claims), _CLAIMS_COLUMNS)
    diagnoses = [problems(comparison, found.diagnoses), *(diagnosis.text for diagnosis in found.diagnoses)]
    (folder / "diagnoses.txt").write_text("\n".join(diagnoses) + "\n", encoding="utf-8", errors="replace")
    figures = charts(found)
    for figure in figures:
        save_figure(figure, folder, figure.file)
    figures += training_figure(comparison.settings)
    # The folder's name may hold bytes that are no text.
    page = render_page(name, target, found, figures)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="replace")


def claims_rows(claims: ClaimsTable) -> list[dict[str, Any]]:
    """One row per setting: each measure with its interval; None where there is none."""
    rows = []
    for row in claims.rows:
        setting = row.setting
        made: dict[str, Any] = {"algo": setting.algo, "label": setting.label, "seeds": len(setting.runs)}
        made |= {"horizon": claims.horizon, "target": claims.target, "runs_at_target": row.runs_at_target}
        for name in _CLAIMS:
            value: Interval | None = getattr(row, name)
            ends = (None, None, None) if value is None else (value.mean, value.low, value.high)
            made |= dict(zip((name, f"{name}_ci_low", f"{name}_ci_high"), ends, strict=True))
        rows.append(made)
    return rows
