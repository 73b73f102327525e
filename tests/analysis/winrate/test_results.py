"""Hand-worked totals, the habits of a judge, and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.winrate.intervals import mean_rate, seeds_rate, share_rate
from analysis.winrate.prompt import Reply, Verdict
from analysis.winrate.results import Asked, Judgement, summarise
from tests.analysis.winrate.made_up import compare

SAID = (Reply("", "judge", "stop", 1, 1),)


def judged(forward: Verdict | None, backward: Verdict | None, prompt: str = "p", seed: int = 0) -> Judgement:
    return Judgement(compare("x", "y", prompt, seed=seed), Asked(forward, SAID), Asked(backward, SAID))


@pytest.mark.parametrize(
    ("forward", "backward", "score", "outcome", "agree"),
    [
        ("A", "B", 1.0, "win", True),
        ("A", "TIE", 0.75, "win", False),
        ("TIE", "B", 0.75, "win", False),
        ("TIE", "TIE", 0.5, "tie", True),
        ("A", "A", 0.5, "inconsistent", False),
        ("B", "B", 0.5, "inconsistent", False),
        ("B", "TIE", 0.25, "loss", False),
        ("B", "A", 0.0, "loss", True),
        ("A", None, None, "unparsed", False),
        (None, None, None, "unparsed", False),
    ],
)
def test_two_orders_make_one_outcome(
    forward: Verdict | None, backward: Verdict | None, score: float | None, outcome: str, agree: bool
) -> None:
    judgement = judged(forward, backward)
    assert (judgement.score, judgement.outcome, judgement.orders_agree) == (score, outcome, agree)


def test_totals_by_hand() -> None:
    """p: a win (1) with seed 0 and a tie (0.5) with seed 1, mean 0.75; q: a loss, 0; r: inconsistent, 0.5; s: unparsed.
    Win rate (0.75 + 0 + 0.5) / 3. First place among decisive verdicts: p 1 of 2, q 1 of 2, r 2 of 2, s 1 of 1.
    Orders agree: p twice, q once, of 4 with two verdicts."""
    results = summarise(
        [
            judged("A", "B", "p"),
            judged("TIE", "TIE", "p", seed=1),
            judged("B", "A", "q"),
            judged("A", "A", "r"),
            judged("A", None, "s"),
        ]
    )
    (pair,) = results.pairs
    assert (pair.wins, pair.ties, pair.losses, pair.inconsistent, pair.unparsed) == (1, 1, 1, 1, 1)
    assert (pair.comparisons, pair.prompts) == (5, 3)
    assert pair.win_rate is not None and pair.win_rate.value == pytest.approx(1.25 / 3)
    assert results.position_bias is not None and results.position_bias.value == pytest.approx(5 / 7)
    assert results.agreement is not None and results.agreement.value == pytest.approx(3 / 4)


def test_no_verdict_at_all_is_no_rate() -> None:
    (pair,) = summarise([judged(None, None)]).pairs
    assert (pair.win_rate, pair.position_bias, pair.agreement, pair.unparsed) == (None, None, None, 1)


def test_seeds_of_a_prompt_do_not_narrow_the_interval() -> None:
    """Ten seeds that all say the same of a prompt tell no more than one."""
    prompts = [(f"p{i}", "A" if i % 3 else "B") for i in range(12)]

    def rate(seeds: int):
        made = [judged(v, "B" if v == "A" else "A", p, seed=s) for p, v in prompts for s in range(seeds)]
        return summarise(made).pairs[0].win_rate

    assert rate(1) == rate(10)


def test_seeds_that_differ_widen_the_interval() -> None:
    """Of 12 prompts seed 0 wins all, seed 1 half, seed 2 none: with other seeds it might be anything."""
    won = {0: 12, 1: 6, 2: 0}
    scores = {(f"p{i}", seed): float(i < count) for seed, count in won.items() for i in range(12)}
    three, two = seeds_rate(scores), seeds_rate({key: value for key, value in scores.items() if key[1] < 2})
    prompts = mean_rate([2 / 3] * 6 + [1 / 3] * 6)
    assert three.low is not None and three.high is not None and prompts.low is not None and prompts.high is not None
    assert three.value == pytest.approx(prompts.value) and three.high - three.low > 1.5 * (prompts.high - prompts.low)
    assert two == mean_rate([1.0] * 6 + [0.5] * 6)  # of two seeds there is no telling


@pytest.mark.parametrize("seeds", [3, 10])
def test_interval_covers_the_truth_for_other_prompts_and_seeds(seeds: int) -> None:
    """At least 92 % of 500 made-up evaluations of 16 prompts; the standard error of such a share is 1 %."""
    random = np.random.default_rng(seeds)
    covered = []
    for _ in range(500):
        chance = 0.5 + 0.15 * random.normal(size=(16, 1)) + 0.1 * random.normal(size=(1, seeds))
        scores = (random.random((16, seeds)) < chance).astype(float)
        rate = seeds_rate({(f"p{i}", j): float(scores[i, j]) for i in range(16) for j in range(seeds)})
        assert rate.low is not None and rate.high is not None
        covered.append(rate.low <= 0.5 <= rate.high)
    assert np.mean(covered) >= 0.92


def test_for_yes_or_no_it_is_wilsons_interval_near_enough() -> None:
    """Against scipy's at n = 400: Student's quantile and n - 1 for n differ from it by less than 0.001."""
    rate = mean_rate([1.0] * 280 + [0.0] * 120)
    wilson = stats.binomtest(280, 400).proportion_ci(method="wilson")
    assert rate.low == pytest.approx(wilson.low, abs=1e-3) and rate.high == pytest.approx(wilson.high, abs=1e-3)


def test_ends_solve_their_equation() -> None:
    """|share - p| = t sqrt(p (1 - p) / effective): scores 1, 1, 0.5, 0 of mean 0.625 and variance of the mean
    (2 * 0.375^2 + 0.125^2 + 0.625^2) / (4 * 3) = 0.0573; effective 0.625 * 0.375 / 0.0573 = 4.0909; t_3 = 3.1824."""
    rate = mean_rate([1.0, 1.0, 0.5, 0.0])
    assert rate.value == 0.625 and rate.low is not None and rate.high is not None
    for end in (rate.low, rate.high):
        assert abs(0.625 - end) == pytest.approx(3.18245 * math.sqrt(end * (1 - end) / 4.0909), rel=1e-4)


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_prompts_that_all_agree_still_leave_doubt(score: float) -> None:
    rate = mean_rate([score] * 16)
    assert rate.value == score and rate.low is not None and rate.high is not None
    assert 0.0 <= rate.low <= score <= rate.high <= 1.0 and rate.high - rate.low > 0.12
    assert mean_rate([score] * 2).low is None


def test_a_consistent_judge_has_the_interval_of_one_with_a_single_slip() -> None:
    """Position bias: one of two verdicts for the first place at each of 16 prompts, or at all but one."""
    consistent, slipped = share_rate([1] * 16, [2] * 16), share_rate([1] * 15 + [2], [2] * 16)
    widths = [rate.high - rate.low for rate in (consistent, slipped) if rate.high is not None and rate.low is not None]
    assert len(widths) == 2 and widths[0] == pytest.approx(widths[1], rel=0.05) and 0.1 < widths[0] < 0.2


@pytest.mark.parametrize("weights", [[0.25, 0.1, 0.3, 0.1, 0.25], [0.05, 0.02, 0.08, 0.1, 0.75], [0.1, 0, 0, 0, 0.9]])
def test_interval_covers_the_truth(weights: list[float]) -> None:
    """At least 92 % of 1000 made-up sets of 16 prompts; the standard error of such a share is 0.7 %."""
    scores = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    truth, random = float(scores @ weights), np.random.default_rng(0)
    rates = [mean_rate(random.choice(scores, 16, p=weights).tolist()) for _ in range(1000)]
    covered = [rate.low <= truth <= rate.high for rate in rates if rate.low is not None and rate.high is not None]
    assert len(covered) == 1000 and np.mean(covered) >= 0.92


def test_a_share_weighs_prompts_by_their_cases() -> None:
    assert share_rate([1, 2, 0], [1, 4, 1]).value == 0.5
