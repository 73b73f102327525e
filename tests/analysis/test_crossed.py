"""Intervals of crossed prompts and seeds: coverage by simulation, numbers by hand."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from analysis.crossed import components, crossed_difference, crossed_mean, holm

# Standard deviations of seed, prompt and rest: as measured on the embedded task; larger seeds; none, at last.
SPREADS = [(0.02, 0.4, 0.3), (0.06, 0.4, 0.3), (0.12, 0.4, 0.3), (0.0, 0.4, 0.3)]
REPEATS = 1500
# Two points, and three standard errors of the simulation.
LOWEST, HIGHEST = 0.95 - 0.02 - 0.017, 0.95 + 0.02 + 0.017


@pytest.mark.parametrize(
    ("prompts", "spread"), [(32, SPREADS[0]), (512, SPREADS[0]), *((128, spread) for spread in SPREADS)]
)
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_value_is_covered(seeds: int, prompts: int, spread: tuple[float, float, float]) -> None:
    """The value of the policies over all prompts and seeds; of two seeds, over all prompts for these runs."""
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(REPEATS):
        of_seed = spread[0] * draw.normal(size=(seeds, 1))
        values = of_seed + spread[1] * draw.normal(size=prompts) + spread[2] * draw.normal(size=(seeds, prompts))
        found = crossed_mean(values)
        assert found.of_these_runs == (seeds == 2)
        inside += abs(found.value - (of_seed.mean() if found.of_these_runs else 0.0)) <= found.half_width
    assert LOWEST <= inside / REPEATS <= HIGHEST


@pytest.mark.parametrize("same_seeds", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_difference_is_covered_and_shared_prompts_cancel(seeds: int, same_seeds: bool) -> None:
    draw, prompts = np.random.default_rng(1), 128
    inside, widths = 0, []
    for _ in range(REPEATS):
        shared = 0.4 * draw.normal(size=prompts)
        shared_seed = 0.03 * draw.normal(size=(seeds, 1)) if same_seeds else 0.0
        of_seed = [0.02 * draw.normal(size=(seeds, 1)) for _ in range(2)]
        first, second = (
            shared + shared_seed + one + 0.1 * draw.normal(size=prompts) + 0.2 * draw.normal(size=(seeds, prompts))
            for one in of_seed
        )
        names = [(f"seed {index}",) for index in range(seeds)]
        found = crossed_difference(
            first, second, names, names if same_seeds else [(f"other {name}",) for name in names]
        )
        truth = float(of_seed[0].mean() - of_seed[1].mean()) if found.of_these_runs else 0.0
        inside += abs(found.value - truth) <= found.half_width
        widths.append(found.half_width)
    assert LOWEST <= inside / REPEATS <= HIGHEST
    assert np.mean(widths) < 0.4 / np.sqrt(prompts) * 4.3  # what unpaired prompts would give, and more


def test_seeds_are_paired_by_name_in_any_order() -> None:
    draw = np.random.default_rng(2)
    first, second = draw.normal(size=(4, 16)), draw.normal(size=(4, 16))
    found = crossed_difference(first, second, [(0,), (1,), (2,), (3,)], [(3,), (1,), (0,), (2,)])
    expected = crossed_mean(first - second[[2, 1, 3, 0]])
    assert (found.value, found.standard_error) == (expected.value, expected.standard_error)


def test_by_hand() -> None:
    values = np.array([[1.0, 3.0], [2.0, 4.0], [6.0, 2.0]])
    found = crossed_mean(values)
    # Means of seeds 2, 3, 4; of prompts 3, 3. MS_seed = 2 * 2 / 2 = 2, MS_prompt = 0, rest +-1, +-1, +-2: 12 / 2.
    assert found.value == 3.0
    # 2 + 0 - 6 is below both, so the larger of them counts: 2 / 6.
    assert found.standard_error == pytest.approx((2.0 / 6.0) ** 0.5)
    two = crossed_mean(values[:2])
    assert two.of_these_runs and two.standard_error == pytest.approx((2.0 / 2.0) ** 0.5)


def test_the_p_value_is_where_the_interval_ends() -> None:
    draw = np.random.default_rng(3)
    values = draw.normal(size=(4, 32)) + 0.2
    found = crossed_mean(values)
    ends = crossed_mean(values, level=1.0 - found.p_value)
    assert ends.low == pytest.approx(0.0, abs=1e-9) and 0.0 < found.p_value < 1.0
    plain = crossed_mean(values[:1])  # Student's test over prompts
    assert plain.p_value == pytest.approx(float(ttest_1samp(values[0], 0.0).pvalue))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros((3, 0)), np.full((2, 4), np.inf)])
def test_what_has_no_interval_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="interval"):
        crossed_mean(values)


# Standard deviations of SFT policy, reward model, their interaction and seed: both matter; reward models differ by the
# SFT policy that they start from; the reward model alone; none but the seed.
OUTER = [(0.06, 0.04, 0.02, 0.02), (0.05, 0.0, 0.05, 0.02), (0.0, 0.12, 0.0, 0.02), (0.0, 0.0, 0.0, 0.02)]


@pytest.mark.parametrize(
    ("counts", "spread"),
    [*(((3, 3, 3), spread) for spread in OUTER), *((one, OUTER[0]) for one in ((3, 1, 2), (5, 2, 2), (2, 2, 3)))],
)
def test_sft_policies_and_reward_models_are_covered(
    counts: tuple[int, int, int], spread: tuple[float, float, float, float]
) -> None:
    """Crossed with one another and with prompts, whose noise all runs share, seeds being innermost. Of an axis with two
    levels the value meant is that of these two."""
    draw, prompts, repeats = np.random.default_rng(4), 32, 800
    runs = [(a, b, c) for a in range(counts[0]) for b in range(counts[1]) for c in range(counts[2])]
    shapes = [(counts[0], 1, 1), (1, counts[1], 1), (*counts[:2], 1), counts]
    inside = 0
    for _ in range(repeats):
        sft, reward, both, seed = (one * draw.normal(size=shape) for one, shape in zip(spread, shapes, strict=True))
        noise = sum(0.15 * draw.normal(size=(*shape, prompts)) for shape in shapes[:2])
        rest = 0.4 * draw.normal(size=prompts) + 0.3 * draw.normal(size=(*counts, prompts)) + noise
        values = (sft + reward + both + seed)[..., None] + rest
        few = [count < 3 for count in counts]
        fixed = ((sft, few[:1]), (reward, few[1:2]), (both, few[:2]))
        truth = sum(float(one.mean()) for one, alone in fixed if all(alone))
        found = crossed_mean(values.reshape(-1, prompts), runs)
        assert found.of_these_runs == all(few)
        inside += abs(found.value - truth) <= found.half_width
    # Two points, and three standard errors of the simulation.
    assert 0.93 - 0.023 <= inside / repeats <= 0.97 + 0.023


def test_components_by_hand_and_of_a_grid_with_a_gap() -> None:
    """Of one column, two SFT policies and three reward models."""
    runs = [(a, b) for a in range(2) for b in range(3)]

    def variances(values: list[float]) -> dict[tuple[int, ...], float]:
        found = components(np.array([values]).T, runs[: len(values)], (0, 1))
        return {one.axes: one.variance * one.levels for one in found}

    # Variances of the means 3 and 5, and of 2, 3 and 7.
    assert variances([1, 2, 6, 3, 4, 8]) == pytest.approx({(0, 1): 0.0, (0,): 2.0, (1,): 7.0})
    # Interaction residuals +-0.5 +-0.5 -+1: 3 / 2. Means 3 and 4, of which 1.5 / 3 is the interaction's: 0.5 - 0.5.
    # Of 2, 3 and 5.5 it has 1.5 / 2.
    expected = {(0, 1): 1.5, (0,): 0.0, (1,): 3.25 - 0.75}
    assert variances([1, 2, 6, 3, 4, 5]) == pytest.approx(expected)
    # Without the last run each axis alone, by the means of the runs that there are: 3 and 3.5; 2, 3 and 6.
    gap = {(0,): 0.125, (1,): 13.0 / 3.0}
    assert variances([1, 2, 6, 3, 4]) == pytest.approx(gap)


def test_differences_share_what_both_were_drawn_with() -> None:
    """Where some seeds differ SFT policies are paired all the same, so that what they add to both cancels."""
    draw = np.random.default_rng(5)
    runs = [(a, seed) for a in range(4) for seed in range(3)]
    sft = draw.normal(size=4)
    first, second = (np.array([sft[a] for a, _ in runs])[:, None] + 0.01 * draw.normal(size=(12, 8)) for _ in range(2))
    other = [(a, seed + 1) for a, seed in runs]
    apart = crossed_difference(first, second, runs, [(a + 4, seed) for a, seed in runs])
    for their_runs in (runs, other):
        assert crossed_difference(first, second, runs, their_runs).half_width < 0.1 * apart.half_width


def test_a_lost_run_makes_nothing_surer() -> None:
    """Three seeds of one against two of the other: what the three differ by counts on."""
    draw = np.random.default_rng(6)
    seeds = np.array([0.0, 0.3, 0.6])[:, None]
    first, second = (seeds + 0.05 * draw.normal(size=(3, 40)) for _ in range(2))
    runs = [(seed,) for seed in range(3)]
    whole, lost = (crossed_difference(first, second[:count], runs, runs[:count]) for count in (3, 2))
    assert whole.p_value > 0.05 and lost.p_value > 0.05
    assert lost.value == pytest.approx(0.15, abs=0.02) and lost.half_width > whole.half_width
