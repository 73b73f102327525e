"""Judgements -> a table with a row per pair of models, and the judge's habits; intervals of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis.winrate.matching import Comparison
from analysis.winrate.prompt import Asked, Verdict

if TYPE_CHECKING:
    import pandas as pd  # most of a second to import, before anything is known to be judged

LEVEL = 0.95
MIN_PROMPTS = 3
MIN_SEEDS = 3
COUNTS = ("prompts", "seeds", "comparisons", "wins", "ties", "losses", "inconsistent", "unparsed", "identical")
_COUNTED = {"wins": "win", "ties": "tie", "losses": "loss", "inconsistent": "inconsistent", "unparsed": "unparsed"}
_FORWARD: dict[Verdict, float] = {"A": 1.0, "TIE": 0.5, "B": 0.0}


@dataclass(frozen=True)
class Rate:
    """A share with its confidence interval; `low` and `high` are None below 3 prompts."""

    value: float
    low: float | None
    high: float | None
    prompts: int


@dataclass(frozen=True)
class Judgement:
    """A comparison in both orders: `forward` shows model_a's response first, `backward` model_b's."""

    comparison: Comparison
    forward: Asked
    backward: Asked

    @property
    def score(self) -> float | None:
        """Mean of the two orders for model_a, a win 1, a tie 0.5, a loss 0; None where one has no verdict."""
        first, second = self.forward.verdict, self.backward.verdict
        return None if first is None or second is None else (_FORWARD[first] + 1.0 - _FORWARD[second]) / 2.0

    @property
    def outcome(self) -> Literal["win", "tie", "loss", "inconsistent", "unparsed"]:
        """Counted for model_a: a win above 0.5 (both orders, or one and a tie), a loss below; at 0.5 a tie where both
        orders say so, and `inconsistent` where each order prefers another model."""
        if self.score is None:
            return "unparsed"
        if self.score != 0.5:
            return "win" if self.score > 0.5 else "loss"
        return "tie" if self.forward.verdict == "TIE" else "inconsistent"


def summarise(judgements: Sequence[Judgement]) -> tuple[pd.DataFrame, dict[str, Rate | None]]:
    """A row per pair, in the order in which they first come, and of all of them two habits of the judge, None for one
    that sees no order.

    Columns: `model_a`, `model_b`; of COUNTS `prompts` has those with a comparison that counts, `seeds` those of runs
    that met (places, where sources are files), `identical` the ties that nobody was asked about, and
    wins + ties + losses + inconsistent + unparsed = comparisons; `win_rate` is the mean over prompts of the mean score
    over seeds, NaN where nothing counts; `position_bias` is the share of verdicts for what was shown first, among those
    for either (0.5 is no bias); `agreement` is the share of comparisons with two verdicts of which both orders say the
    same. Ends of intervals are NaN where there are none.
    """
    import pandas as pd

    rows = []
    for one in judgements:
        seen = [asked.verdict for asked in (one.forward, one.backward) if asked.verdict and asked.replies]
        row = {"model_a": one.comparison.model_a, "model_b": one.comparison.model_b, "prompt": one.comparison.prompt}
        row |= {"seed": one.comparison.seed, "identical": one.comparison.identical, "outcome": one.outcome}
        row |= {"score": np.nan if one.score is None else one.score, "first": seen.count("A")}
        row |= {"either": len(seen) - seen.count("TIE"), "both": len(seen) == 2}
        rows.append(row | {"agree": len(seen) == 2 and (one.score in (0.0, 1.0) or one.outcome == "tie")})
    table: Any = pd.DataFrame(rows)
    pairs = []
    for (model_a, model_b), of_pair in table.groupby(["model_a", "model_b"], sort=False):
        counted = of_pair.dropna(subset="score")
        outcomes = of_pair["outcome"].value_counts()
        row = {"model_a": model_a, "model_b": model_b, "comparisons": len(of_pair)}
        row |= {"prompts": counted["prompt"].nunique(), "seeds": counted["seed"].nunique()}
        row |= {name: outcomes.get(outcome, 0) for name, outcome in _COUNTED.items()}
        row |= {"identical": of_pair["identical"].sum()}
        scores = counted.set_index(["prompt", "seed"])["score"]
        rates = {"win_rate": seeds_rate(scores) if len(scores) else None, **_habits(of_pair)}
        for name, rate in rates.items():
            prefix = "" if name == "win_rate" else f"{name}_"
            ends = {f"{prefix}ci_low": rate and rate.low, f"{prefix}ci_high": rate and rate.high}
            row |= {name: rate and rate.value, **ends}
        pairs.append(row)
    made: Any = pd.DataFrame(pairs)
    ordered = ["model_a", "model_b", *COUNTS]
    return made[[*ordered, *(name for name in made if name not in ordered)]], _habits(table)


def _habits(table: pd.DataFrame) -> dict[str, Rate | None]:
    sums: Any = table.groupby("prompt", sort=False)[["first", "either", "agree", "both"]].sum()
    rates: dict[str, Rate | None] = {}
    for name, counted, of in (("position_bias", "first", "either"), ("agreement", "agree", "both")):
        some = sums[sums[of] > 0]
        rates[name] = share_rate(some[counted], some[of]) if len(some) else None
    return rates


def seeds_rate(scores: Mapping[tuple[str, int], float] | pd.Series, level: float = LEVEL) -> Rate:
    """The mean over prompts of the mean over seeds of scores in [0, 1] by (prompt, seed).

    From MIN_SEEDS seeds on both are clusters: beside the variance of the mean over prompts stands what seeds add to it,
    the variance of the mean over seeds less that of the mean over single scores (Cameron, Gelbach and Miller 2011), not
    below 0. With fewer seeds the interval is over prompts alone, for these seeds. It covers 91 to 97 % with 3 seeds,
    93 to 97 % with 5 or more (`python -m tests.benchmarks.coverage`).
    """
    import pandas as pd

    cells: Any = pd.Series(scores)  # type: ignore[arg-type]
    by_prompt, by_seed = (cells.groupby(level=part, sort=False).mean() for part in (0, 1))
    ones = np.ones(len(by_prompt))
    if min(len(by_prompt), len(by_seed)) < MIN_SEEDS:
        return share_rate(by_prompt, ones, level)
    added = by_seed.var() / len(by_seed) - cells.var() / len(cells)
    return share_rate(by_prompt, ones, level, max(0.0, float(added)), len(by_seed) - 1.0)


def share_rate(
    counted: Sequence[float] | pd.Series,
    of: Sequence[float] | np.ndarray | pd.Series,
    level: float = LEVEL,
    more_variance: float = 0.0,
    more_freedom: float = 1.0,
) -> Rate:
    """sum(counted) / sum(of), with one value of each per prompt, 0 <= counted <= of and of > 0. `more_variance`, with
    its degrees of freedom, is what the share has beside that over prompts.

    The prompt is the unit: whatever happens within one (orders, seeds) may hang together. Wilson's interval with an
    effective number of prompts (Dean and Pagano 2015; Korn and Graubard 1998),

        p (1 - p) / v,  v = sum_i (counted_i - p of_i)^2 / (n (n - 1) mean(of)^2)

    the variance of a ratio over clusters, and Student's quantile for n - 1. For single yes-or-no answers that is
    Wilson's interval, near enough. Where the prompts are more alike than if one of them had half of its cases the other
    way (one verdict of two orders), v is taken as in that case, and the number as n at least: when all agree by chance
    there is no telling how much they vary.

    Of 1000 made-up sets of 16 prompts with scores 0, 1/4 ... 1 it covers 92 to 99 % by their distribution, where a BCa
    bootstrap covers 38 to 95 % and Student's interval 39 to 95 %: both have no width when all prompts agree.
    """
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    top, bottom = np.asarray(counted, dtype=np.float64), np.asarray(of, dtype=np.float64)
    prompts = len(top)
    share = float(top.sum() / bottom.sum())
    if prompts < MIN_PROMPTS:
        return Rate(share, None, None, prompts)
    variance = float(((top - share * bottom) ** 2).sum()) / (prompts * (prompts - 1) * float(bottom.mean()) ** 2)
    freedom = prompts - 1.0
    if more_variance > 0.0:  # by Satterthwaite
        freedom = (variance + more_variance) ** 2 / (variance**2 / freedom + more_variance**2 / more_freedom)
        variance += more_variance
    smallest = 0.25 / (prompts * (prompts - 1))
    effective = max(share * (1.0 - share) / max(variance, smallest), 1.0 if variance >= smallest else float(prompts))
    # Wilson 1927: all p with |share - p| <= t sqrt(p (1 - p) / effective).
    quantile = float(stdtrit(freedom, (1.0 + level) / 2.0))
    square = quantile**2 / effective
    centre = (share + square / 2.0) / (1.0 + square)
    half = quantile / (1.0 + square) * math.sqrt(share * (1.0 - share) / effective + square / (4.0 * effective))
    # The share lies within; rounding may say otherwise where all agree.
    return Rate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), prompts)
