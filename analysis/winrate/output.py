"""Results as files and as a table in the terminal."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import WinrateError
from analysis.winrate.intervals import MIN_SEEDS, Rate, rate_text
from analysis.winrate.results import WINRATES, Asked, Judgement, Results, pair_row

if TYPE_CHECKING:
    from rich.table import Table


def prepare_folder(folder: Path) -> None:
    """Make the folder before anything is paid for.

    Raises:
        WinrateError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WinrateError(f"--output {folder}: cannot be written ({error.strerror}); give another folder") from error


def write_results(folder: Path, results: Results, judgements: Sequence[Judgement], about: dict[str, Any]) -> list[Path]:
    """winrates.csv, judgements.jsonl, figure_1.png and .svg, and last winrate.json with `about` and the totals.

    They take the place of earlier ones once all of them are there.

    Raises:
        WinrateError: they cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
            made = _write_all(Path(scratch), results, judgements, about)
            return [file.replace(folder / file.name) for file in made]
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise WinrateError(f"--output {folder}: cannot be written ({why}); mend that and type it again") from error


def _write_all(folder: Path, results: Results, judgements: Sequence[Judgement], about: dict[str, Any]) -> list[Path]:
    from analysis.tables import write_csv
    from analysis.winrate.figure import save_win_rates

    rows = [pair_row(pair) for pair in results.pairs]
    write_csv(folder / WINRATES, rows, list(rows[0]))
    lines = (json.dumps(_judgement_row(judgement), ensure_ascii=False) for judgement in judgements)
    # Paths and model names come from the command line, where there may be bytes that are no UTF-8.
    with (folder / "judgements.jsonl").open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(line + "\n" for line in lines)
    title = f"Win rates, judged by {about['judge']}"
    figures = save_win_rates(results.pairs, folder, title, "Each comparison in both orders; ties count one half.")
    totals = {
        "pairs": rows,
        "position_bias": results.position_bias and dataclasses.asdict(results.position_bias),
        "agreement": results.agreement and dataclasses.asdict(results.agreement),
    }
    text = json.dumps(about | totals, indent=2, ensure_ascii=False)
    (folder / "winrate.json").write_text(text + "\n", encoding="utf-8", errors="replace")
    return [folder / WINRATES, folder / "judgements.jsonl", *figures, folder / "winrate.json"]


def results_table(results: Results, judge: str) -> Table:
    """One row per pair, in 80 columns as long as names are short."""
    from rich import box
    from rich.table import Table

    few = [pair for pair in results.pairs if pair.seeds < MIN_SEEDS]
    over = "prompts, for these seeds" if few else "prompts and seeds"
    if 0 < len(few) < len(results.pairs):
        over = f"prompts, and over seeds with {MIN_SEEDS} or more"
    caption = [f"Judge: {judge}. Win rate of the left model, ties one half; [ ]: 95 % over {over}."]
    if results.position_bias is not None:
        share = _percent_text(results.position_bias)
        caption.append(f"The response shown first was preferred in {share} of verdicts that were not ties.")
    if results.agreement is not None:
        caption.append(f"Both orders agree: {rate_text(results.agreement)} of comparisons.")
    table = Table(box=box.SIMPLE_HEAD, caption="\n".join(caption), caption_justify="left", collapse_padding=True)
    table.add_column("models", overflow="fold")
    for name in ("prompts", "wins", "ties", "losses", "incon-\nsistent", "un-\nparsed"):
        table.add_column(name, justify="right")
    table.add_column("win rate", no_wrap=True)
    for pair in results.pairs:
        counts = (pair.prompts, pair.wins, pair.ties, pair.losses, pair.inconsistent, pair.unparsed)
        table.add_row(f"{pair.model_a} vs {pair.model_b}", *map(str, counts), rate_text(pair.win_rate))
    return table


def _percent_text(rate: Rate) -> str:
    """`62% [51%, 72%]`."""
    interval = "" if rate.low is None or rate.high is None else f" [{rate.low:.0%}, {rate.high:.0%}]"
    return f"{rate.value:.0%}{interval}"


def _judgement_row(judgement: Judgement) -> dict[str, Any]:
    comparison = judgement.comparison
    return {
        "model_a": comparison.model_a,
        "model_b": comparison.model_b,
        "seed": comparison.seed,
        "prompt": comparison.prompt,
        "reference": comparison.reference,
        "response_a": comparison.answer_a.response,
        "response_b": comparison.answer_b.response,
        "outcome": judgement.outcome,
        "score": judgement.score,
        "a_first": _asked_row(judgement.forward),
        "b_first": _asked_row(judgement.backward),
    }


def _asked_row(asked: Asked) -> dict[str, Any]:
    """`verdict` is by place: A is the response shown first."""
    return {
        "verdict": asked.verdict,
        "answers": [reply.content for reply in asked.replies],
        "finish_reasons": [reply.finish_reason for reply in asked.replies],
        "refusal": asked.refusal or None,
    }
