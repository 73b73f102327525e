"""Ablations and the fits of over-optimisation against numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.ablation import ABLATION_QUANTITIES, ablations
from analysis.findings import findings
from analysis.overoptimization import gold_fit
from tests.analysis.made_up import rows, sweep, write

# --- over-optimisation -----------------------------------------------------------------------------------------------


def test_gold_fit_finds_the_coefficients_it_was_made_of(tmp_path: Path) -> None:
    kl = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    d = np.sqrt(kl)
    for seed, (alpha, beta) in enumerate([(1.0, 0.5), (1.2, 0.7), (0.8, 0.3)]):
        gold = 3.0 + d * (alpha - beta * np.log(np.where(d > 0, d, 1.0)))
        write(tmp_path, "apa", seed, rows(kl.tolist(), d.tolist(), gold=gold.tolist()))
    (fit,) = [gold_fit(setting) for setting in sweep(tmp_path).settings]
    assert fit is not None
    assert (fit.alpha.minimum, fit.alpha.maximum) == pytest.approx((0.8, 1.2))
    assert (fit.alpha.mean, fit.beta.mean) == pytest.approx((1.0, 0.5))
    # Without one seed the line is the mean of the other two: beta's pseudo-values are 0.5, 0.7 and 0.3, as the seeds.
    assert (fit.beta.low, fit.beta.high) == pytest.approx((0.5 - 0.496828, 0.5 + 0.496828), abs=1e-5)
    assert fit.gain(np.array([0.0, 1.0])) == pytest.approx([0.0, 1.0])
    # d (1 - log d / 2) is highest where log d = 1, at d^2 = e^2 = 7.39.
    assert fit.peak_kl == pytest.approx(math.exp(2.0), rel=1e-6) and fit.trend == "peaks"
    # About their mean, not about 0: of the middle line's gains and the deviations 0.2 d (1 - log d) of the other two.
    assert fit.explained == pytest.approx(1.0 - _left(d[1:]) / _total(d[1:]), rel=1e-9)


def _left(d: np.ndarray) -> float:
    return float(2.0 * ((0.2 * d * (1.0 - np.log(d))) ** 2).sum())


def _total(d: np.ndarray) -> float:
    gains = np.concatenate([d * (a - b * np.log(d)) for a, b in ((1.0, 0.5), (1.2, 0.7), (0.8, 0.3))])
    return float(((gains - gains.mean()) ** 2).sum())


def test_a_bend_within_the_differences_of_seeds_is_not_decided(tmp_path: Path) -> None:
    """Betas of 0.3 around 0.05: the line's own peak lies within reach, and says nothing. Nor does a single seed's."""
    kl = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    d = np.sqrt(kl)
    for seed, beta in enumerate((-0.25, 0.05, 0.35)):
        gold = d * (0.1 - beta * np.log(np.where(d > 0, d, 1.0)))
        write(tmp_path, "apa", seed, rows(kl.tolist(), d.tolist(), gold=gold.tolist()))
    write(tmp_path, "ppo", 0, rows(kl.tolist(), d.tolist(), gold=gold.tolist()))
    several, single = map(gold_fit, sweep(tmp_path).settings)
    assert several is not None and several.beta.mean == pytest.approx(0.05)
    assert (several.trend, several.peak_kl) == ("undecided", None)
    assert single is not None and (single.trend, single.beta.low) == ("undecided", None)


def test_no_gold_fit_of_nothing(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 1, 2]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2], [0, 1, 2], gold=[0, 1, 2]))  # two points
    write(tmp_path, "awr", 0, rows([0, 1, 1, 1, 1], [0, 1, 2, 2, 2], gold=[0, 1, 2, 1, 2]))  # one KL
    assert findings(sweep(tmp_path)).gold_fits == []


@pytest.mark.parametrize(
    ("alpha", "beta", "trend"),
    [
        (1.0, 0.5, "peaks"),  # at d = e, 7.4 nats
        (1.0, 0.3, "peaks beyond reach"),  # at d = exp(7 / 3), 106 nats
        (1.0, -0.1, "rises"),
        (0.0, 1.5, "falls"),  # highest at d = 1 / e, below the first evaluation
        (-1.0, -0.1, "falls"),  # it turns at exp(9)
    ],
)
def test_trend_of_the_fitted_line(tmp_path: Path, alpha: float, beta: float, trend: str) -> None:
    kl = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    d = np.sqrt(kl)
    for seed, more in enumerate((-0.01, 0.0, 0.01)):
        gold = d * (alpha + more - (beta + more) * np.log(np.where(d > 0, d, 1.0)))
        write(tmp_path, "apa", seed, rows(kl.tolist(), d.tolist(), gold=gold.tolist()))
    fit = gold_fit(sweep(tmp_path).settings[0])
    assert fit is not None and fit.trend == trend and (fit.peak_kl is not None) == (trend == "peaks")


# --- ablations -------------------------------------------------------------------------------------------------------


def test_an_ablation_of_one_number(tmp_path: Path) -> None:
    for lam, end in ((1.0, 1.0), (0.1, 3.0)):
        for seed in (0, 1):
            write(tmp_path, "apa", seed, rows([0, end], [0, end + seed]), algo__lam=lam)
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 1]))
    (found,) = ablations(sweep(tmp_path))
    assert (found.algo, found.key, found.is_log) == ("apa", "algo.lam", True)
    assert [point.value for point in found.points] == [0.1, 1.0]
    # Within 1 nat, which every run reached: the gain is (end + seed) / sqrt(end) at sqrt(KL) = 1, E half of it.
    sizes = [ABLATION_QUANTITIES["KL efficiency"](point).mean for point in found.points]
    assert sizes == pytest.approx([3.5 / math.sqrt(3.0) / 2, 1.5 / 2])


def test_no_ablation_of_two_settings_or_of_words(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1], [0, 1]), algo__lam=1.0, optimization__learning_rate=1.0)
    write(tmp_path, "apa", 0, rows([0, 1], [0, 1]), algo__lam=2.0, optimization__learning_rate=2.0)
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 1]), model__name="a")
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 1]), model__name="b")
    assert ablations(sweep(tmp_path)) == []


def test_no_point_at_a_value_that_is_not_finite(tmp_path: Path) -> None:
    for lam in (0.1, 1.0, math.inf):
        write(tmp_path, "apa", 0, rows([0, 1], [0, 1]), algo__lam=lam)
    for lam in (0.1, math.nan):
        write(tmp_path, "ppo", 0, rows([0, 1], [0, 1]), algo__lam=lam)
    (found,) = ablations(sweep(tmp_path))
    assert (found.algo, [point.value for point in found.points]) == ("apa", [0.1, 1.0])
