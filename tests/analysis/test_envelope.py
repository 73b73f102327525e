"""Frontiers of algorithms over their KL knob: what they are the best of, their values, and the verdict about them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.charts import charts
from analysis.envelope import Envelope, frontiers
from analysis.findings import findings
from analysis.overoptimization import binned_gains
from analysis.verdict import verdict
from rlhf.config import ALGO_CONFIGS
from rlhf.config.algo import CUSTOM
from rlhf.config.build import kl_knobs
from tests.analysis.made_up import rows, sweep, write
from tests.analysis.test_charts import layers
from tests.analysis.test_verdict import run

ROOT = Path(__file__).parents[2]
KL = [0.0, 1.0, 4.0]


def two_algorithms(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Over u = 0, 1, 2 apa gains 0, 1, 1 at one lam and 0, 0, 2 at the other; awr 0, 0, 1 and 0, 0.5, 0.5."""
    for seed in seeds:
        write(folder, "apa", seed, rows(KL, [0, 1, 1]), algo__lam=0.1)
        write(folder, "apa", seed, rows(KL, [0, 0, 2]), algo__lam=0.4)
        write(folder, "awr", seed, rows(KL, [0, 0, 1]), algo__lam=1.0)
        write(folder, "awr", seed, rows([0.0, 1.0], [0, 0.5]), algo__lam=4.0)


def test_the_envelope_over_the_knob_by_hand(tmp_path: Path) -> None:
    two_algorithms(tmp_path)
    apa, awr = frontiers(sweep(tmp_path)).envelopes
    # Every setting by itself is compared within 1 nat, the KL that awr's run at lam 4 reached; frontiers within 4.
    assert {setting.headline.kl_budget for setting in sweep(tmp_path).settings} == {1.0}
    assert apa.headline.kl_budget == awr.headline.kl_budget == 4.0
    # apa: area 0.5, held at 1 to u = 1.5, then up to 2: (0.5 + 0.5 + 0.75) / 2.
    assert apa.headline.kl_efficiency.mean == pytest.approx(0.875)
    assert apa.headline.gain.mean == pytest.approx(2.0)
    # awr: 0.25 to u = 1, held at 0.5 to u = 1.5, then up to 1: (0.25 + 0.25 + 0.375) / 2.
    assert awr.headline.kl_efficiency.mean == pytest.approx(0.4375)
    assert (apa.knobs, len(apa.settings), len(apa.runs)) == (("algo.lam",), 2, 3)


def test_the_verdict_is_about_the_frontiers(tmp_path: Path) -> None:
    two_algorithms(tmp_path)
    found = findings(sweep(tmp_path))
    assert found.verdict.sentence.startswith("Within 4 nats, which every frontier reaches: apa 0.88, awr 0.44.")
    assert "2 of algo.lam (apa), 2 of algo.lam (awr)" in found.verdict.detail
    assert [(pair.first.name, pair.second.name) for pair in found.verdict.pairs] == [("apa", "awr")]
    # Without frontiers it is about the four settings.
    assert len(verdict(found.comparison).pairs) == 6


