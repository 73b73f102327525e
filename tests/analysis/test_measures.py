"""The paper's other claims, the fits and the diagnoses against numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.ablation import ablations, hypervolume
from analysis.diagnoses import diagnose
from analysis.evaluations import evaluations
from analysis.findings import findings
from analysis.load import load_run, load_sweep
from analysis.measures import claims_table, largest_fall, mean_gain, samples_to, sensitivities
from analysis.overoptimization import gold_fit
from analysis.summary import Comparison, compare
from tests.analysis.made_up import config, rows, write_run


def sweep(folder: Path) -> Comparison:
    return compare(load_sweep(folder))


def write(folder: Path, algo: str, seed: int, made: list[dict[str, Any]], **changes: Any) -> None:
    name = f"{algo}-s{seed}-{abs(hash(str(changes))):x}"[:24]
    write_run(folder, name, config(algo, seed, **changes), made)


# --- claims ----------------------------------------------------------------------------------------------------------


def test_measures_of_one_run_by_hand(tmp_path: Path) -> None:
    # Rewards 1, 3, 2, 4 at 0, 64, 128, 192 responses; gains 0, 2, 1, 3.
    run = evaluations(load_run(write_run(tmp_path, "r", config("apa", 0), rows([0, 1, 3, 2], [1, 3, 2, 4]))))
    assert mean_gain(run, 192) == pytest.approx((1 + 1.5 + 2) / 3)
    assert mean_gain(run, 96) == pytest.approx((64 * 1 + 32 * 1.75) / 96)  # at 96 the gain is 1.5
    assert samples_to(run, 1.0, 192) == 32 and samples_to(run, 2.5, 192) == pytest.approx(128 + 64 * 0.75)
    assert samples_to(run, 3.1, 192) is None and samples_to(run, 2.5, 128) is None
    assert samples_to(run, 0.0, 192) == 0
    assert largest_fall(run) == 1.0


def test_claims_over_seeds_share_horizon_and_target(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 2, 4]))
    write(tmp_path, "apa", 1, rows([0, 3, 1], [0, 1, 2]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2, 3], [0, 1, 1, 9]))  # longer: what came later is not counted
    table = claims_table(sweep(tmp_path))
    assert table.horizon == 128
    assert table.target == pytest.approx(0.8 * 1.0)  # PPO's best by then is 1, APA's mean best 3
    apa, ppo = table.rows
    assert apa.mean_gain.mean == pytest.approx(((0 + 2) / 2 + (2 + 4) / 2 + (0 + 1) / 2 + (1 + 2) / 2) / 4)
    assert ppo.mean_gain.mean == pytest.approx((0.5 + 1.0) / 2)
    assert apa.samples_to_target is not None
    assert (apa.samples_to_target.minimum, apa.samples_to_target.maximum) == pytest.approx((25.6, 51.2))
    assert apa.kl_overshoot.mean == 1.0  # one run peaks at 3 nats and ends at 1, the other never goes back
    assert apa.spread is not None and apa.spread.mean == pytest.approx(math.sqrt(2.0)) and ppo.spread is None


def test_a_target_that_a_run_never_reaches(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1], [0, 4]))
    write(tmp_path, "apa", 1, rows([0, 1], [0, 0.5]))
    (row,) = claims_table(sweep(tmp_path)).rows
    assert (row.runs_at_target, row.samples_to_target) == (1, None)
    worse = tmp_path / "worse"
    write(worse, "apa", 0, rows([0, 1], [0, -1]))
    table = claims_table(sweep(worse))
    assert table.target is None and table.rows[0].samples_to_target is None and table.rows[0].mean_gain.mean == -0.5


def test_sensitivity_has_an_equal_budget(tmp_path: Path) -> None:
    for index, reward in enumerate((2.0, 6.0, 4.0)):
        write(tmp_path, "apa", 0, rows([0, 4], [0, reward]), algo__lam=0.1 * (index + 1))
    for index, reward in enumerate((2.0, 4.0)):
        write(tmp_path, "ppo", 0, rows([0, 4], [0, reward]), algo__lam=0.1 * (index + 1))
    write(tmp_path, "awr", 0, rows([0, 4], [0, 1.0]))
    apa, ppo = sensitivities(sweep(tmp_path))
    # E(4) of a straight line to `reward` at 4 nats is half of it; APA's third setting is beyond the budget of two.
    assert (apa.algo, apa.settings, apa.best, apa.median, apa.worst) == ("apa", 2, 3.0, 2.0, 1.0)
    assert (ppo.algo, ppo.settings, ppo.best, ppo.median, ppo.worst) == ("ppo", 2, 2.0, 1.5, 1.0)


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
    assert (fit.beta.mean, fit.pooled[1]) == pytest.approx((0.5, 0.5))
    assert fit.gain(np.array([0.0, 1.0])) == pytest.approx([0.0, 1.0])
    # d (1 - log d / 2) is highest where log d = 1, at d^2 = e^2 = 7.39.
    assert fit.peak_kl == pytest.approx(math.exp(2.0), rel=1e-6)
    assert 0.9 < fit.explained <= 1.0


def test_no_gold_fit_of_nothing(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 1, 2]))
    write(tmp_path, "ppo", 0, rows([0, 1, 2], [0, 1, 2], gold=[0, 1, 2]))  # two points
    write(tmp_path, "awr", 0, rows([0, 1, 1, 1, 1], [0, 1, 2, 2, 2], gold=[0, 1, 2, 1, 2]))  # one KL
    assert findings(sweep(tmp_path)).gold_fits == []


# --- ablations -------------------------------------------------------------------------------------------------------


def test_hypervolume_by_hand() -> None:
    kl, gain = np.array([0.0, 1.0, 2.0, 3.0, 5.0]), np.array([0.0, 1.0, 0.5, 3.0, 9.0])
    # Budget 4: 1 from 1 nat on (area 3), then 3 from 3 nats on (1 * 2 more); what costs 5 is outside.
    assert hypervolume(kl, gain, 4.0) == 5.0
    assert hypervolume(kl[::-1], gain[::-1], 4.0) == 5.0
    assert hypervolume(np.array([1.0]), np.array([-1.0]), 4.0) == 0.0


def test_an_ablation_of_one_number(tmp_path: Path) -> None:
    for lam, end in ((1.0, 1.0), (0.1, 3.0)):
        for seed in (0, 1):
            write(tmp_path, "apa", seed, rows([0, end], [0, end + seed]), algo__lam=lam)
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 1]))
    (found,) = ablations(sweep(tmp_path))
    assert (found.algo, found.key, found.is_log) == ("apa", "algo.lam", True)
    assert [point.value for point in found.points] == [0.1, 1.0]
    # Budget 4: (4 - 3) * 3 and * 4; (4 - 1) * 1 and * 2.
    assert [point.hypervolume.mean for point in found.points] == [3.5, 4.5]
    # Seed 0 has (1, 1) and (3, 3): 3 + 2; seed 1 has (1, 2) and (3, 4): 6 + 2.
    assert (found.hypervolume.minimum, found.hypervolume.maximum) == (5.0, 8.0)


def test_no_ablation_of_two_settings_or_of_words(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1], [0, 1]), algo__lam=1.0, optimization__learning_rate=1.0)
    write(tmp_path, "apa", 0, rows([0, 1], [0, 1]), algo__lam=2.0, optimization__learning_rate=2.0)
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 1]), model__name="a")
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 1]), model__name="b")
    assert ablations(sweep(tmp_path)) == []


# --- diagnoses -------------------------------------------------------------------------------------------------------


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


def test_diagnoses_of_reward_and_kl(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 4, 2.9]))  # a fall of 1.1, above a quarter of 4, while KL rose
    write(tmp_path, "awr", 0, rows([0, 2, 1], [0, 4, 2.9]))  # KL fell with it: no diagnosis
    write(tmp_path, "ppo", 0, rows([0, 1, 17], [0, 4, 4]))  # above 4 times 4 nats
    found = {one.setting: one for one in diagnose(sweep(tmp_path))}
    assert {name: one.kind for name, one in found.items()} == {"apa": "reward falls", "ppo": "KL"}
    assert "by 1.10 from 4.00, KL from 1.0 to 2.0 nats; threshold: 25% of the best gain lost" in found["apa"].text
    assert "17 nats; threshold: 4 times the largest budget" in found["ppo"].text


def test_diagnoses_of_gold_and_seeds(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, rows([0, 1, 2], [0, 1, 2], gold=[0, 1, 0.5]))
    write(tmp_path, "ppo", 0, rows([0, 1], [0, 3.0]))
    write(tmp_path, "ppo", 1, rows([0, 1], [0, -1.0]))  # 4 apart, the mean gain is 1
    found = {one.setting: one for one in diagnose(sweep(tmp_path))}
    assert found["apa"].kind == "over-optimisation"
    assert "gold fell by 0.50 while the reward rose by 1.00" in found["apa"].text
    assert found["ppo"].kind == "seeds" and len(found["ppo"].runs) == 2
    assert "4.00 apart, from -1.00 (seed 1) to 3.00 (seed 0), while the mean gain is 1.00" in found["ppo"].text
