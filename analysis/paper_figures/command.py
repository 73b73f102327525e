"""The command: gather, draw, write figure_N.png and .svg, and print where they are and how to read them."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.load import SweepFolderError
from analysis.matched import check_nats
from analysis.paper_figures.table import FIGURES, PaperFigure
from rlhf.terminal import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.paper_figures.contents import Contents, Row

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis figure`."""
    titles = "\n".join(f"  {figure.title}" for figure in FIGURES.values())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"the paper's figures:\n{titles}"
    parser.add_argument("number", type=int, choices=FIGURES, metavar="N", help="which figure of the paper, 1 to 9")
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="sweeps' or runs' folders, taken together; for figure 1 the folder of winrates.csv or a sweep judged once",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write; otherwise the first FOLDER")
    parser.add_argument(
        "--target-kl",
        type=float,
        metavar="NATS",
        help="figures 2 to 6 and 9: choose each algorithm's setting nearest to this last KL",
    )
    parser.add_argument(
        "--all-settings", action="store_true", help="draw every setting of an algorithm, not the one chosen by KL"
    )
    parser.add_argument("--gold", action="store_true", help="one more panel: the gold reward, where it was logged")


def run(options: argparse.Namespace) -> int:
    """Write the figure and say what it shows; 0.

    Raises:
        AnalysisError: a folder without runs or win rates, nothing that the figure shows, or no KL in --target-kl.
    """
    figure = FIGURES[options.number]
    check_nats("--target-kl", options.target_kl)
    drawn, caption = _win_rates(figure, options) if figure.lines == "pair" else _over_samples(figure, options)
    # matplotlib takes half a second to import; a command that cannot be done does not need it.
    from analysis.figures import save_figure

    output = options.output or options.folders[0]
    try:
        output.mkdir(parents=True, exist_ok=True)
        paths = save_figure(drawn, output, f"figure_{figure.number}")
    except OSError as error:
        raise SweepFolderError(f"{output}: cannot be written ({error.strerror}); give another --output") from error
    say("\n".join(map(str, paths)))
    for paragraph in caption:
        say(textwrap.fill(paragraph, _WIDTH, break_on_hyphens=False, break_long_words=False))
    return 0


def _over_samples(figure: PaperFigure, options: argparse.Namespace) -> tuple[Figure, list[str]]:
    from analysis.paper_figures.contents import Choice, gather

    contents = gather(figure, options.folders, Choice(options.target_kl, options.all_settings))
    runs = [run for row in contents.rows for line in row.lines for run in line.runs]
    gold = options.gold and any(run.evaluations.gold_reward is not None for run in runs)
    from analysis.paper_figures.drawing import draw

    caption = _caption(figure, contents)
    if options.gold and not gold:
        caption.append("--gold: no run drawn here has logged a gold reward")
    if options.target_kl is not None and (options.all_settings or figure.lines != "algorithm"):
        caption.append(f"--target-kl: not used, figure {figure.number} draws every setting here")
    return draw(figure, contents, gold), caption


def _win_rates(figure: PaperFigure, options: argparse.Namespace) -> tuple[Figure, list[str]]:
    from analysis.paper_figures.winrates import missing_pairs, read_winrates

    pairs, judge = read_winrates(options.folders)
    from analysis.paper_figures.drawing import draw_win_rates, prompts_text

    caption = [
        f"{figure.title}. Here judged by {judge} on {prompts_text(pairs)}; at the right the win rate of the left "
        "model, ties one half, with its interval over prompts, and over seeds from 3 on.",
        f"The paper: {figure.finds}.",
    ]
    unparsed = [f"{pair.unparsed} of {pair.model_a} vs {pair.model_b}" for pair in pairs if pair.unparsed]
    if unparsed:
        caption.append(f"left out: answers of the judge that have no verdict: {', '.join(unparsed)}")
    return draw_win_rates(figure, pairs, judge), caption + missing_pairs(pairs)


def _caption(figure: PaperFigure, contents: Contents) -> list[str]:
    """Paragraphs: what is drawn, what the paper finds, how settings were chosen, gaps, what was left out."""
    drawn = "; ".join(f"{row.title}, {_seeds(row)}" for row in contents.rows)
    several = any(len(line.runs) > 1 for row in contents.rows for line in row.lines)
    lines = "A line is the mean over seeds, its band runs from minimum to maximum." if several else "A line is one run."
    said = [f"{figure.title}. Here: {drawn}. {lines}", f"The paper: {figure.finds}."]
    return [*said, *contents.chosen, *contents.gaps, *contents.left_out]


def _seeds(row: Row) -> str:
    """The seeds of all lines, or of each where they are not the same."""
    seeds = {line.name: _listed(line.seeds) for line in row.lines}
    if len(set(seeds.values())) == 1:
        return next(iter(seeds.values()))
    return ", ".join(f"{name} {text}" for name, text in seeds.items())


def _listed(seeds: Sequence[int]) -> str:
    if not seeds:
        return "seed unknown"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
