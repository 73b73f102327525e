"""The paper's other claims against numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.evaluations import evaluations
from analysis.load import load_run
from analysis.measures import (
    claims_table,
    largest_fall,
    largest_gain,
    mean_gain,
    order_weights,
    samples_to,
    sensitivities,
)
from analysis.statistics import interval
from tests.analysis.made_up import config, rows, sweep, write, write_run


def test_measures_of_one_run_by_hand(tmp_path: Path) -> None:
    # Rewards 1, 3, 2, 4 at 0, 64, 128, 192 responses; gains 0, 2, 1, 3.
    run = evaluations(load_run(write_run(tmp_path, "r", config("apa", 0), rows([0, 1, 3, 2], [1, 3, 2, 4]))))
    assert mean_gain(run, 192) == pytest.approx((1 + 1.5 + 2) / 3)
    assert mean_gain(run, 96) == pytest.approx((64 * 1 + 32 * 1.75) / 96)  # at 96 the gain is 1.5
    assert samples_to(run, 1.0, 192) == 32 and samples_to(run, 2.5, 192) == pytest.approx(128 + 64 * 0.75)
    assert samples_to(run, 3.1, 192) is None and samples_to(run, 2.5, 128) is None
    assert samples_to(run, 0.0, 192) == 0
    assert largest_fall(run, 192) == 1.0 and largest_fall(run, 64) == 0.0
    assert largest_fall(run, 96) == 0.5  # by then it is half way down from 3 to 2


def test_claims_over_seeds_share_horizon_and_target(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 2, 4]))
    write(tmp_path, "apa", 1, rows([0, 3, 1], [0, 1, 2]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2, 3], [0, 1, 1, 9]))  # longer: what came later is not counted
    table = claims_table(sweep(tmp_path))
    assert table.horizon == 128
    assert table.target == pytest.approx(0.8 * 2.0)  # PPO's best by then is 1, APA's mean best 3: their median is 2
    apa, ppo = table.rows
    assert apa.mean_gain is not None and ppo.mean_gain is not None
    assert apa.mean_gain.mean == pytest.approx(((0 + 2) / 2 + (2 + 4) / 2 + (0 + 1) / 2 + (1 + 2) / 2) / 4)
    assert ppo.mean_gain.mean == pytest.approx((0.5 + 1.0) / 2)
    assert apa.samples_to_target is not None
    assert (apa.samples_to_target.minimum, apa.samples_to_target.maximum) == pytest.approx((51.2, 102.4))
    assert apa.spread is not None and apa.spread.mean == pytest.approx(math.sqrt(2.0)) and ppo.spread is None


def test_a_target_that_a_run_never_reaches(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1], [0, 4]))
    write(tmp_path, "apa", 1, rows([0, 1], [0, 0.5]))
    (row,) = claims_table(sweep(tmp_path)).rows
    assert (row.runs_at_target, row.samples_to_target) == (1, None)
    worse = tmp_path / "worse"
    write(worse, "apa", 0, rows([0, 1], [0, -1]))
    table = claims_table(sweep(worse))
    (row,) = table.rows
    assert table.target is None and row.samples_to_target is None
    assert row.mean_gain is not None and row.mean_gain.mean == -0.5


def test_stability_ends_at_the_horizon(tmp_path: Path) -> None:
    """What a longer run does after the shortest has ended is no fault of it."""
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 1, 2]))
    write(tmp_path, "apa", 1, rows([0, 1, 5], [0, 1, 4]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2, 9], [0, 2, 1, -8]))
    write(tmp_path, "ppo", 1, rows([0, 1, 2, 3], [0, 2, 3, 9]))
    _, ppo = claims_table(sweep(tmp_path)).rows
    assert ppo.largest_fall is not None and (ppo.largest_fall.minimum, ppo.largest_fall.maximum) == (0.0, 1.0)
    assert ppo.spread is not None and ppo.spread.mean == pytest.approx(math.sqrt(2.0))  # of 1 and 3


def test_what_cannot_be_negative_has_no_negative_bound(tmp_path: Path) -> None:
    for seed, (middle, kl) in enumerate([(4.0, 4.0), (4.0, 4.0), (8.0, 16.0)]):
        write(tmp_path, "apa", seed, rows([0, kl, kl], [0, middle, 4]))
    (row,) = claims_table(sweep(tmp_path)).rows
    # Falls 0, 0, 4: mean 4 / 3, half width 4.303 * 2.309 / sqrt 3 = 5.74.
    one = row.largest_fall
    assert one is not None and one.low == 0.0 and one.high is not None and one.high > one.mean


def test_a_setting_without_samples_has_no_measures_and_spoils_none(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 2, 4]))
    lacking = [{key: value for key, value in row.items() if key != "samples"} for row in rows([0, 1], [0, 9])]
    write(tmp_path, "ppo", 0, lacking)
    table = claims_table(sweep(tmp_path))
    apa, ppo = table.rows
    assert table.horizon == 128 and table.target == pytest.approx(3.2) and apa.mean_gain is not None
    assert (ppo.mean_gain, ppo.largest_fall, ppo.spread) == (None, None, None)


def test_a_dead_setting_does_not_lower_the_target(tmp_path: Path) -> None:
    for lam, best in ((0.1, 4.0), (1.0, 0.01)):
        write(tmp_path, "apa", 0, rows([0, 1], [0, best]), algo__lam=lam)
    write(tmp_path, "awr", 0, rows([0, 1], [0, 3.0]))
    write(tmp_path, "ppo", 0, rows([0, 1], [0, -1.0]))
    assert claims_table(sweep(tmp_path)).target == pytest.approx(0.8 * 3.0)  # of 4, 3 and 0


def test_the_largest_gain_is_chosen_on_one_half_and_scored_on_the_other(tmp_path: Path) -> None:
    """Even prompts are best at the second evaluation, odd ones at the third: 1 and 0 there by the other half."""
    made = rows([0, 1, 2], [0, 4, 0], odd=[0, 1, 3])
    run = evaluations(load_run(write_run(tmp_path, "r", config("apa", 0), made)))
    assert largest_gain(run, 128) == 0.5 and largest_gain(run, 64) == (1 + 4) / 2


def test_measures_of_a_bounded_size_stay_within(tmp_path: Path) -> None:
    """Responses to the target 64, 64, 160 and 192 of 192: Student's interval goes to 230."""
    for seed, made in enumerate(([0, 5, 5, 5], [0, 5, 5, 5], [0, 0, 3, 5], [0, 0, 0, 5])):
        write(tmp_path, "apa", seed, rows([0, 1, 2, 3], made))
    (row,) = claims_table(sweep(tmp_path)).rows
    to_target = row.samples_to_target
    assert to_target is not None and to_target.high == 192.0 and to_target.low is not None and to_target.low > 0.0


