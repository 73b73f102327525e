"""The specs of the page's charts: the numbers in them, what is left out of them, and that Vega-Lite draws them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.ablation import ABLATION_QUANTITIES
from analysis.charts import charts, curves_figure
from analysis.charts_data import evaluations_band, frontier_steps, square_root_ticks, thinned
from analysis.charts_scene import MOST_GREY, scene
from analysis.compared import Comparison
from analysis.drawing import Figure, frame, page_spec, save_figure
from analysis.findings import Findings, findings
from analysis.load import RunRecord, label_runs, make_record
from analysis.looks import MOST_RUNS, MOST_SETTINGS, drawn_settings, looks
from analysis.page import script_json
from analysis.summary import compare
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


def layers(figure: Figure, kind: str, panel: int = 0) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(layer, its data) of each layer with marks of a kind, as the page has them."""
    spec = page_spec(figure.panels[panel])
    found = []

    def collect(part: dict[str, Any]) -> None:
        for layer in part.get("layer", []):
            collect(layer)
        if part.get("mark", {}).get("type") == kind:
            found.append((part, spec["datasets"][part["data"]["name"]]))

    collect(spec)
    return found


def test_each_finding_has_its_charts(ablation: Findings) -> None:
    made = charts(ablation)
    titles = [(figure.id, len(figure.panels)) for figure in made]
    assert titles == [("frontier", 1), ("curves", 3), ("overoptimization", 3), ("over_algo.lam", 3)]
    assert charts(findings(compare([]))) == []


def test_frontier_line_is_the_comparison_own(ablation: Findings) -> None:
    figure = charts(ablation)[0]
    settings = {setting.name: setting for setting in ablation.comparison.settings}
    for row in layers(figure, "line")[0][1]:
        runs = settings[row["line"]].runs
        rewards = [run.evaluations.initial_reward + run.gain(row["kl"]) for run in runs]
        error = np.std([run.gain(row["kl"]) for run in runs], ddof=1) / math.sqrt(2)  # of the mean of two seeds
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(
            (np.mean(rewards), np.mean(rewards) - error, np.mean(rewards) + error), abs=1e-3
        )
    # Every evaluation is a mark: 3 settings of 2 seeds and 5 evaluations.
    marks = layers(figure, "point")[0][1]
    assert len(marks) == 30 and {row["step"] for row in marks} == {0, 2, 4, 6, 8}


def test_a_line_ends_where_the_first_of_its_runs_did() -> None:
    short, long = record("apa", 0, [0, 1], [0, 1]), record("apa", 1, [0, 1, 4], [0, 3, 4])
    figure = charts(findings(compare([short, long, record("ppo", 0, [0, 4], [0, 2])])))[0]
    ((_, lines),) = layers(figure, "line")
    ends = {row["line"]: row for row in lines}  # the last row of each
    assert [(line, row["kl"], row["mean"]) for line, row in ends.items()] == [("apa", 1, 2.0), ("ppo", 4, 2.0)]
    # Evaluations beyond are marked all the same, and the rule stands at the KL of the comparison.
    assert [row["kl"] for row in layers(figure, "point")[0][1]] == [0, 1, 0, 1, 4, 0, 4]
    ((_, rule),) = layers(figure, "rule")
    assert rule == [{"kl": 1.0, "text": "every run reached 1"}]


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
    (halo, data), (_, labels) = layers(charts(ablation)[0], "text")[-2:]
    assert halo["mark"]["style"] == "halo" and data == labels
    assert labels and all(row["text"].startswith("step ") for row in labels)
    places = [(math.sqrt(row["kl"]) / 2 * 310, row["mean"] / 6 * 340) for row in labels]
    close = [
        (a, b) for i, a in enumerate(places) for b in places[:i] if abs(a[0] - b[0]) < 40 and abs(a[1] - b[1]) < 12
    ]
    assert close == []


def test_mean_over_the_runs_that_got_as_far() -> None:
    short, long = record("apa", 0, [0, 1], [0, 1]), record("apa", 1, [0, 1, 2], [0, 3, 5])
    setting = compare([short, long]).settings[0]
    over = evaluations_band(setting.runs, "reward", "samples")
    assert over is not None and over.x.tolist() == [0, 64, 128]
    assert (over.mean.tolist(), over.low.tolist(), over.high.tolist()) == ([0, 2, 5], [0, 1, 5], [0, 3, 5])
    assert evaluations_band(setting.runs, "gold_reward", "samples", points=2) is not None
    assert thinned(np.arange(100), 5).tolist() == [0, 25, 50, 74, 99]


