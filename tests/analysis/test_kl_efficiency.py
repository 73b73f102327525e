"""The frontier and E(K) against hand-worked numbers and against an independent brute-force integration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.kl_efficiency import GainCurve


def halves(kl: np.ndarray, even: np.ndarray, odd: np.ndarray) -> GainCurve:
    return GainCurve(kl, np.stack([even - even[0], odd - odd[0]], axis=1))


def same_halves(kl: list[float], reward: list[float]) -> GainCurve:
    return halves(np.array(kl), np.array(reward), np.array(reward))


def efficiency(curve: GainCurve, budget: float) -> float:
    parts = curve.efficiency(budget)
    assert parts is not None
    return float(parts.mean())


def gain(curve: GainCurve, kl: float) -> float:
    parts = curve.gain(kl)
    assert parts is not None
    return float(parts.mean())


def gains(curve: GainCurve, kls: list[float]) -> list[float]:
    return [gain(curve, kl) for kl in kls]


def test_monotone_run_by_hand() -> None:
    # u = 0, 1, 2; gain 0, 1, 1.5. Area to u=2: 0.5 + 1.25 = 1.75, over 2.
    curve = same_halves([0, 1, 4], [0.2, 1.2, 1.7])
    assert efficiency(curve, 4.0) == pytest.approx(0.875)
    # To u = 1.5 (K = 2.25): 0.5 + (1 + 1.25) / 2 * 0.5 = 1.0625, over 1.5.
    assert efficiency(curve, 2.25) == pytest.approx(1.0625 / 1.5)
    assert gains(curve, [0.0, 0.25, 1.0, 2.25, 4.0]) == pytest.approx([0, 0.5, 1, 1.25, 1.5])


def test_beyond_the_largest_kl_there_is_no_value() -> None:
    curve = same_halves([0, 1], [0.0, 2.0])
    assert curve.reaches(1.0) and not curve.reaches(1.01)
    assert efficiency(curve, 1.0) == 1.0 and gain(curve, 1.0) == 2.0
    assert curve.efficiency(1.01) is None and curve.gain(1.01) is None


def test_falling_reward_never_lowers_the_frontier() -> None:
    # Gain rises to 1 at u = 1 and falls to -3 at u = 2: the frontier stays at 1. Area 0.5 + 1, over 2.
    curve = same_halves([0, 1, 4], [0, 1, -3])
    assert efficiency(curve, 4.0) == pytest.approx(0.75)
    # A run that only loses reward gains nothing, at no KL.
    assert efficiency(same_halves([0, 1, 4], [0, -1, -3]), 4.0) == 0.0


def test_kl_that_falls_again_lifts_the_frontier_at_smaller_kl() -> None:
    # u: 0 -> 2 -> 1 with gain 0 -> 1 -> 2. On [0, 1) the best is the first segment, u / 2; at u = 1 the last evaluation
    # comes within reach and the gain jumps from 0.5 to 2. Area to 2: 0.25 + 2, over 2.
    curve = same_halves([0, 4, 1], [0, 1, 2])
    assert efficiency(curve, 4.0) == pytest.approx(1.125)
    assert gains(curve, [0.99**2, 1.0]) == pytest.approx([0.495, 2.0])
    assert curve.largest_kl == 4.0


def test_a_segment_overtakes_the_held_best_midway() -> None:
    # Up to 1 at u = 1, down to 0 at u = 2, up to 2 at u = 4: the last segment passes 1 at u = 3.
    # Area to 4: 0.5 + 1 * 2 + (1 + 2) / 2 = 4, over 4.
    assert efficiency(same_halves([0, 1, 4, 16], [0, 1, 0, 2]), 16.0) == pytest.approx(1.0)


def test_two_rising_segments_cross() -> None:
    # First segment: gain u on [0, 4]. Back at u = 1 with gain -1, then straight to gain 8 at u = 4: -1 + 3 (u - 1).
    # The segment back, from (4, 4) to (1, -1), lies below u. They cross where u = 3u - 4, at u = 2.
    # Area to 4: 2 + (2 + 8) / 2 * 2 = 12, over 4.
    curve = same_halves([0, 16, 1, 16], [0, 4, -1, 8])
    assert efficiency(curve, 16.0) == pytest.approx(3.0)
    assert gains(curve, [4.0, 9.0]) == pytest.approx([2.0, 5.0])


def test_chosen_on_one_half_and_scored_on_the_other() -> None:
    # u = 0, 1, 2. Even 0, 1, 0 and odd 0, -1, 2.
    # Chosen on even: rides up to u = 1 and stays there; odd gain there is -u, then -1. Area -0.5 - 1 = -1.5.
    # Chosen on odd: stays at 0 until the second segment, -1 + 3 (u - 1), passes 0 at u = 4/3, then rides to u = 2.
    # Even there falls from 2/3 to 0: area (2/3)(2/3) / 2 = 2/9.
    # E(4) = (-1.5 + 2/9) / 2 / 2.
    curve = halves(np.array([0, 1, 4]), np.array([0, 1, 0]), np.array([0, -1, 2]))
    assert efficiency(curve, 4.0) == pytest.approx((-1.5 + 2 / 9) / 4)
    assert gain(curve, 4.0) == pytest.approx((-1 + 0) / 2)  # noise is not rewarded: it may be negative


def test_noise_alone_gains_about_nothing() -> None:
    # A policy that stays as good as it was, measured with noise of 1 at 50 evaluations: the best measured reward is
    # about 2.2 above 0, the cross-scored gain 0 on average (standard error over 400 runs about 0.04).
    rng = np.random.default_rng(0)
    kl = np.linspace(0, 4, 50)
    crossed, naive = [], []
    for _ in range(400):
        even, odd = rng.normal(size=(2, 50))
        even[0] = odd[0] = 0.0
        crossed.append(gain(halves(kl, even, odd), 4.0))
        naive.append(gain(halves(kl, even, even), 4.0))
    assert abs(np.mean(crossed)) < 0.15
    assert np.mean(naive) > 1.8


def test_upright_segments_and_repeated_kl() -> None:
    # At u = 1 reward goes 1, 3, 2 without any KL: the frontier jumps to 3.
    curve = same_halves([0, 1, 1, 1], [0, 1, 3, 2])
    assert gain(curve, 1.0) == 3.0
    assert efficiency(curve, 1.0) == pytest.approx(0.5)
    # KL never moved from 0.
    assert gain(same_halves([0, 0], [0, 1]), 0.0) == 1.0 and gain(same_halves([0], [5]), 0.0) == 0.0


def test_tiny_negative_kl_counts_as_zero() -> None:
    curve = same_halves([-1e-9, 1], [0, 1])
    assert efficiency(curve, 1.0) == pytest.approx(0.5)


def test_initial_kl_above_zero_gains_nothing_below_it() -> None:
    # u = 0.5 at the start, gain 0 there and 1 at u = 1: area 0.25 over 1.
    assert efficiency(same_halves([0.25, 1], [3, 4]), 1.0) == pytest.approx(0.25)


def test_crossing_runs_rank_by_budget() -> None:
    # Fast: 1 at u = 1, flat after. Slow: 0.25, 1 and 3 at u = 1, 2 and 3.
    fast = same_halves([0, 1, 9], [0, 1, 1])
    slow = same_halves([0, 1, 4, 9], [0, 0.25, 1, 3])
    assert efficiency(fast, 1.0) == pytest.approx(0.5) and efficiency(slow, 1.0) == pytest.approx(0.125)
    assert efficiency(fast, 9.0) == pytest.approx(2.5 / 3)
    assert efficiency(slow, 9.0) == pytest.approx((0.125 + 0.625 + 2.0) / 3)
    assert efficiency(slow, 9.0) > efficiency(fast, 9.0)


def test_the_envelope_of_two_runs_by_hand() -> None:
    # Over u = 0, 1, 2 one run gains 0, 1, 1 and the other 0, 0, 2. The second passes the held 1 at u = 1.5.
    # Area to 2: 0.5 + 0.5 + (1 + 2) / 2 * 0.5 = 1.75, over 2. The runs by themselves: 1.5 / 2 and 1 / 2.
    kl, gained = np.array([0, 1, 4, 0, 1, 4]), np.array([0, 1, 1, 0, 0, 2])
    curve = GainCurve(kl, np.stack([gained, gained], axis=1), (0, 3))
    assert efficiency(curve, 4.0) == pytest.approx(0.875)
    assert gains(curve, [0.25, 1.0, 2.25, 3.0625, 4.0]) == pytest.approx([0.5, 1, 1, 1.5, 2])
    # Nothing lies between the last evaluation of one run and the first of the next: 0, 0, 4 alone has 0 at u = 1.
    gained = np.array([0, 0, 4, 0, 0, 0])
    curve = GainCurve(kl, np.stack([gained, gained], axis=1), (0, 3))
    assert gains(curve, [1.0, 2.25]) == pytest.approx([0, 2])
    # Each run is the better one by one half: chosen on even it is the first, whose odd gain is -1, and so turned round.
    even, odd = np.array([0, 1, 0, -1]), np.array([0, -1, 0, 1])
    curve = GainCurve(np.array([0, 1, 0, 1]), np.stack([even, odd], axis=1), (0, 2))
    assert gain(curve, 1.0) == pytest.approx(-1.0) and efficiency(curve, 1.0) == pytest.approx(-0.5)


def slow_efficiency(kl: np.ndarray, even: np.ndarray, odd: np.ndarray, budget: float, density: int = 1500) -> float:
    """E(K) with no idea of pieces: thousands of points along the chain, a running argmax, a sum."""
    u = np.sqrt(np.maximum(kl, 0))
    t = np.linspace(0, len(u) - 1, (len(u) - 1) * density + 1)
    along_u, along_even, along_odd = (np.interp(t, np.arange(len(u)), values) for values in (u, even, odd))
    order = np.argsort(along_u, kind="stable")
    cells = 20_000
    midpoints = (np.arange(cells) + 0.5) * math.sqrt(budget) / cells
    reach = np.searchsorted(along_u[order], midpoints, side="right")  # points with sqrt(KL) <= u
    halves = []
    for chosen, scored in ((along_even, along_odd - odd[0]), (along_odd, along_even - even[0])):
        chosen, scored = chosen[order], scored[order]
        best, where, winner = -np.inf, 0, np.empty(len(order), dtype=int)
        for index, value in enumerate(chosen):
            if value > best:
                best, where = value, index
            winner[index] = where
        halves.append(np.where(reach > 0, scored[winner[np.maximum(reach - 1, 0)]], 0.0).mean())
    return float(np.mean(halves))


@pytest.mark.parametrize("seed", range(12))
def test_exact_integral_agrees_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 14))
    walk = np.abs(np.cumsum(rng.normal(0.15, 0.5, size=count)))  # wanders back and forth
    kl = np.concatenate([[0.0], walk**2])
    even = np.concatenate([[0.3], 0.3 + np.cumsum(rng.normal(0.1, 0.4, size=count))])
    odd = np.concatenate([[-0.2], even[1:] + rng.normal(0, 0.3, size=count)])
    curve = halves(kl, even, odd)
    for share in (0.1, 0.5, 1.0):
        budget = share * curve.largest_kl
        assert efficiency(curve, budget) == pytest.approx(slow_efficiency(kl, even, odd, budget), abs=4e-3)


@pytest.mark.parametrize("seed", range(5))
def test_gain_and_integral_tell_the_same_story(seed: int) -> None:
    # Rounded values bring ties, repeated KL and upright segments; halves agree, so the gain never falls.
    rng = np.random.default_rng(seed)
    kl = np.concatenate([[0.0], np.round(rng.uniform(0, 3, size=30)) ** 2])
    reward = np.concatenate([[0.0], np.round(rng.normal(size=30), 1)])
    curve = halves(kl, reward, reward)
    u = (np.arange(6000) + 0.5) / 6000 * np.sqrt(curve.largest_kl)
    along = np.array(gains(curve, list(u**2)))
    assert (np.diff(along) >= -1e-12).all()
    assert efficiency(curve, curve.largest_kl) == pytest.approx(along.mean(), abs=2e-3)
    at = np.array(gains(curve, list(kl)))
    assert at.min() >= 0 and (at >= reward - 1e-12).all()


def test_prompts_share_the_weights_of_their_half() -> None:
    draw = np.random.default_rng(4)
    kl, gained = np.array([0.0, 0.5, 1.5, 1.0, 3.0]), np.cumsum(draw.normal(0.2, 1.0, size=(5, 7)), axis=0)
    gained -= gained[0]
    curve = GainCurve(kl, gained)
    of_halves = halves(kl, gained[:, 0::2].mean(axis=1), gained[:, 1::2].mean(axis=1))
    for budget in (0.3, 1.0, 3.0):
        assert efficiency(curve, budget) == pytest.approx(efficiency(of_halves, budget))
        assert gain(curve, budget) == pytest.approx(gain(of_halves, budget))
    # What one prompt gained moves its part alone, as long as it does not turn the choice.
    other = gained.copy()
    other[1:, 2] += 1e-6
    moved = GainCurve(kl, other)
    before, after = curve.efficiency(3.0), moved.efficiency(3.0)
    assert before is not None and after is not None
    assert np.flatnonzero(np.abs(after - before) > 1e-12).tolist() == [2]
