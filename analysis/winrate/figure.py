"""Figure 1: a stacked bar per pair of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from analysis.drawing import save
from analysis.winrate.intervals import rate_text
from analysis.winrate.results import PairResult
from rlhf.errors import visible

# Dark, light and middle: told apart in grey print and by colour-blind readers.
_SEGMENTS = {
    "left model wins": ("#0B4F86", "white"),
    "tie or inconsistent": ("#EFEFEF", "black"),
    "right model wins": ("#F0A04B", "black"),
}
_NARROW = 0.06
"""Share of a bar below which a segment has no room for its number."""
_WIDTH, _BAR = 430, 42


def save_win_rates(pairs: Sequence[PairResult], folder: Path, title: str, note: str) -> list[Path]:
    """figure_1.png and .svg: shares of comparisons that have a verdict in both orders; at the right the win rate of the
    left model."""
    segments, rates = _rows(pairs)
    y = alt.Y("pair:N", sort=None, title=None, axis=alt.Axis(labelLimit=0, domain=False, ticks=False))
    x = alt.X(
        "start:Q",
        title="share of comparisons",
        axis=alt.Axis(format=".0%", tickCount=5),
        scale=alt.Scale(domain=[0, 1]),
    )
    colours, inks = ([look[part] for look in _SEGMENTS.values()] for part in (0, 1))
    legend = alt.Legend(title=None, orient="top", labelLimit=0)
    by_kind = alt.Color("kind:N", sort=None, scale=alt.Scale(domain=list(_SEGMENTS), range=colours), legend=legend)
    ink = alt.Color("kind:N", scale=alt.Scale(domain=list(_SEGMENTS), range=inks), legend=None)
    bars = alt.Chart(segments).mark_bar(size=0.62 * _BAR, stroke="black", strokeWidth=0.6)
    numbers = alt.Chart(segments[segments["share"] >= _NARROW]).mark_text()
    layers: list[Any] = [
        bars.encode(x, alt.X2("end"), y, by_kind),
        numbers.encode(alt.X("middle:Q"), y, ink, text=alt.Text("share:Q", format=".0%")),
        alt.Chart(rates).mark_text(align="left", dx=8).encode(y, x=alt.value(_WIDTH), text="rate:N"),
    ]
    silent = rates[rates["silent"]]
    if len(silent):
        words = alt.Chart(silent).mark_text(fontStyle="italic").encode(y, x=alt.value(_WIDTH / 2))
        layers.append(words.encode(text=alt.value("no verdict could be read")))
    head = alt.Chart(rates.head(1)).mark_text(align="left", dx=8, fontWeight="bold")
    layers.append(head.encode(x=alt.value(_WIDTH), y=alt.value(-8), text=alt.value("win rate of the left")))
    drawn = alt.layer(*layers).resolve_scale(color="independent").properties(width=_WIDTH, height=_BAR * len(pairs))
    return save([drawn], folder, "figure_1", title, note)


def _rows(pairs: Sequence[PairResult]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row per segment, and a row per pair."""
    segments, rates = [], []
    for pair in pairs:
        name = visible(f"{pair.model_a} vs {pair.model_b}")
        counts = (pair.wins, pair.ties + pair.inconsistent, pair.losses)
        total, start = sum(counts), 0.0
        rates.append({"pair": name, "rate": rate_text(pair.win_rate), "silent": total == 0})
        for kind, count in zip(_SEGMENTS, counts, strict=True):
            share = count / total if total else 0.0
            if share:
                row = {"pair": name, "kind": kind, "start": start, "end": start + share, "share": share}
                segments.append(row | {"middle": start + share / 2})
            start += share
    columns = ["pair", "kind", "start", "end", "share", "middle"]
    return pd.DataFrame(segments, columns=columns), pd.DataFrame(rates)
