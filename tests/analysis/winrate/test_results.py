"""Hand-worked totals, the habits of a judge, and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.winrate.matching import Comparison
from analysis.winrate.prompt import Asked, Reply, Verdict
from analysis.winrate.results import Judgement, Rate, seeds_rate, share_rate, summarise

SAID = [Reply("", "judge", "stop", 1, 1)]


def judged(forward: Verdict | None, backward: Verdict | None, prompt: str = "p", seed: int = 0) -> Judgement:
    comparison = Comparison("apa", "ppo", seed, prompt, "r", "x", "y", {}, {})
    return Judgement(comparison, Asked(forward, SAID), Asked(backward, SAID))


def mean_rate(scores: list[float]) -> Rate:
    return share_rate(scores, [1.0] * len(scores))


def width(rate: Rate) -> float:
    assert rate.low is not None and rate.high is not None
    return rate.high - rate.low


@pytest.mark.parametrize(
    ("forward", "backward", "score", "outcome"),
    [
        ("A", "B", 1.0, "win"),
        ("A", "TIE", 0.75, "win"),
        ("TIE", "TIE", 0.5, "tie"),
        ("A", "A", 0.5, "inconsistent"),
        ("B", "TIE", 0.25, "loss"),
        ("B", "A", 0.0, "loss"),
        ("A", None, None, "unparsed"),
    ],
)
def test_two_orders_make_one_outcome(
    forward: Verdict, backward: Verdict | None, score: float | None, outcome: str
) -> None:
    assert (judged(forward, backward).score, judged(forward, backward).outcome) == (score, outcome)


def test_totals_by_hand() -> None:
    """p: a win (1) with seed 0 and a tie (0.5) with seed 1, mean 0.75; q: a loss, 0; r: inconsistent, 0.5; s: unparsed.
    Win rate (0.75 + 0 + 0.5) / 3. First place among decisive verdicts: p 1 of 2, q 1 of 2, r 2 of 2, s 1 of 1.
    Orders agree: p twice, q once, of 4 with two verdicts."""
    judgements = [judged("A", "B"), judged("TIE", "TIE", seed=1), judged("B", "A", "q")]
    pairs, habits = summarise([*judgements, judged("A", "A", "r"), judged("A", None, "s")])
    (pair,) = pairs.itertuples()
    assert (pair.wins, pair.ties, pair.losses, pair.inconsistent, pair.unparsed) == (1, 1, 1, 1, 1)
    assert (pair.comparisons, pair.prompts, pair.win_rate) == (5, 3, pytest.approx(1.25 / 3))
    assert habits["position_bias"] is not None and habits["position_bias"].value == pytest.approx(5 / 7)
    assert habits["agreement"] is not None and habits["agreement"].value == pytest.approx(3 / 4)


def test_no_verdict_at_all_is_no_rate() -> None:
    pairs, habits = summarise([judged(None, None)])
    assert pairs["win_rate"].isna().all() and list(pairs["unparsed"]) == [1]
    assert habits == {"position_bias": None, "agreement": None}


def test_seeds_of_a_prompt_that_say_the_same_do_not_narrow_the_interval() -> None:
    made = {seeds: {(f"p{i}", s): float(i % 3 > 0) for i in range(12) for s in range(seeds)} for seeds in (1, 10)}
    assert seeds_rate(made[1]) == seeds_rate(made[10])


def test_seeds_that_differ_widen_the_interval() -> None:
    """Of 12 prompts seed 0 wins all, seed 1 half, seed 2 none: with other seeds it might be anything."""
    scores = {(f"p{i}", seed): float(i < count) for seed, count in enumerate((12, 6, 0)) for i in range(12)}
    three, two = seeds_rate(scores), seeds_rate({key: value for key, value in scores.items() if key[1] < 2})
    prompts = mean_rate([2 / 3] * 6 + [1 / 3] * 6)
    assert three.value == pytest.approx(prompts.value) and width(three) > 1.5 * width(prompts)
    assert two == mean_rate([1.0] * 6 + [0.5] * 6)  # of two seeds there is no telling


def test_interval_covers_the_truth_for_other_prompts_and_seeds() -> None:
    """At least 92 % of 300 made-up evaluations of 16 prompts; the standard error of such a share is 1.3 %."""
    random = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        chance = 0.5 + 0.15 * random.normal(size=(16, 1)) + 0.1 * random.normal(size=(1, 3))
        won = random.random((16, 3)) < chance
        rate = seeds_rate({(f"p{i}", j): float(won[i, j]) for i in range(16) for j in range(3)})
        assert rate.low is not None and rate.high is not None
        covered.append(rate.low <= 0.5 <= rate.high)
    assert np.mean(covered) >= 0.92


@pytest.mark.parametrize("weights", [[0.25, 0.1, 0.3, 0.1, 0.25], [0.05, 0.02, 0.08, 0.1, 0.75], [0.1, 0, 0, 0, 0.9]])
def test_interval_covers_the_truth(weights: list[float]) -> None:
    """At least 92 % of 1000 made-up sets of 16 prompts; the standard error of such a share is 0.7 %."""
    scores = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    truth, random = float(scores @ weights), np.random.default_rng(0)
    rates = [mean_rate(random.choice(scores, 16, p=weights).tolist()) for _ in range(1000)]
    covered = [rate.low <= truth <= rate.high for rate in rates if rate.low is not None and rate.high is not None]
    assert len(covered) == 1000 and np.mean(covered) >= 0.92


def test_for_yes_or_no_it_is_wilsons_interval_near_enough() -> None:
    """Against scipy's at n = 400: Student's quantile and n - 1 for n differ from it by less than 0.001."""
    rate = mean_rate([1.0] * 280 + [0.0] * 120)
    wilson = stats.binomtest(280, 400).proportion_ci(method="wilson")
    assert (rate.low, rate.high) == pytest.approx((wilson.low, wilson.high), abs=1e-3)


def test_ends_solve_their_equation() -> None:
    """|share - p| = t sqrt(p (1 - p) / effective): scores 1, 1, 0.5, 0 of mean 0.625 and variance of the mean
    (2 * 0.375^2 + 0.125^2 + 0.625^2) / (4 * 3) = 0.0573; effective 0.625 * 0.375 / 0.0573 = 4.0909; t_3 = 3.1824."""
    rate = mean_rate([1.0, 1.0, 0.5, 0.0])
    assert rate.value == 0.625 and rate.low is not None and rate.high is not None
    for end in (rate.low, rate.high):
        assert abs(0.625 - end) == pytest.approx(3.18245 * math.sqrt(end * (1 - end) / 4.0909), rel=1e-4)


def test_prompts_that_all_agree_still_leave_doubt() -> None:
    """And a judge without position bias at any of 16 prompts has the interval of one with a single slip."""
    for score in (0.0, 0.5, 1.0):
        rate = mean_rate([score] * 16)
        assert rate.value == score and width(rate) > 0.12
        assert 0.0 <= (rate.low or 0.0) <= score <= (rate.high or 0.0) <= 1.0
    assert mean_rate([1.0] * 2).low is None
    consistent, slipped = share_rate([1] * 16, [2] * 16), share_rate([1] * 15 + [2], [2] * 16)
    assert width(consistent) == pytest.approx(width(slipped), rel=0.05) and 0.1 < width(consistent) < 0.2


def test_a_share_weighs_prompts_by_their_cases() -> None:
    assert share_rate([1, 2, 0], [1, 4, 1]).value == 0.5
