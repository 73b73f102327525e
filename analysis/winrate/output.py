"""Win rates as files, as a table in the terminal, and as figure 1; and read back from the files."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from analysis.errors import AnalysisError
from analysis.winrate.results import COUNTS, MIN_SEEDS, Judgement, Rate
from rlhf.errors import visible
from rlhf.files import file_errors
from rlhf.terminal import Column, fitted_table

if TYPE_CHECKING:
    import pandas as pd

WINRATES = "winrates.csv"
# Dark, light and middle: told apart in grey print and by colour-blind readers.
_SEGMENTS = {
    "left model wins": ("#0B4F86", "white"),
    "tie or inconsistent": ("#EFEFEF", "black"),
    "right model wins": ("#F0A04B", "black"),
}
_NARROW = 0.06
"""Share of a bar below which a segment has no room for its number."""
_WIDTH, _BAR = 430, 42


def prepare_folder(folder: Path) -> None:
    """Make it, and see that files can be written there."""
    with file_errors(folder, "write it"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_results(
    folder: Path,
    pairs: pd.DataFrame,
    habits: Mapping[str, Rate | None],
    judgements: Sequence[Judgement],
    about: Mapping[str, Any],
) -> list[Path]:
    """winrates.csv, judgements.jsonl, figure_1.png and .svg, and last winrate.json, which says how they came about.

    They take the place of earlier ones once all of them are there.

    Raises:
        FileError: they cannot be written.
    """
    title, note = f"Win rates, judged by {about['judge']}", "Each comparison in both orders; ties count one half."
    about = {**about, **{name: rate and dataclasses.asdict(rate) for name, rate in habits.items()}}
    with file_errors(folder, "write it"), tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
        made = [Path(scratch) / name for name in (WINRATES, "judgements.jsonl", "winrate.json")]
        pairs.to_csv(made[0], index=False)
        # Paths and model names come from the command line, where there may be bytes that are no UTF-8.
        with made[1].open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(json.dumps(_row(judgement), ensure_ascii=False) + "\n" for judgement in judgements)
        text = json.dumps(about, indent=2, ensure_ascii=False)
        made[2].write_text(text + "\n", encoding="utf-8", errors="replace")
        figures = save_win_rates(pairs, Path(scratch), title, note)
        return [file.replace(folder / file.name) for file in (*made[:2], *figures, made[2])]


def _row(judgement: Judgement) -> dict[str, Any]:
    """`verdict` is by place: A is the response shown first."""
    names = ("model_a", "model_b", "seed", "prompt", "reference", "response_a", "response_b")
    row = {name: getattr(judgement.comparison, name) for name in names}
    row |= {"outcome": judgement.outcome, "score": judgement.score}
    for order, asked in (("a_first", judgement.forward), ("b_first", judgement.backward)):
        answers, reasons = ([getattr(one, name) for one in asked.replies] for name in ("content", "finish_reason"))
        said = {"verdict": asked.verdict, "answers": answers, "finish_reasons": reasons}
        row[order] = said | {"refusal": asked.refusal or None}
    return row


def results_table(pairs: pd.DataFrame, habits: Mapping[str, Rate | None], judge: str, width: int) -> Table:
    """A row per pair."""
    over = (
        "prompts, for these seeds"
        if max(pairs["seeds"]) < MIN_SEEDS
        else f"prompts, and over seeds with {MIN_SEEDS} or more"
    )
    caption = [f"Judge: {judge}. Win rate of the left model, ties one half; [ ]: 95 % over {over}."]
    if bias := habits["position_bias"]:
        shown = rate_text(bias.value, bias.low, bias.high, ".0%")
        caption.append(f"The response shown first was preferred in {shown} of verdicts that were not ties.")
    if agreement := habits["agreement"]:
        shown = rate_text(agreement.value, agreement.low, agreement.high)
        caption.append(f"Both orders agree: {shown} of comparisons.")
    names, rates = _names_and_rates(pairs)
    counts = ("prompts", "wins", "ties", "losses", "inconsistent", "unparsed")
    columns = [Column(name, pairs[name].map(str).tolist(), right=True) for name in counts]
    return fitted_table([Column("models", names), *columns, Column("win rate", rates)], width, "\n".join(caption))


def _names_and_rates(pairs: pd.DataFrame) -> tuple[list[str], list[str]]:
    rates = [rate_text(*ends) for ends in pairs[["win_rate", "ci_low", "ci_high"]].itertuples(index=False)]
    return (pairs["model_a"] + " vs " + pairs["model_b"]).tolist(), rates


def rate_text(value: float | None, low: float | None, high: float | None, form: str = ".2f") -> str:
    """`0.62 [0.51, 0.72]`; the value alone where there is no interval, a dash where there is no value."""
    value, low, high = (math.nan if end is None else end for end in (value, low, high))
    if math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:{form}}" + ("" if math.isnan(low) or math.isnan(high) else f" [{low:{form}}, {high:{form}}]")


def save_win_rates(pairs: pd.DataFrame, folder: Path, title: str, note: str) -> list[Path]:
    """figure_1.png and .svg: shares of comparisons that have a verdict in both orders; at the right the win rate of the
    left model."""
    import altair as alt
    import pandas as pd

    from analysis.drawing import save

    names, rates = _names_and_rates(pairs)
    names = list(map(visible, names))
    counts = dict(zip(_SEGMENTS, (pairs["wins"], pairs["ties"] + pairs["inconsistent"], pairs["losses"]), strict=True))
    total: Any = sum(counts.values())
    shares = pd.DataFrame({"pair": names} | {kind: count / total for kind, count in counts.items()})
    bars = shares.melt("pair", var_name="kind", value_name="share").dropna()
    bars["place"] = bars["kind"].map([*_SEGMENTS].index)
    bars["text"] = [f"{share:.0%}" if share >= _NARROW else "" for share in bars["share"]]
    silent = (total == 0).map({True: "no verdict could be read", False: ""})
    words = alt.Chart(pd.DataFrame({"pair": names, "rate": rates, "silent": silent}))

    y = alt.Y("pair:N", sort=names, title=None, axis=alt.Axis(labelLimit=0, domain=False, ticks=False))
    axis = alt.Axis(format=".0%", tickCount=5)
    x = alt.X("share:Q", stack="zero", title="share of comparisons", axis=axis, scale=alt.Scale(domain=[0, 1]))
    colours, inks = ([look[part] for look in _SEGMENTS.values()] for part in (0, 1))
    legend = alt.Legend(title=None, orient="top", labelLimit=0)
    by_kind = alt.Color("kind:N", sort=None, scale=alt.Scale(domain=list(_SEGMENTS), range=colours), legend=legend)
    ink = alt.Color("kind:N", scale=alt.Scale(domain=list(_SEGMENTS), range=inks), legend=None)
    drawn = alt.Chart(bars).encode(y, order="place:Q")
    middle: Any = x.copy()
    middle.bandPosition = 0.5
    head = alt.Chart(pd.DataFrame({"text": ["win rate of the left"]})).mark_text(align="left", dx=8, fontWeight="bold")
    layers: list[Any] = [
        drawn.mark_bar(size=0.62 * _BAR, stroke="black", strokeWidth=0.6).encode(x, by_kind),
        drawn.mark_text().encode(middle, ink, text="text:N"),
        words.mark_text(align="left", dx=8).encode(y, x=alt.value(_WIDTH), text="rate:N"),
        words.mark_text(fontStyle="italic").encode(y, x=alt.value(_WIDTH / 2), text="silent:N"),
        head.encode(x=alt.value(_WIDTH), y=alt.value(-8), text="text:N"),
    ]
    chart = alt.layer(*layers).resolve_scale(color="independent").properties(width=_WIDTH, height=_BAR * len(pairs))
    return save([chart], folder, "figure_1", title, note)


def read_winrates(folders: Sequence[Path]) -> tuple[pd.DataFrame, str]:
    """The pairs that `python -m analysis winrate` wrote into all folders, and who judged them.

    Raises:
        AnalysisError: a folder has no win rates, or several; or the judges are not the same.
    """
    import pandas as pd

    files = list(dict.fromkeys(_winrates_file(folder).resolve() for folder in folders))
    judges = {_judge(file.parent) for file in files}
    if len(judges) > 1:
        raise AnalysisError(f"judged by {' and '.join(sorted(judges))}: one figure has one judge; give one of them")
    return pd.concat(map(_read_pairs, files), ignore_index=True), judges.pop()


def _winrates_file(folder: Path) -> Path:
    if (folder / WINRATES).is_file():
        return folder / WINRATES
    found = sorted(folder.glob(f"winrate/*/{WINRATES}"))
    if len(found) > 1:
        raise AnalysisError(f"{folder}: several {WINRATES}; give one of {', '.join(str(one.parent) for one in found)}")
    if not found:
        raise AnalysisError(f"{folder}: has no {WINRATES}; `python -m analysis winrate --help` says how to make it")
    return found[0]


def _judge(folder: Path) -> str:
    try:
        return str(json.loads((folder / "winrate.json").read_bytes())["judge"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unnamed judge"


def _read_pairs(file: Path) -> pd.DataFrame:
    """Counts that other judges do not make are 0."""
    import pandas as pd

    texts, numbers = dict.fromkeys(("model_a", "model_b"), str), dict.fromkeys(("win_rate", "ci_low", "ci_high"), float)
    try:
        read = pd.read_csv(file, dtype={**texts, **numbers}, keep_default_na=False, na_values=[""])
        counts = read.reindex(columns=COUNTS, fill_value=0).fillna(0).astype(int)
        pairs = pd.concat([read[[*texts, *numbers]], counts], axis=1)
    except (KeyError, ValueError) as error:
        raise AnalysisError(
            f"{file}: not a table of win rates ({' '.join(str(error).split())}); make it again"
        ) from error
    if pairs.empty or pairs[[*texts]].isna().to_numpy().any():
        raise AnalysisError(f"{file}: has no pair; make it again")
    return pairs
