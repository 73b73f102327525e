"""Intervals over seeds against numbers from tables and a second implementation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from analysis.statistics import interval


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
    sample = np.array([0.1, 0.2, 0.2, 0.3, 0.35, 0.4, 0.5, 0.8, 1.5, 3.0])  # skewed: a plain percentile would differ
    means = sample[np.random.default_rng(7).integers(0, 10, size=(200_000, 10))].mean(axis=1)
    normal = NormalDist()
    bias = normal.inv_cdf(((means < sample.mean()).mean() + (means <= sample.mean()).mean()) / 2)
    left_out = (sample.sum() - sample) / 9
    deviations = left_out.mean() - left_out
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)

    def quantile(level: float) -> float:
        z = bias + normal.inv_cdf(level)
        return float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))

    result = interval(sample.tolist())
    assert result.method == "bca"
    assert result.low == pytest.approx(quantile(0.025), abs=0.02)
    assert result.high == pytest.approx(quantile(0.975), abs=0.06)
    assert quantile(0.975) - np.quantile(means, 0.975) > 0.15  # the correction is not idle here
    assert interval(sample.tolist()) == result  # a report can be remade


def test_equal_values_give_an_interval_of_no_width() -> None:
    same = interval([0.5] * 12)
    assert (same.low, same.high) == (0.5, 0.5)
    assert interval([0.5] * 4).high == 0.5


def test_bca_of_normal_values_is_close_to_student_t() -> None:
    sample = np.random.default_rng(3).normal(size=40)
    half_width = 2.0227 * sample.std(ddof=1) / math.sqrt(40)  # t_{0.975, 39} = 2.0227
    result = interval(sample.tolist())
    assert result.low == pytest.approx(sample.mean() - half_width, abs=0.05)
    assert result.high == pytest.approx(sample.mean() + half_width, abs=0.05)
