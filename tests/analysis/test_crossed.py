"""Intervals of crossed prompts and seeds: coverage by simulation, numbers by hand."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from analysis.crossed import crossed_difference, crossed_mean, holm

# Standard deviations of seed, prompt and rest: as measured on the embedded task; larger seeds; none, at last.
SPREADS = [(0.02, 0.4, 0.3), (0.06, 0.4, 0.3), (0.12, 0.4, 0.3), (0.0, 0.4, 0.3)]
REPEATS = 1500
# Two points, and three standard errors of the simulation.
LOWEST, HIGHEST = 0.95 - 0.02 - 0.017, 0.95 + 0.02 + 0.017


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("prompts", [32, 128, 512])
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
        names = [f"seed {index}" for index in range(seeds)]
        found = crossed_difference(first, second, names, names if same_seeds else [f"other {name}" for name in names])
        truth = float(of_seed[0].mean() - of_seed[1].mean()) if found.of_these_runs else 0.0
        inside += abs(found.value - truth) <= found.half_width
        widths.append(found.half_width)
    assert LOWEST <= inside / REPEATS <= HIGHEST
    assert np.mean(widths) < 0.4 / np.sqrt(prompts) * 4.3  # what unpaired prompts would give, and more


def test_seeds_are_paired_by_name_in_any_order() -> None:
    draw = np.random.default_rng(2)
    first, second = draw.normal(size=(4, 16)), draw.normal(size=(4, 16))
    found = crossed_difference(first, second, [0, 1, 2, 3], [3, 1, 0, 2])
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


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros((3, 1)), np.full((2, 4), np.inf)])
def test_what_has_no_interval_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="interval"):
        crossed_mean(values)
