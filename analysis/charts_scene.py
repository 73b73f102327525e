"""Who is drawn how, and what all charts of a report share: axes, notes, captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import altair as alt

from analysis.charts_data import square_root_ticks
from analysis.compared import ComparedRun, Contender, runs_of
from analysis.looks import Drawn, Look, drawn_settings, draws_runs, looks

# Points of a line: with many settings the page would grow beyond what a phone likes to load.
POINTS, POINTS_OF_MANY, POINTS_OF_OTHERS = 120, 60, 20
MARKS_OF_A_LINE = 6
# Single evaluations in one chart; above it every n-th is drawn.
_MOST_MARKS = 3000
# Grey lines: more of them are one grey area of megabytes.
MOST_GREY = 100


_Drawn = TypeVar("_Drawn", bound=Contender, covariant=True)


@dataclass(frozen=True)
class Scene(Generic[_Drawn]):
    """Who is drawn how."""

    settings: Sequence[_Drawn]
    """Drawn with a look of their own."""
    others: Sequence[_Drawn]
    """Grey."""
    looks: dict[str, Look]
    """By name of the setting."""
    with_runs: bool
    """Whether single runs are drawn."""
    undrawn: int
    """Settings that are not even grey."""

    @property
    def points(self) -> int:
        return POINTS_OF_MANY if self.others else POINTS

    @property
    def runs(self) -> list[tuple[str, ComparedRun]]:
        """(name of its setting, run) of every run that is drawn."""
        return [(one.name, run) for one in self.settings for run in runs_of(one)] if self.with_runs else []

    @property
    def every(self) -> int:
        """Which evaluations of a run are drawn, so that a chart holds at most _MOST_MARKS: every n-th."""
        return max(1, -(-sum(len(run.evaluations.kl) for _, run in self.runs) // _MOST_MARKS))

    def caption(self, text: str, of_runs: str = "") -> str:
        """`text` with what was left out of the charts."""
        said = [text, of_runs if self.with_runs else ""]
        if self.others:
            count = len(self.settings) + len(self.others) + self.undrawn
            grey = f"next {len(self.others)}" if self.undrawn else "others"
            said.append(f"Of {count} settings the best {len(self.settings)} are told apart; the {grey} are grey.")
        if not self.with_runs:
            said.append("Too many runs to draw one by one.")
        elif self.every > 1:
            said.append(f"Of single evaluations every {self.every}th is drawn.")
        return " ".join(part for part in said if part)


def scene(settings: Sequence[Drawn]) -> Scene[Drawn]:
    drawn, others = drawn_settings(settings)
    by_name = dict(zip((one.name for one in drawn), looks(drawn), strict=True))
    return Scene(drawn, others[:MOST_GREY], by_name, draws_runs(settings), len(others[MOST_GREY:]))


def kl_axis(end: float, title: str = "KL to the initial policy, nats (square-root axis)") -> alt.X:
    ticks = alt.Axis(values=square_root_ticks(end), format="~r")
    scale = alt.Scale(type="sqrt", domain=[0, end], nice=False)
    return alt.X("kl:Q", title=title, scale=scale, axis=ticks)


def padded(**more: Any) -> alt.Scale:
    """So that no mark is cut at the edge."""
    return alt.Scale(padding=8, **more)
