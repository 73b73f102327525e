"""Intervals over seeds against numbers from tables and a second implementation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from analysis.statistics import interval, iqm_interval, spread_interval, versus


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.6]])
def test_fewer_than_three_seeds_have_no_interval(values: list[float]) -> None:
    result = interval(values)
    assert (result.low, result.high, result.method) == (None, None, "none")
    assert (result.minimum, result.maximum, result.seeds) == (0.4, max(values), len(values))


def test_student_t_by_hand() -> None:
    # Mean 2, s = 1, t_{0.975, 2} = 4.302653 (any table): half width 4.302653 / sqrt 3 = 2.484138.
    three = interval([1.0, 2.0, 3.0])
    assert three.method == "student_t"
    assert (three.mean, three.low, three.high) == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-6)
    # 1..9: mean 5, s^2 = 60 / 8 = 7.5, t_{0.975, 8} = 2.306004: half width 2.306004 * sqrt(7.5 / 9) = 2.105084.
    nine = interval([float(value) for value in range(1, 10)])
    assert (nine.low, nine.high) == pytest.approx((5 - 2.105084, 5 + 2.105084), abs=1e-5)
    # 90 %: t_{0.95, 2} = 2.919986, over sqrt 3 = 1.685854.
    assert interval([1.0, 2.0, 3.0], level=0.9).high == pytest.approx(3.685854, abs=1e-6)


def test_bca_from_ten_seeds_agrees_with_its_formula() -> None:
    # Efron 1987 written out: bias from the share of resampled means below the mean, acceleration from the jackknife.
    # Hesterberg 2015: sqrt(10 / 9) t_{0.975, 9} = 1.054093 * 2.262157 in place of the normal 1.96.
    sample = np.array([0.1, 0.2, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.2])  # skewed: a plain percentile would differ
    means = sample[np.random.default_rng(7).integers(0, 10, size=(200_000, 10))].mean(axis=1)
    normal = NormalDist()
    bias = normal.inv_cdf(((means < sample.mean()).mean() + (means <= sample.mean()).mean()) / 2)
    left_out = (sample.sum() - sample) / 9
    deviations = left_out.mean() - left_out
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)

    def quantile(reach: float) -> float:
        z = bias + reach
        return float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))

    result = interval(sample.tolist())
    assert result.method == "bca"
    reach = 1.054093 * 2.262157
    assert result.low == pytest.approx(quantile(-reach), abs=0.02)
    assert result.high == pytest.approx(quantile(reach), abs=0.02)
    assert quantile(reach) - np.quantile(means, 0.975) > 0.05  # the correction is not idle here
    assert interval(sample.tolist()) == result  # a report can be remade


def test_equal_values_have_no_interval() -> None:
    """One of no width would claim certainty."""
    for count in (4, 12):
        for same in (interval([0.5] * count), iqm_interval([0.5] * 12), spread_interval([0.5] * count)):
            assert same is not None and (same.low, same.high, same.method) == (None, None, "none")
    against = versus([1.0] * 3, [0.5] * 3)
    assert (against.difference, against.low, against.high, against.better) == (0.5, None, None, None)
    assert against.probability == 1.0 and against.probability_ends is not None


def test_bca_of_normal_values_is_close_to_student_t() -> None:
    sample = np.random.default_rng(3).normal(size=40)
    half_width = 2.0227 * sample.std(ddof=1) / math.sqrt(40)  # t_{0.975, 39} = 2.0227
    result = interval(sample.tolist())
    assert result.low == pytest.approx(sample.mean() - half_width, abs=0.05)
    assert result.high == pytest.approx(sample.mean() + half_width, abs=0.05)


def test_iqm_leaves_a_quarter_out_at_each_end() -> None:
    assert iqm_interval([1.0] * 7) is None
    eight = iqm_interval([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0])
    assert eight is not None
    assert (eight.mean, eight.low) == (3.5, None)  # of 2, 3, 4, 5; the interval begins at ten
    ten = iqm_interval([float(value) for value in range(10)])
    assert ten is not None and ten.low is not None and ten.high is not None
    assert ten.mean == 4.5 and ten.low < 4.5 < ten.high
    assert 4.5 - ten.low == pytest.approx(ten.high - 4.5, abs=0.5)


def test_spread_by_hand() -> None:
    assert spread_interval([1.0]) is None
    two = spread_interval([1.0, 3.0])
    assert two is not None and two.low is None and two.mean == pytest.approx(math.sqrt(2.0))
    # s = 1, n = 3: chi^2_2 has the quantiles 0.0506356 and 7.377759, so sqrt(2 / 7.377759) and sqrt(2 / 0.0506356).
    three = spread_interval([1.0, 2.0, 3.0])
    assert three is not None
    assert (three.mean, three.low, three.high) == pytest.approx((1.0, 0.520660, 6.284702), abs=1e-4)


def test_versus_by_hand() -> None:
    # Means 3 and 1, variances 1 and 1, three each: error sqrt(2 / 3), Welch's freedom 4, t = 2.776445.
    result = versus([2.0, 3.0, 4.0], [0.0, 1.0, 2.0])
    half = 2.776445 * math.sqrt(2.0 / 3.0)
    assert result.difference == pytest.approx(2.0)
    assert (result.low, result.high) == pytest.approx((2.0 - half, 2.0 + half), abs=1e-5)
    # 8 of 9 pairs are won and one is a tie.
    assert result.probability == pytest.approx(8.5 / 9.0)
    # One-sided p of t = 2.44949 with 4 degrees of freedom: 0.03524.
    assert result.better == pytest.approx(1.0 - 0.03524, abs=1e-4)


def test_newcombes_interval_solves_its_equation() -> None:
    """Also where every run of one beats every run of the other, of which a bootstrap would say [1, 1]."""
    for a, b in (([2.0, 3.0, 5.0], [1.0, 2.5, 4.0, 0.5]), ([5.0, 6.0, 7.0], [1.0, 2.0, 3.0])):
        result = versus(a, b)
        m, n, p = len(a), len(b), result.probability
        more = (m + n) / 2 - 1
        assert result.probability_ends is not None
        for end in result.probability_ends:
            variance = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end))) / (m * n)
            assert abs(p - end) == pytest.approx(1.959964 * math.sqrt(variance), abs=1e-6)
    assert result.probability == 1.0 and result.probability_ends is not None
    assert 0.3 < result.probability_ends[0] < 0.7 and result.probability_ends[1] == 1.0


def test_versus_of_few_or_equal_seeds() -> None:
    few = versus([1.0, 2.0], [0.0, 3.0, 1.0])
    assert (few.low, few.probability_ends, few.better) == (None, None, None) and few.probability == pytest.approx(
        0.5833, abs=1e-4
    )
    same = versus([1.0] * 3, [1.0] * 3)
    assert (same.difference, same.probability, same.better) == (0.0, 0.5, None)


def test_bca_corrects_for_bias() -> None:
    """The mean of eleven small values and a large one lies above the middle of its resampled ones."""
    sample = np.append(np.linspace(0.0, 1.0, 11) ** 2, 3.0)
    means = sample[np.random.default_rng(5).integers(0, 12, size=(200_000, 12))].mean(axis=1)
    normal = NormalDist()
    bias = normal.inv_cdf(((means < sample.mean()).mean() + (means <= sample.mean()).mean()) / 2)
    deviations = sample - sample.mean()  # proportional to the jackknife's
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    reach = math.sqrt(12 / 11) * 2.200985  # t_{0.975, 11}

    def high(bias: float) -> float:
        z = bias + reach
        return float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))

    result = interval(sample.tolist())
    assert bias > 0.05 and result.high == pytest.approx(high(bias), rel=0.02)
    assert high(bias) > 1.05 * high(0.0)


def test_no_interval_where_the_resampled_statistic_has_no_spread() -> None:
    """One seed in twenty flew off: the interquartile mean hardly ever sees it, and is not certain for that."""
    one = iqm_interval([0.0] * 19 + [1.0])
    assert one is not None and (one.mean, one.low, one.high, one.method) == (0.0, None, None, "none")
    even = iqm_interval([0.0] * 6 + [1.0] * 6)
    assert even is not None and even.low is not None and even.high is not None and even.low < 0.5 < even.high


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    for call in (interval, iqm_interval, spread_interval):
        with pytest.raises(ValueError, match=f"not finite: {value} at place 1"):
            call([1.0, value, 2.0])
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
def test_intervals_cover_what_they_say(seeds: int) -> None:
    """1,000 repetitions with normal values; 95 % stated. `python -m tests.benchmarks.coverage` prints the table."""
    from tests.benchmarks.coverage import coverage

    assert coverage("normal", seeds)["mean"] == pytest.approx(0.95, abs=0.02)