def test_intervals_over_prompts_and_seeds(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for lam, slope, largest in ((0.1, 0.5, 4.0), (0.4, 0.7, 1.0)):
            run(tmp_path, "apa", seed, slope, largest, algo__lam=lam)
        run(tmp_path, "awr", seed, 0.2)
    found = findings(sweep(tmp_path))
    apa, _ = found.envelopes
    # 0.7 u to u = 1, held to u = 1.4, then 0.5 u to u = 2: (0.35 + 0.28 + 0.51) / 2.
    efficiency = apa.headline.kl_efficiency
    assert efficiency.method == "crossed" and efficiency.mean == pytest.approx(0.57, abs=0.02)
    assert efficiency.low is not None and efficiency.high is not None and efficiency.low < 0.57 < efficiency.high
    assert found.verdict.sentence.endswith("apa is above awr.")
    assert any("unequal numbers of knob values" in note and "apa 2, awr 1" in note for note in found.comparison.notes)


def test_noise_does_not_lift_an_envelope(tmp_path: Path) -> None:
    # Eight values of a knob that does nothing, 20 points each: the highest point measured on a half gains about 0.5.
    draw = np.random.default_rng(0)
    for lam in range(1, 9):
        even, odd = draw.normal(0.0, 0.2, (2, 20))
        even[0] = odd[0] = 0.0
        write(
            tmp_path, "apa", 0, rows(np.linspace(0, 4, 20).tolist(), even.tolist(), odd.tolist()), algo__lam=float(lam)
        )
    write(tmp_path, "awr", 0, rows(KL, [0, 0, 0]))
    apa, _ = frontiers(sweep(tmp_path)).envelopes
    assert abs(apa.headline.gain.mean) < 0.3


def test_a_seed_without_a_run_of_every_value_is_left_out(tmp_path: Path) -> None:
    two_algorithms(tmp_path)
    write(tmp_path, "apa", 3, rows(KL, [0, 9, 9]), algo__lam=0.1)
    found = frontiers(sweep(tmp_path))
    assert len(found.envelopes[0].runs) == 3 and found.envelopes[0].headline.kl_efficiency.mean == 0.875
    assert found.notes == ["The frontier of apa is without 1 of its 4 seeds, which lack a value."]
    write(tmp_path, "ppo", 0, rows(KL, [0, 1, 1]), algo__kl={"init_coef": 0.1})
    write(tmp_path, "ppo", 1, rows(KL, [0, 1, 1]), algo__kl={"init_coef": 0.2})
    none = frontiers(sweep(tmp_path))
    assert none.envelopes == [] and none.notes[0].endswith("knob of ppo.")


def test_an_envelope_is_of_one_sft_policy_and_reward_model(tmp_path: Path) -> None:
    # With the better of the two SFT policies either lam gains twice as much.
    for sft, reward in itertools.product((0, 1), (0, 1)):
        drawn = {"sft__seed": sft, "reward_model__seed": reward}
        for lam, gains in ((0.1, [0.0, 1.0, 1.0]), (0.4, [0.0, 0.0, 2.0])):
            write(tmp_path, "apa", 0, rows(KL, [gain * (1 + sft) for gain in gains]), algo__lam=lam, **drawn)
        write(tmp_path, "awr", 0, rows(KL, [0, 0, 1]), **drawn)
    apa, awr = frontiers(sweep(tmp_path)).envelopes
    assert [one.record.replicate for one in apa.runs] == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    assert [one.efficiency(4.0) for one in apa.runs] == pytest.approx([0.875, 0.875, 1.75, 1.75])
    assert len(awr.runs) == 4 and "2 SFT policies" in verdict(sweep(tmp_path), [apa, awr]).detail


def test_other_axes_make_frontiers_of_their_own(tmp_path: Path) -> None:
    for rate in (0.001, 0.002):
        for lam in (0.1, 0.4):
            write(tmp_path, "apa", 0, rows(KL, [0, lam, 1]), algo__lam=lam, optimization__learning_rate=rate)
    found: list[Envelope] = frontiers(sweep(tmp_path)).envelopes
    assert [one.name for one in found] == [f"apa (optimization.learning_rate={rate})" for rate in (0.001, 0.002)]
    assert all(one.knobs == ("algo.lam",) for one in found)


def test_values_of_one_algorithm_are_compared_with_one_another(tmp_path: Path) -> None:
    for lam in (0.1, 0.4):
        write(tmp_path, "apa", 0, rows(KL, [0, lam, 1]), algo__lam=lam)
    assert frontiers(sweep(tmp_path)).envelopes == []


def test_the_frontier_sweep_gives_every_algorithm_as_many_values_of_its_knob() -> None:
    spaces = yaml.safe_load((ROOT / "sweeps" / "frontier.yaml").read_text())["hydra"]["sweeper"]["spaces"]
    assert set(spaces) == set(ALGO_CONFIGS) - {CUSTOM}
    for algo, space in spaces.items():
        ((key, values),) = space.items()
        assert key in kl_knobs(algo), algo
        assert len(set(values.split(","))) == 5, algo


def test_the_chart_draws_the_envelopes_with_their_settings(tmp_path: Path) -> None:
    two_algorithms(tmp_path)
    found = findings(sweep(tmp_path))
    figure = charts(found)[0]
    assert (figure.title, list(figure.looks)) == ("Frontiers of the algorithms", ["apa", "awr"])
    (thin, singles), (_, drawn) = layers(figure, "line")
    assert thin["encoding"]["detail"]["field"] == "run"
    assert {row["run"] for row in singles} == {"apa (lam=0.1)", "apa (lam=0.4)", "awr (lam=1)", "awr (lam=4)"}
    # The line is the envelope's, to the KL that all its seeds reach.
    ends = {row["line"]: (row["kl"], row["mean"]) for row in drawn}
    assert ends == {"apa": (4.0, 2.0), "awr": (4.0, 1.0)}
    # Every evaluation of every run is a mark that says its setting.
    marks = layers(figure, "point")[0][1]
    assert len(marks) == 3 * (3 + 3 + 3 + 2) and {row["setting"] for row in marks} == {row["run"] for row in singles}
    texts = {row["text"] for _, data in layers(figure, "text") for row in data}
    assert "every frontier reaches 4" in texts and texts & {"0.1", "0.4", "1", "4"}
    assert len(figure.caption.split()) < 40


def test_gold_beside_proxy_by_hand(tmp_path: Path) -> None:
    # Two evaluations at 1 nat are one point: a seed's mean, then the mean of seeds. Gold 1 and 3, then 3 and 5: 3, with
    # a standard error of (4 - 2) / sqrt(2) / sqrt(2) over the two seeds.
    for seed, more in ((0, 0.0), (1, 2.0)):
        gold = [5.0, 6.0 + more, 8.0 + more, 5.5]
        write(tmp_path, "apa", seed, rows([0.0, 1.0, 1.0, 4.0], [0.0, 1.0, 2.0, 4.0], gold=gold))
    comparison = sweep(tmp_path)
    (setting,) = comparison.settings
    found = binned_gains(setting, 4.0, gold=True)
    assert found is not None
    assert (found.kl.tolist(), found.mean.tolist()) == (pytest.approx([1.0, 4.0]), pytest.approx([3.0, 0.5]))
    assert found.error.tolist() == pytest.approx([1.0, 0.0])
    proxy = binned_gains(setting, 4.0, gold=False)
    assert proxy is not None and proxy.mean.tolist() == pytest.approx([1.5, 4.0])
    (figure,) = (one for one in charts(findings(comparison)) if one.id == "overoptimization")
    (panel,) = figure.panels
    drawn = [row for _, data in layers(figure, "point")[:2] for row in data]
    assert {(row["quantity"], row["kl"], row["mean"]) for row in drawn} == {
        ("reward model", 1.0, 1.5),
        ("reward model", 4.0, 4.0),
        ("gold", 1.0, 3.0),
        ("gold", 4.0, 0.5),
    }
    assert panel.title == "apa" and len(figure.caption.split()) < 40
    # One scale for both, with room so that no mark is cut.
    low, high = layers(figure, "line")[0][0]["encoding"]["y"]["scale"]["domain"]
    assert low < 0.0 and high > 4.0