def test_ablation_chart_holds_the_means(ablation: Findings) -> None:
    figure = charts(ablation)[-1]
    points = ablation.ablations[0].points
    for panel, of in enumerate(ABLATION_QUANTITIES.values()):
        ((line, found),) = layers(figure, "line", panel)
        expected = [(p.value, pytest.approx(of(p).mean, 1e-4)) for p in points]
        assert [(row["x"], row["mean"]) for row in found] == expected
    assert line["encoding"]["x"]["scale"]["type"] == "linear"  # 1 to 3: no decades
    values_of = {1.0: 0.1, 2.0: 1.0, 3.0: 10.0}
    records = [record("apa", 0, [0.0, 1.0], [0, lam], algo__lam=values_of[lam]) for lam in values_of]
    ((line, _),) = layers(charts(findings(compare(label_runs(records))))[-1], "line")
    x = line["encoding"]["x"]
    # By parity, as on other axes, every second label of a logarithmic axis goes where any two would touch.
    assert (x["scale"]["type"], x["axis"]["values"], x["axis"]["labelOverlap"]) == ("log", [0.1, 1.0, 10.0], "greedy")


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        (lambda d: d * (1.0 - 0.5 * np.log(d)), "Gold is highest at 7.4 nats"),  # d = exp(1 / 0.5 - 1), squared
        (lambda d: d * (1.0 + 0.5 * np.log(d)), "Gold still rises where its runs end"),
        (lambda d: -d * (1.0 + 0.2 * np.log(d)), "Gold only falls"),
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
    assert said in three.panels[0].description
    assert "Gold bends no more than its seeds differ" in single.panels[0].description


def test_of_many_settings_the_best_are_told_apart() -> None:
    comparison = comparison_of(settings=MOST_SETTINGS + 3, seeds=1)
    drawn, others = drawn_settings(comparison.settings)
    assert len(drawn) == MOST_SETTINGS and len(others) == 3
    worst = max(setting.headline.kl_efficiency.mean for setting in others)
    assert worst < min(setting.headline.kl_efficiency.mean for setting in drawn)
    figure = charts(findings(comparison))[0]
    assert list(figure.looks) == [setting.name for setting in drawn]
    assert f"Of 15 settings the best {MOST_SETTINGS} are told apart" in figure.caption
    grey = layers(figure, "line")[0][1]
    assert {row["line"] for row in grey} == {setting.name for setting in others}
    # One algorithm alone: no two lines look alike.
    pairs = [(look.colour, look.dash, look.shape) for look in looks(drawn)]
    assert len(set(pairs)) == len(pairs)


def test_of_very_many_settings_not_all_are_grey() -> None:
    many = scene(comparison_of(settings=MOST_SETTINGS + MOST_GREY + 3, seeds=1).settings)
    assert len(many.others) == MOST_GREY and many.undrawn == 3
    assert f"Of {MOST_SETTINGS + MOST_GREY + 3} settings" in many.caption("")
    assert f"the next {MOST_GREY} are grey" in many.caption("")


def test_of_many_runs_means_and_bands_alone() -> None:
    few, many = comparison_of(2, MOST_RUNS // 2), comparison_of(2, MOST_RUNS // 2 + 1)
    assert scene(few.settings).with_runs and not scene(many.settings).with_runs
    figure = curves_figure(many.settings)
    assert "Too many runs to draw one by one" in figure.caption and len(layers(figure, "line")) == 1


def test_a_known_algorithm_keeps_its_look() -> None:
    both = compare([record("apa", 0, [0, 1], [0, 1]), record("ppo", 0, [0, 1], [0, 1])])
    alone = compare([record("ppo", 0, [0, 1], [0, 1])])
    assert looks(both.settings)[1] == looks(alone.settings)[0]


def test_json_inside_a_script_element() -> None:
    text = script_json({"run": "</script><script>alert(1)</script>"})
    assert "<" not in text and json.loads(text) == {"run": "</script><script>alert(1)</script>"}
    with pytest.raises(ValueError):
        script_json([math.nan])
    kept = frame(line="a", x=np.array([1.0, np.nan, 2.0]), mean=np.array([np.inf, 1.0, 1.23456789]))
    assert kept.to_dict("records") == [{"line": "a", "x": 2.0, "mean": 1.2346}]


@pytest.mark.parametrize("end", [0.003, 0.5, 2.65, 9.0, 40.0, 3000.0])
def test_ticks_are_round_and_keep_a_distance(end: float) -> None:
    ticks = square_root_ticks(end)
    assert ticks[0] == 0 and ticks[-1] <= end and 4 <= len(ticks) <= 10
    assert all(float(f"{tick:.0e}") == tick for tick in ticks)
    assert min(np.diff(np.sqrt(ticks))) >= math.sqrt(end) / 9


@pytest.mark.parametrize("settings", [3, MOST_SETTINGS + 1])
def test_vega_lite_takes_and_draws_every_chart(tmp_path: Path, settings: int) -> None:
    """Of many settings the first, which draws the others in grey."""
    altair = pytest.importorskip("altair")
    for figure in charts(findings(comparison_of(settings=settings, seeds=2)))[: None if settings == 3 else 1]:
        for panel in figure.panels:
            altair.LayerChart.from_dict(page_spec(panel), validate=True)
        png, svg = save_figure(figure, tmp_path, figure.file)
        drawn = svg.read_text(encoding="utf-8")
        assert png.read_bytes().startswith(b"\x89PNG") and drawn.count("<path") > 10 and "NaN" not in drawn
        assert figure.title in drawn and all(name in drawn for name in figure.looks)