def test_weights_of_all_subsets_by_hand() -> None:
    # Of 1, 2, 3 the pairs are (1, 2), (1, 3) and (2, 3).
    assert order_weights(3, 2) @ [1.0, 2.0, 3.0] == pytest.approx([8 / 3, 2.0, 4 / 3])
    assert (order_weights(3, 3) @ [1.0, 2.0, 3.0]).tolist() == [3.0, 2.0, 1.0]
    best, median, worst = order_weights(30, 10) @ np.arange(30.0)  # 30 over 10 are 30 million
    # Of 10 of 1 .. 30 the largest is 10 * 31 / 11 to be expected, the smallest 31 / 11.
    assert (best, worst) == pytest.approx((310 / 11 - 1, 31 / 11 - 1))
    assert median == pytest.approx(14.5, abs=0.3) and (order_weights(30, 10) @ np.arange(30.0))[1] == median


def test_sensitivity_has_an_equal_budget(tmp_path: Path) -> None:
    for index, reward in enumerate((2.0, 6.0, 4.0)):
        write(tmp_path, "apa", 0, rows([0, 4], [0, reward]), algo__lam=0.1 * (index + 1))
    for index, reward in enumerate((2.0, 4.0)):
        write(tmp_path, "ppo", 0, rows([0, 4], [0, reward]), algo__lam=0.1 * (index + 1))
    write(tmp_path, "awr", 0, rows([0, 4], [0, 1.0]))
    apa, ppo = sensitivities(sweep(tmp_path))
    # E(4) of a straight line to `reward` at 4 nats is half of it.
    assert (apa.algo, apa.settings, apa.tried, apa.failed) == ("apa", 2, 3, 0)
    assert (apa.best.mean, apa.median.mean, apa.worst.mean) == pytest.approx((8 / 3, 2.0, 4 / 3))
    assert (ppo.algo, ppo.settings, ppo.best.mean, ppo.median.mean, ppo.worst.mean) == ("ppo", 2, 2.0, 1.5, 1.0)
    assert (apa.best.low, apa.best.seeds) == (None, 1)


def test_sensitivity_has_an_interval_over_the_seeds_of_all_settings(tmp_path: Path) -> None:
    """KL efficiencies by seed 1, 2, 3 and 3, 5, 4; the third setting failed: of each two the best is worth
    (2 * better + worse) / 3, by seed 7 / 3, 4, 11 / 3."""
    for index, rewards in enumerate(((2.0, 4.0, 6.0), (6.0, 10.0, 8.0))):
        for seed, reward in enumerate(rewards):
            write(tmp_path, "apa", seed, rows([0, 4], [0, reward]), algo__lam=0.1 * (index + 1))
            write(tmp_path, "ppo", seed, rows([0, 4], [0, reward]), algo__lam=0.1 * (index + 1))
    write_run(tmp_path, "lost", config("apa", 0, algo__lam=0.3), rows([0], [0]), status="failed")
    write(tmp_path, "ppo", 3, rows([0, 4], [0, 100.0]), algo__lam=0.1)  # the other setting has no such seed
    apa, ppo = sensitivities(sweep(tmp_path))
    expected = interval([7 / 3, 4.0, 11 / 3])
    assert (apa.settings, apa.best.seeds, ppo.best.seeds) == (2, 3, 3)
    assert (apa.best.mean, apa.best.low, apa.best.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (ppo.best.mean, ppo.worst.mean) == (4.0, 2.0)


def test_settings_without_a_result_count_as_tried(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 4], [0, 6.0]), algo__lam=0.1)
    for lam, status in ((0.2, "failed"), (0.3, "interrupted"), (0.1, "failed")):
        write_run(tmp_path, f"apa-{lam}-{status}", config("apa", 1, algo__lam=lam), rows([0], [0]), status=status)
    (apa,) = sensitivities(sweep(tmp_path))
    # 0.1 has a result by another seed, 0.3 may still get one; the failed one leaves the initial policy.
    assert (apa.tried, apa.failed) == (2, 1)
    assert (apa.best.mean, apa.median.mean, apa.worst.mean) == (3.0, 1.5, 0.0)
