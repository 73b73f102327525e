"""The diagnoses against numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.diagnoses import diagnose
from analysis.load import make_record
from analysis.summary import compare
from tests.analysis.made_up import config, rows, sweep, write


def test_a_healthy_sweep_has_no_diagnosis(tmp_path: Path) -> None:
    for seed in (0, 1):
        made = rows([0, 1, 2], [0, 1, 2.0 + 0.1 * seed], gold=[0, 1, 2])
        ends = {"eval/entropy": 0.6, "eval/response_length": 20.0, "eval/eos_rate": 0.9}
        write(tmp_path, "apa", seed, [row | ends for row in made])
    assert diagnose(sweep(tmp_path)) == []


@pytest.mark.parametrize(
    ("kind", "made", "words"),
    [
        ("entropy", [{"eval/entropy": 1.0}, {"eval/entropy": 0.1}], "from 1.00 to 0.10 nats a token; threshold: 20%"),
        ("length", [{"eval/response_length": 20}, {"eval/response_length": 5}], "from 20 to 5 tokens; threshold: 30%"),
        (
            "length",
            [{"eval/response_length": 9}, {"eval/response_length": 28}],
            "from 9 to 28 tokens; threshold: 3 times",
        ),
        (
            "endings",
            [{"eval/eos_rate": 1.0}, {"eval/eos_rate": 0.4}],
            "40% of responses ended by themselves; threshold: 50%",
        ),
    ],
)
def test_diagnoses_of_responses(tmp_path: Path, kind: str, made: list[dict[str, float]], words: str) -> None:
    write(tmp_path, "apa", 0, [row | more for row, more in zip(rows([0, 1], [0, 1]), made, strict=True)])
    (found,) = diagnose(sweep(tmp_path))
    assert found.kind == kind and words in found.text and found.text.startswith("apa: ") and len(found.runs) == 1


@pytest.mark.parametrize(
    ("algo", "settings", "tries"),
    [
        ("apa", {"algo__lam": 1.0}, "raise algo.lam (1.0), or lower optimization.learning_rate (0.001)"),
        ("awr", {"algo__lam": 0.5}, "raise algo.lam (0.5), or lower optimization.learning_rate (0.001)"),
        (
            "ppo",
            {"algo__kl": {"controller": "adaptive", "init_coef": 0.05, "target": 6.0}},
            "raise algo.kl.init_coef (0.05), lower algo.kl.target (6.0), or lower optimization.learning_rate (0.001)",
        ),
        (
            "ppo",
            {"algo__kl": {"controller": "fixed", "init_coef": 0.05, "target": 6.0}},
            "raise algo.kl.init_coef (0.05), or lower optimization.learning_rate (0.001)",
        ),
        (
            "ppo",
            {"algo__kl": {"controller": "none", "init_coef": 0.05, "target": 6.0}},
            "set algo.kl.controller=adaptive, or lower optimization.learning_rate (0.001)",
        ),
        ("ilql", {}, "lower optimization.learning_rate (0.001)"),
    ],
)
def test_remedies_are_options_that_the_algorithm_has(tmp_path: Path, algo: str, settings: dict, tries: str) -> None:
    write(tmp_path, algo, 0, rows([0, 20], [0, 1]), **{"algo__lam": None, **settings})
    (found,) = diagnose(sweep(tmp_path))
    assert found.kind == "KL" and found.text.endswith(f" Try: {tries}.")


def test_diagnoses_of_reward_and_kl(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 4, 2.9]))  # a fall of 1.1, above a quarter of 4, while KL rose
    write(tmp_path, "awr", 0, rows([0, 2, 1], [0, 4, 2.9]))  # KL fell with it: no diagnosis
    write(tmp_path, "ppo", 0, rows([0, 1, 17], [0, 4, 4]))  # above 4 times 4 nats
    found = {one.setting: one for one in diagnose(sweep(tmp_path))}
    assert {name: one.kind for name, one in found.items()} == {"apa": "reward falls", "ppo": "KL"}
    assert (
        "by 1.10 from 4.00, counted beyond 1; KL from 1.0 to 2.0 nats; threshold: 25% of the best gain lost"
        in found["apa"].text
    )
    assert "17 nats; threshold: 4 times the largest budget" in found["ppo"].text


def test_diagnoses_of_gold_and_seeds(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 1, 2], gold=[0, 1, 0.5]))
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 3.0]))
    write(tmp_path, "ppo", 1, rows([0, 1], [0, -1.0]))  # s = sqrt 8, the mean gain is 1
    found = {one.setting: one for one in diagnose(sweep(tmp_path))}
    assert found["apa"].kind == "over-optimisation"
    assert "gold fell by 0.50, counted beyond 0.25, while the reward rose by 1.00" in found["apa"].text
    assert found["ppo"].kind == "seeds" and len(found["ppo"].runs) == 2
    assert (
        "a standard deviation of 2.83, from -1.00 (seed 1) to 3.00 (seed 0), while the mean gain is 1.00"
        in found["ppo"].text
    )


def kinds(folder: Path) -> list[str]:
    return [one.kind for one in diagnose(sweep(folder))]


def test_a_run_that_only_falls(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2, 3, 4], [0, -1, -2, -4, -8]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2, 1, 0], [0, -1, -2, -4, -8]))  # KL is where it was
    (found,) = diagnose(sweep(tmp_path))
    # Second differences 0, -1, -2: noise 1.4826 / sqrt 6 = 0.61, four times that 2.4.
    assert found.setting == "apa" and "reward fell below the initial one while KL rose in the run" in found.text
    assert (
        "from 0.00 to -8.00, counted beyond 2.4; KL to 4.0 nats; threshold: 4 times the evaluation noise" in found.text
    )


@pytest.mark.parametrize("key", ["eval/reward", "eval/kl"])
def test_a_last_evaluation_that_is_no_number(tmp_path: Path, key: str) -> None:
    write(tmp_path, "apa", 0, [*rows([0, 1, 2, 3], [0, 1, 2, 3])[:3], {**rows([0] * 4, [3] * 4)[3], key: math.nan}])
    missed = rows([0, 1, 2], [0, 1, 2])
    missed[1][key] = math.nan
    write(tmp_path, "ppo", 0, missed)  # one in between is told in a note
    (found,) = diagnose(sweep(tmp_path))
    assert (found.kind, found.setting) == ("not a number", "apa")
    assert "the last evaluation is not a number" in found.text and "missing in 1 of 4 evaluations" in found.text


def test_a_fall_within_the_noise_of_the_curve_is_none(tmp_path: Path) -> None:
    # Second differences 2, -2, 3 of size 2: noise 2 * 1.4826 / sqrt 6 = 1.21; a fall of 2 is below four times that.
    write(tmp_path, "apa", 0, rows([0, 1, 2, 3, 4], [0, 1, 4, 5, 3]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2, 3, 4], [0, 4, 3, 2, 1]))  # the same numbers on a line: noise 0
    assert [one.setting for one in diagnose(sweep(tmp_path))] == ["ppo"]


def test_a_fall_within_the_sampling_error_is_none(tmp_path: Path) -> None:
    made = [row | {"eval/reward_std": 4.0} for row in rows([0, 1, 2], [0, 4, 2.0])]
    write(tmp_path, "apa", 0, made, dataset__num_eval_prompts=16)  # standard error 1: below 4 of them
    write(tmp_path, "ppo", 0, made, dataset__num_eval_prompts=256)  # 0.25
    assert [one.setting for one in diagnose(sweep(tmp_path))] == ["ppo"]


def test_the_spread_over_prompts_is_no_noise_of_a_curve_that_tells_its_own(tmp_path: Path) -> None:
    """Prompts and draws are the same at each evaluation. A loss of 0.4 of 1 is then one, beyond a quarter."""
    falls = rows([0, 1, 2, 3, 4], [0, 0.5, 1, 0.8, 0.6])
    write(tmp_path, "apa", 0, [row | {"eval/reward_std": 4.0} for row in falls], dataset__num_eval_prompts=16)
    (found,) = diagnose(sweep(tmp_path))
    # Second differences 0, -0.7, 0: noise 0, and the threshold a quarter of the gain.
    assert "by 0.40 from 1.00, counted beyond 0.25; KL from 2.0 to 4.0 nats" in found.text


def test_a_last_evaluation_that_lacks_one_half_of_the_prompts(tmp_path: Path) -> None:
    made = rows([0, 1, 2], [0, 1, 2], odd=[0, 1, 2])
    del made[-1]["eval/reward_odd"]
    write(tmp_path, "apa", 0, made)
    comparison = sweep(tmp_path)
    (found,) = diagnose(comparison)
    assert found.kind == "not a number" and "the reward of one half of the prompts is missing in 1 of 3" in found.text
    assert any("1 evaluation has no finite KL, reward or reward of one half" in note for note in comparison.notes)


def test_one_lucky_evaluation_of_many_is_no_peak(tmp_path: Path) -> None:
    kl = [float(index) for index in range(12)]
    write(tmp_path, "apa", 0, rows(kl, [0, 1, 2, 3, 4, 4, 5.5, 4, 4, 4, 4, 4]))
    write(tmp_path, "ppo", 0, rows(kl, [0, 1, 2, 3, 4, 4, 4, 4, 3, 2, 1, 0.5]))
    (found,) = diagnose(sweep(tmp_path))
    # The best mean of three is 4, the last (2 + 1 + 0.5) / 3.
    assert found.setting == "ppo" and "by 2.83 from 4.00, counted beyond 1; KL from 5.0 to 10.0 nats" in found.text


def test_gold_that_falls_while_the_reward_hardly_rises(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 2, 2.1], gold=[0, 1, 0.5]))  # up by 0.1, below a tenth of 2.1
    write(tmp_path, "ppo", 0, rows([0, 1, 2], [0, 2, 2.3], gold=[0, 1, 0.5]))
    assert [(one.setting, one.kind) for one in diagnose(sweep(tmp_path))] == [("ppo", "over-optimisation")]


def test_gold_that_never_rose_must_fall_by_its_own_scatter(tmp_path: Path) -> None:
    # Standard deviation of 0, -5 and -0.1 is 2.33: a quarter of it is more than 0.1.
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 1, 2], gold=[0, -5, -0.1]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2], [0, 1, 2], gold=[0, -5, -1]))
    assert [(one.setting, one.kind) for one in diagnose(sweep(tmp_path))] == [("ppo", "over-optimisation")]


def test_seeds_within_half_the_gain_or_the_noise_do_not_diverge(tmp_path: Path) -> None:
    for seed, end in enumerate((3.0, 5.0)):  # s = 1.41, below half of 4
        write(tmp_path, "apa", seed, rows([0, 1], [0, end]))
    for seed, end in enumerate((-1.0, 1.0)):  # s = 1.41, the gain 0; the noise of one evaluation 1.21
        write(tmp_path, "awr", seed, rows([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, end]))
    assert kinds(tmp_path) == []


@pytest.mark.parametrize(("gain", "fall", "low", "high"), [(0, 0, 0, 0.1), (1, 0, 0, 0.05), (1, 0.5, 0.9, 1)])
def test_rates_of_alarm(gain: float, fall: float, low: float, high: float) -> None:
    """Of 100 runs with noise of a tenth; more of them, and other noise, in analysis/diagnoses.py."""
    rng, t = np.random.default_rng(0), np.linspace(0.0, 1.0, 20)
    curve = gain * np.minimum(2.0 * t, 1.0) - fall * np.maximum(2.0 * t - 1.0, 0.0)
    noisy = curve + 0.1 * rng.normal(size=(100, 20))
    finished = {"status": "finished"}
    records = [
        make_record(Path(f"r{seed}"), config("apa", seed), rows(t.tolist(), one.tolist()), finished, [], [])
        for seed, one in enumerate(noisy)
    ]
    runs = sum(len(one.runs) for one in diagnose(compare(records)) if one.kind == "reward falls")
    assert low <= runs / 100 <= high
