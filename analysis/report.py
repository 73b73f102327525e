"""A sweep folder -> its report: CSV files, figures and one page, written into the same folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.load import load_sweep
from analysis.page import render_page
from analysis.summary import Comparison, compare
from analysis.tables import KL_EFFICIENCY_COLUMNS, kl_efficiency_rows, run_rows, summary_table, write_csv

__all__ = ["ReportFiles", "summary_table", "write_report"]

_FRONTIER_CAPTION = (
    "Reward-KL frontier: the best reward reached within each KL; mean over seeds, band from their minimum to their "
    "maximum. Small marks are single evaluations. A line ends at the largest KL of its longest run."
)
_CURVES_CAPTION = (
    "Evaluations over responses generated: mean over the seeds that got as far, band from their minimum to their "
    "maximum."
)


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote, and the comparison behind it (for `summary_table`)."""

    comparison: Comparison
    runs_csv: Path
    kl_efficiency_csv: Path
    figures: tuple[Path, ...]  # PNG and SVG
    html: Path


def write_report(sweep_folder: Path) -> ReportFiles:
    """Read every run of the sweep and write runs.csv, kl_efficiency.csv, the figures and report.html into it.

    Raises:
        analysis.load.SweepFolderError: the folder does not exist or holds no runs.
    """
    # matplotlib takes half a second to import; a table alone does not need it.
    from analysis.figures import curves_figure, frontier_figure, inline_svg, save_figure

    folder = Path(sweep_folder)
    comparison = compare(load_sweep(folder))
    rows = run_rows(comparison)
    write_csv(folder / "runs.csv", rows, list(rows[0]))
    write_csv(folder / "kl_efficiency.csv", kl_efficiency_rows(comparison.settings), KL_EFFICIENCY_COLUMNS)
    paths: list[Path] = []
    inline: list[tuple[str, str]] = []
    for name, draw, caption in (
        ("frontier", frontier_figure, _FRONTIER_CAPTION),
        ("reward_kl", curves_figure, _CURVES_CAPTION),
    ):
        figure = draw(comparison)
        paths.extend(save_figure(figure, folder, name))
        inline.append((inline_svg(figure, name, caption), caption))
    html = folder / "report.html"
    html.write_text(render_page(f"Report of {folder.resolve().name}", comparison, inline), encoding="utf-8")
    return ReportFiles(comparison, folder / "runs.csv", folder / "kl_efficiency.csv", tuple(paths), html)
