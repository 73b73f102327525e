"""What lines look like: colour, dash pattern and marker, which settings get one, and how many runs are drawn singly.

A colour for each algorithm, and with it a dash pattern and a marker for each line, so that grey print and the
colour-blind still tell them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from analysis.compared import Contender, runs_of
from rlhf.config import ALGO_CONFIGS
from rlhf.config.algo import CUSTOM

# Okabe and Ito's palette, made for colour-blind readers, without black and yellow: they vanish on a dark or white page.
# report.css has a lighter one of each for dark pages.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OTHERS_COLOUR = "#8A8F98"
# On, off, on, ... in line widths.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (5, 1.5, 1, 1.5), (1.2, 1.2), (8, 2, 2, 2), (3, 1))
# Paths inside the box from -1 to 1: circle, square, triangle, diamond, triangle down, cross, triangles right and left.
SHAPES = (
    "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "M-.9,-.9H.9V.9H-.9Z",
    "M0,-1L1,.85H-1Z",
    "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "M0,1L1,-.85H-1Z",
    "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "M1,0L-.85,1V-1Z",
    "M-1,0L.85,1V-1Z",
)
# The known algorithms keep their look from report to report, whichever of them a sweep holds; those of users come after
# them by their own names.
_KNOWN = tuple(name for name in ALGO_CONFIGS if name != CUSTOM)

Drawn = TypeVar("Drawn", bound=Contender)

# More lines than this cannot be told apart: the best keep their looks and the rest is grey.
MOST_SETTINGS = 12
# With more runs than this only means and bands are drawn: single runs would be a smear, and megabytes.
MOST_RUNS = 60


@dataclass(frozen=True)
class Look:
    """How one setting is drawn."""

    colour: str
    dash: tuple[float, ...]
    shape: str


def look(hue: int, dash: int, shape: int) -> Look:
    """By places in the palettes, which start again at their ends."""
    return Look(COLOURS[hue % len(COLOURS)], DASHES[dash % len(DASHES)], SHAPES[shape % len(SHAPES)])


def looks(settings: Sequence[Contender]) -> list[Look]:
    """One for each setting. Where every algorithm has one setting, all by algorithm; otherwise the dash goes by place
    among the algorithm's settings, the marker by place, and so does the colour where there is one algorithm alone."""
    counts = Counter(setting.algo for setting in settings)
    if not counts or max(counts.values()) == 1:
        return algorithm_looks([setting.algo for setting in settings])
    algos = _ordered(counts)
    ranks: Counter[str] = Counter()
    made = []
    for place, setting in enumerate(settings):
        index = algos.index(setting.algo)
        made.append(look(index if len(counts) > 1 else index + place, ranks[setting.algo], place))
        ranks[setting.algo] += 1
    return made


def algorithm_looks(algos: Sequence[str]) -> list[Look]:
    """One for each algorithm."""
    places = map(_ordered(algos).index, algos)
    # Where colours start again the dash moves on by one, so that no two share both.
    return [look(place, place + place // len(COLOURS), place) for place in places]


def _ordered(algos: Sequence[str] | Counter[str]) -> list[str]:
    return [*_KNOWN, *sorted(set(algos) - set(_KNOWN))]


def drawn_settings(settings: Sequence[Drawn]) -> tuple[list[Drawn], list[Drawn]]:
    """Those that get a look of their own, and the grey ones, the best first: with too many settings, those of the
    highest KL efficiency get one."""
    ranked = sorted(settings, key=lambda setting: -setting.headline.kl_efficiency.mean)
    return ranked[:MOST_SETTINGS], ranked[MOST_SETTINGS:]


def draws_runs(settings: Sequence[Contender]) -> bool:
    """Whether single runs and evaluations are drawn beside means and bands."""
    return sum(len(runs_of(setting)) for setting in settings) <= MOST_RUNS
