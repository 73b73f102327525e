"""The specs of the page's charts: the numbers in them, what is left out of them, and that Vega-Lite draws them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.charts import charts
from analysis.charts_base import MOST_GREY, ChartFigure, rows, scene, script_json
from analysis.charts_data import frontier_steps, samples_band, square_root_ticks, thinned
from analysis.charts_samples import curves_chart
from analysis.findings import Findings, findings
from analysis.load import RunRecord, label_runs, make_record
from analysis.looks import MOST_RUNS, MOST_SETTINGS, drawn_settings, looks
from analysis.summary import Comparison, compare
from tests.analysis.made_up import config
from tests.analysis.made_up import rows as evaluations


def record(algo: str, seed: int, kl: list[float], reward: list[float], **changes: Any) -> RunRecord:
    """A run in memory; its gold reward is half its reward."""
    made = evaluations(kl, reward, gold=[value / 2 for value in reward])
    name = f"{algo}-s{seed}-" + "-".join(map(str, changes.values()))
    return make_record(Path(name), config(algo, seed, **changes), made, {"status": "finished"}, [], [])


def comparison_of(settings: int, seeds: int, algo: str = "apa") -> Comparison:
    """Settings that differ in lam; the i-th gains i * sqrt(KL)."""
    kl = [0.0, 0.25, 1.0, 2.25, 4.0]
    records = [
        record(algo, seed, kl, [index * math.sqrt(one) + 0.01 * seed for one in kl], algo__lam=float(index))
        for index in range(1, settings + 1)
        for seed in range(seeds)
    ]
    return compare(label_runs(records))


@pytest.fixture(scope="module")
def ablation() -> Findings:
    return findings(comparison_of(settings=3, seeds=2))


def parts(spec: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """The layers with marks of a kind."""
    return (layer for layer in spec["layer"] if layer["mark"]["type"] == kind)


def values(figure: ChartFigure, kind: str, chart: int = 0) -> list[dict[str, Any]]:
    """The data of the first layer of a kind."""
    return next(parts(figure.charts[chart].spec, kind))["data"]["values"]


def test_each_finding_has_its_charts(ablation: Findings) -> None:
    made = charts(ablation)
    titles = [(figure.id, len(figure.charts)) for figure in made]
    assert titles == [("frontier", 1), ("curves", 3), ("overoptimization", 1), ("ablation-0", 3)]
    assert charts(findings(compare([]))) == []


def test_frontier_line_is_the_comparison_own(ablation: Findings) -> None:
    figure = charts(ablation)[0]
    for row in values(figure, "line"):
        setting = ablation.comparison.settings[row["s"]]
        rewards = [run.evaluations.reward[0] + run.curve.gain(row["k"]) for run in setting.runs]
        assert (row["m"], row["a"], row["b"]) == pytest.approx((np.mean(rewards), min(rewards), max(rewards)), abs=1e-3)
    # Every evaluation is a mark: 3 settings of 2 seeds and 5 evaluations.
    marks = values(figure, "point")
    assert len(marks) == 30 and {row["step"] for row in marks} == {0, 2, 4, 6, 8}


def test_steps_of_the_frontier() -> None:
    # sqrt(KL) goes 0, 1, 2 and back to 1, reward 0, 1, 1, 3, at steps 0, 2, 4, 6. Within u = 0.5 the best is half-way
    # to the second evaluation, at step 1; within u = 1 it is the last one, and so beyond. 0.5 is one of the points put
    # between two evaluations.
    run = compare([record("apa", 0, [0.0, 1.0, 4.0, 1.0], [0.0, 1.0, 1.0, 3.0])]).settings[0].runs[0]
    assert frontier_steps(run, np.array([0.0, 0.25, 1.0, 4.0, 9.0])).tolist() == [0.0, 1.0, 6.0, 6.0, 6.0]
    # Reward that only falls: the initial policy holds the frontier.
    run = compare([record("apa", 0, [0.0, 1.0], [0.0, -1.0])]).settings[0].runs[0]
    assert frontier_steps(run, np.array([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_step_labels_do_not_touch(ablation: Findings) -> None:
    halo, labels = list(parts(charts(ablation)[0].charts[0].spec, "text"))[-2:]
    assert halo["mark"]["stroke"] == "var(--paper)" and halo["data"] == labels["data"]
    found = labels["data"]["values"]
    assert found and all(row["text"].startswith("step ") for row in found)
    places = [(math.sqrt(row["k"]) / 2 * 310, row["m"] / 6 * 340) for row in found]
    close = [
        (a, b) for i, a in enumerate(places) for b in places[:i] if abs(a[0] - b[0]) < 40 and abs(a[1] - b[1]) < 12
    ]
    assert close == []


def test_mean_over_the_runs_that_got_as_far() -> None:
    short, long = record("apa", 0, [0, 1], [0, 1]), record("apa", 1, [0, 1, 2], [0, 3, 5])
    setting = compare([short, long]).settings[0]
    over = samples_band(setting, "reward")
    assert over is not None and over.x.tolist() == [0, 64, 128]
    assert (over.mean.tolist(), over.low.tolist(), over.high.tolist()) == ([0, 2, 5], [0, 1, 5], [0, 3, 5])
    assert samples_band(setting, "gold_reward", points=2) is not None
    assert thinned(np.arange(100), 5).tolist() == [0, 25, 50, 74, 99]


def test_ablation_chart_holds_the_means(ablation: Findings) -> None:
    figure = charts(ablation)[-1]
    points = ablation.ablations[0].points
    for chart, of in enumerate(
        (lambda p: p.setting.reward_after, lambda p: p.setting.kl, lambda p: p.hypervolume),
    ):
        found = values(figure, "line", chart)
        assert [(row["x"], row["m"]) for row in found] == [(p.value, pytest.approx(of(p).mean, 1e-4)) for p in points]
    assert figure.charts[0].spec["layer"][0]["encoding"]["x"]["scale"]["type"] == "linear"  # 1 to 3: no decades
    values_of = {1.0: 0.1, 2.0: 1.0, 3.0: 10.0}
    kl = [0.0, 1.0]
    records = [record("apa", 0, kl, [0, lam], algo__lam=values_of[lam]) for lam in values_of]
    wide = charts(findings(compare(label_runs(records))))[-1]
    x = wide.charts[0].spec["layer"][0]["encoding"]["x"]
    # By parity, as on other axes, every second label of a logarithmic axis goes where any two would touch.
    assert (x["scale"]["type"], x["axis"]["values"], x["axis"]["labelOverlap"]) == ("log", [0.1, 1.0, 10.0], "greedy")


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        (lambda d: d * (1.0 - 0.5 * np.log(d)), "apa is highest at 7.4 nats"),  # d = exp(1 / 0.5 - 1), squared
        (lambda d: d * (1.0 + 0.5 * np.log(d)), "apa still rises where its runs end"),
        (lambda d: -d * (1.0 + 0.2 * np.log(d)), "apa only falls"),
    ],
)
def test_what_the_gold_line_does_is_said(gold: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    kl = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    runs = []
    for seed, more in enumerate((0.99, 1.0, 1.01)):
        made = evaluations([0.0, *kl], [0.0, *kl], gold=[0.0, *(more * gold(np.sqrt(kl))).tolist()])
        runs.append(make_record(Path(f"apa{seed}"), config("apa", seed), made, {"status": "finished"}, [], []))
    (three,) = (one for one in charts(findings(compare(runs))) if one.id == "overoptimization")
    (single,) = (one for one in charts(findings(compare(runs[:1]))) if one.id == "overoptimization")
    assert said in three.charts[0].description
    assert "apa bends no more than its seeds differ" in single.charts[0].description


def test_an_ablation_of_which_no_seed_has_every_value() -> None:
    runs = [record("apa", seed, [0, 1], [0, 1], algo__lam=float(seed + 1)) for seed in (0, 1)]
    figure = charts(findings(compare(label_runs(runs))))[-1]
    assert "apa none, since no seed has a run of every value" in figure.caption


def test_of_many_settings_the_best_are_told_apart() -> None:
    comparison = comparison_of(settings=MOST_SETTINGS + 3, seeds=1)
    drawn, others = drawn_settings(comparison.settings)
    assert len(drawn) == MOST_SETTINGS and len(others) == 3
    worst = max(setting.headline.kl_efficiency.mean for setting in others)
    assert worst < min(setting.headline.kl_efficiency.mean for setting in drawn)
    figure = charts(findings(comparison))[0]
    assert [entry.name for entry in figure.legend] == [setting.name for setting in drawn]
    assert f"Of 15 settings the {MOST_SETTINGS} of the highest KL efficiency are told apart" in figure.caption
    grey = values(figure, "line")
    assert {row["s"] for row in grey} == {12, 13, 14}
    # One algorithm alone: no two lines look alike.
    pairs = [(look.colour, look.dash, look.marker) for look in looks(drawn)]
    assert len(set(pairs)) == len(pairs)


def test_of_very_many_settings_not_all_are_grey() -> None:
    many = scene(comparison_of(settings=MOST_SETTINGS + MOST_GREY + 3, seeds=1).settings)
    assert len(many.others) == MOST_GREY and many.undrawn == 3
    assert f"Of {MOST_SETTINGS + MOST_GREY + 3} settings" in many.remarks()
    assert f"the next {MOST_GREY} are grey" in many.remarks()


def test_of_many_runs_means_and_bands_alone() -> None:
    few, many = comparison_of(2, MOST_RUNS // 2), comparison_of(2, MOST_RUNS // 2 + 1)
    assert scene(few.settings).with_runs and not scene(many.settings).with_runs
    figure = curves_chart(many.settings)
    assert "too many runs to draw one by one" in figure.caption
    parameters = {one["name"]: one["value"] for one in figure.charts[0].spec["params"]}
    assert parameters["runs"] == [] and len(list(parts(figure.charts[0].spec, "line"))) == 1


def test_a_known_algorithm_keeps_its_look() -> None:
    both = compare([record("apa", 0, [0, 1], [0, 1]), record("ppo", 0, [0, 1], [0, 1])])
    alone = compare([record("ppo", 0, [0, 1], [0, 1])])
    assert looks(both.settings)[1] == looks(alone.settings)[0]


def test_json_inside_a_script_element() -> None:
    text = script_json({"run": "</script><script>alert(1)</script>"})
    assert "<" not in text and json.loads(text) == {"run": "</script><script>alert(1)</script>"}
    with pytest.raises(ValueError):
        script_json([math.nan])
    assert rows(s=1, x=np.array([1.0, np.nan, 2.0]), m=np.array([np.inf, 1.0, 1.23456789])) == [
        {"s": 1, "x": 2.0, "m": 1.2346}
    ]


def test_ticks_lie_on_the_axis() -> None:
    # Up to sqrt(KL) = 3 in six steps: 0.25, 1, 2.25, 4, 6.25 and 9 nats.
    assert square_root_ticks(3 * 1.04) == [0, 0.2, 1, 2, 4, 6, 9]


def all_charts() -> list[tuple[str, dict[str, Any]]]:
    small = charts(findings(comparison_of(settings=3, seeds=2)))
    large = charts(findings(comparison_of(settings=MOST_SETTINGS + 1, seeds=5)))
    return [
        (f"{size} {figure.id} {place}", chart.spec)
        for size, figures in (("small", small), ("large", large))
        for figure in figures
        for place, chart in enumerate(figure.charts)
        if size == "small" or place == 0
    ]


@pytest.mark.parametrize(("name", "spec"), all_charts(), ids=[name for name, _ in all_charts()])
def test_vega_lite_takes_and_draws_the_spec(name: str, spec: dict[str, Any]) -> None:
    altair = pytest.importorskip("altair", reason="pip install altair vl-convert-python")
    converter = pytest.importorskip("vl_convert", reason="pip install altair vl-convert-python")
    altair.LayerChart.from_dict(spec, validate=True)
    svg = converter.vegalite_to_svg(json.loads(script_json(spec)))
    assert svg.count("<path") > 10 and "NaN" not in svg
