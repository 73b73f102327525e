"""The command: gather, draw, write figure_N.png and .svg, and print where they are and how to read them."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.load import SweepFolderError
from analysis.matched import check_nats
from analysis.paper_figures.contents import Contents, Row, gather
from analysis.paper_figures.table import FIGURES, PAIRS, PaperFigure
from analysis.summary import together
from analysis.verdict import verdict
from analysis.winrate.output import read_winrates, save_win_rates
from rlhf.terminal import say

if TYPE_CHECKING:
    import pandas as pd

Save = Callable[[Path], list[Path]]
"""Draws the figure into a folder."""

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
    save, caption = _win_rates(figure, options) if figure.lines == "pair" else _over_samples(figure, options)
    output = options.output or options.folders[0]
    try:
        output.mkdir(parents=True, exist_ok=True)
        paths = save(output)
    except OSError as error:
        raise SweepFolderError(f"{output}: cannot be written ({error.strerror}); give another --output") from error
    say("\n".join(map(str, paths)))
    for paragraph in caption:
        say(textwrap.fill(paragraph, _WIDTH, break_on_hyphens=False, break_long_words=False))
    return 0


def _over_samples(figure: PaperFigure, options: argparse.Namespace) -> tuple[Save, list[str]]:
    contents = gather(figure, options.folders, options.target_kl, options.all_settings)
    runs = [run for row in contents.rows for line in row.lines for run in line.runs]
    gold = options.gold and any(run.evaluations.gold_reward is not None for run in runs)
    caption = _caption(figure, contents)
    if options.gold and not gold:
        caption.append("--gold: no run drawn here has logged a gold reward")
    if options.target_kl is not None and (options.all_settings or figure.lines != "algorithm"):
        caption.append(f"--target-kl: not used, figure {figure.number} draws every setting here")

    def save(folder: Path) -> list[Path]:
        # The drawing libraries take a second to import; a command that cannot be done does not need them.
        from analysis.paper_figures.drawing import save_paper_figure

        return save_paper_figure(figure, contents, gold, folder)

    return save, caption


def _win_rates(figure: PaperFigure, options: argparse.Namespace) -> tuple[Save, list[str]]:
    pairs, judge = read_winrates(options.folders)
    counts = sorted(set(pairs["prompts"]))
    prompts = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    here = f"judged by {judge} on {prompts} prompt{'s' if counts[-1] != 1 else ''}"
    caption = [
        f"{figure.title}. Here {here}; at the right the win rate of the left model, ties one half, with its interval "
        "over prompts, and over seeds from 3 on.",
        f"The paper: {figure.finds}.",
    ]
    rows = pairs[["unparsed", "model_a", "model_b"]].itertuples(index=False)
    unparsed = [f"{count} of {model_a} vs {model_b}" for count, model_a, model_b in rows if count]
    if unparsed:
        caption.append(f"left out: answers of the judge that have no verdict: {', '.join(unparsed)}")

    def save(folder: Path) -> list[Path]:
        return save_win_rates(pairs, folder, f"In the form of figure 1: {figure.shows}", f"Here: {here}")

    return save, caption + missing_pairs(pairs)


def missing_pairs(pairs: pd.DataFrame) -> list[str]:
    """The paper's pairs that are not there, whatever the models are called besides."""

    def algo(name: str) -> str:
        return next((algo for algo in ("sft", "ppo", "apa") if algo in name), name)

    there = [{algo(name.lower()) for name in pair} for pair in pairs[["model_a", "model_b"]].itertuples(index=False)]
    return [f"figure 1 shows {a} vs {b}; no such pair was judged" for a, b in PAIRS if {a, b} not in there]


def _caption(figure: PaperFigure, contents: Contents) -> list[str]:
    """Paragraphs: what is drawn, what the paper finds, how settings were chosen, gaps, what was left out."""
    drawn = "; ".join(f"{row.title}, {_seeds(row)}" for row in contents.rows)
    several = any(len(line.runs) > 1 for row in contents.rows for line in row.lines)
    lines = "A line is the mean over seeds, its band runs from minimum to maximum." if several else "A line is one run."
    said = [f"{figure.title}. Here: {drawn}. {lines}", f"The paper: {figure.finds}."]
    return [*said, *map(_verdict, contents.rows), *contents.chosen, *contents.gaps, *contents.left_out]


def _verdict(row: Row) -> str:
    """What the lines come to within the KL that all of their runs reached."""
    found = verdict(together({line.name: line.setting for line in row.lines}))
    return f"{row.title}: {found.sentence}"


def _seeds(row: Row) -> str:
    """The seeds of all lines, or of each where they are not the same."""
    seeds = {line.name: _listed(line.setting.seeds) for line in row.lines}
    if len(set(seeds.values())) == 1:
        return next(iter(seeds.values()))
    return ", ".join(f"{name} {text}" for name, text in seeds.items())


def _listed(seeds: Sequence[int]) -> str:
    if not seeds:
        return "seed unknown"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"
