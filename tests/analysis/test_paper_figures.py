"""From made-up run folders with known numbers to what the figures of the paper show, read back from the drawing."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from analysis.load import SweepFolderError
from analysis.paper_figures.contents import Contents, gather
from analysis.paper_figures.drawing import line_looks, log_threshold, mismatches, panel_rows, row_title, title
from analysis.paper_figures.table import FIGURES
from tests.analysis.made_up import config, rows, write_run


def add(sweep: Path, algo: str, seed: int, kl: list[float], reward: list[float], **more: Any) -> None:
    """One run, 64 responses and 2 steps between evaluations; `more` are changes of its config and `write_run`'s
    `status`, `name`, `gold` and `samples_per_row`."""
    status = more.pop("status", "finished")
    # As with the hash at the end of a real id, no two runs have the same.
    name = more.pop("name", f"{algo}-s{seed}-{sweep.name}{len(list(sweep.glob('*')))}")
    made = rows(kl, reward, gold=more.pop("gold", None), samples_per_row=more.pop("samples_per_row", 64))
    changes = {"dataset__name": "hh", "model__name": "pythia_125m", **more}
    write_run(sweep, name, config(algo, seed, **changes), made, status=status)


def fill_hh(sweep: Path, **more: Any) -> None:
    """Three algorithms on two seeds, one setting each."""
    for place, algo in enumerate(("apa", "ppo", "awr")):
        for seed in (0, 100):
            add(sweep, algo, seed, [0, 1, 2 + place], [0, 1 + seed / 100, 2 + place], **more)


def fill_lambdas(sweep: Path, lams: list[float]) -> None:
    for lam in lams:
        add(sweep, "apa", 0, [0, 1 / lam, 2 / lam], [0, 1, 1 + 1 / lam], algo__lam=lam)


def fill_controllers(sweep: Path, kls: dict[str, float]) -> None:
    for controller, kl in kls.items():
        control = {"controller": controller, "init_coef": 0.05, "target": 6.0}
        add(sweep, "ppo", 0, [0, kl / 2, kl], [0, 1, 2], algo__kl=control)


def fill_offline(sweep: Path, **more: Any) -> None:
    for algo in ("ilql", "awr", "apa"):
        for seed in (0, 1):
            add(sweep, algo, seed, [0, 1, 1 + seed], [0, 0.5, 0.5 * seed], stage__name="offline", **more)


def contents_of(number: int, *folders: Path, **choice: Any) -> Contents:
    return gather(FIGURES[number], folders, **choice)


def points(contents: Contents, quantity: str, name: str, row: int = 0) -> list[tuple[float, ...]]:
    """(x, low, mean, high) of a line and its band."""
    data = panel_rows(contents.rows[row], quantity, contents.over)
    found = data[data["line"] == name]
    return list(found[["x", "low", "mean", "high"]].itertuples(index=False, name=None))


def legend(number: int, contents: Contents) -> list[str]:
    return list(line_looks(FIGURES[number], contents.rows))


def styles(number: int, contents: Contents) -> set[tuple[Any, ...]]:
    """Dash pattern and marker of each line, which grey print keeps."""
    return {(look.dash, look.shape) for look in line_looks(FIGURES[number], contents.rows).values()}


def test_lines_are_means_and_bands_run_from_minimum_to_maximum(tmp_path: Path) -> None:
    for seed, reward in ((0, [0.0, 1.0, 2.0]), (100, [0.0, 3.0, 2.5]), (1000, [0.3, 2.0, 6.0])):
        add(tmp_path, "apa", seed, [0, 1 + seed / 100, 4], reward)
    contents = contents_of(3, tmp_path)
    assert points(contents, "reward", "APA") == [(0, 0, pytest.approx(0.1), 0.3), (64, 1, 2, 3), (128, 2, 3.5, 6)]
    kl = [(0, 0, 0, 0), (64, 1, pytest.approx(14 / 3, rel=1e-4), 11), (128, 4, 4, 4)]
    assert points(contents, "kl", "APA") == kl
    assert contents.over == "samples" and row_title(contents.rows[0]) == "Here: pythia_125m on hh, 3 seeds"
    assert contents.gaps == (
        "figure 3 shows 1B; the model of these runs is pythia_125m",
        "figure 3 shows ppo; the folder has no finished run of it",
        "figure 3 shows awr; the folder has no finished run of it",
    )


def test_a_seed_that_is_shorter_or_missing(tmp_path: Path) -> None:
    add(tmp_path, "apa", 0, [0, 2, 4], [0, 2, 4])
    add(tmp_path, "apa", 1, [0, 8], [0, 8], name="short")
    add(tmp_path, "apa", 2, [0, 9, 9], [0, 9, 9], name="broken", status="failed")
    contents = contents_of(4, tmp_path)
    assert points(contents, "reward", "APA") == [(0, 0, 0, 0), (64, 2, 5, 8), (128, 4, 4, 4)]
    assert contents.left_out == (
        f"left out: {tmp_path.name}/broken: failed",
        f"APA: {tmp_path.name}/short ends at 64 of 128; from there on it is not counted",
    )


def test_between_its_own_evaluations_a_run_is_linear(tmp_path: Path) -> None:
    add(tmp_path, "apa", 0, [0, 2, 4], [0, 2, 4], samples_per_row=32)
    add(tmp_path, "apa", 1, [0, 8], [0, 8])
    assert points(contents_of(4, tmp_path), "reward", "APA") == [(0, 0, 0, 0), (32, 2, 3, 4), (64, 4, 6, 8)]


def test_models_are_rows_in_the_papers_order(tmp_path: Path) -> None:
    fill_hh(tmp_path / "b", model__name="pythia_1b")
    fill_hh(tmp_path / "a", model__name="pythia_125m")
    contents = contents_of(3, tmp_path / "b", tmp_path / "a")
    assert [row.title for row in contents.rows] == ["pythia_125m on hh", "pythia_1b on hh"]
    assert contents.gaps == () and contents.left_out == () and legend(3, contents) == ["APA", "PPO", "AWR"]
    assert points(contents, "reward", "PPO", row=1) == [(0, 0, 0, 0), (64, 1, 1.5, 2), (128, 3, 3, 3)]


def test_an_algorithm_may_be_missing_for_one_model_alone(tmp_path: Path) -> None:
    add(tmp_path, "apa", 0, [0, 1], [0, 1], model__name="gpt_neo_2_7b", dataset__name="tldr")
    add(tmp_path, "ppo", 0, [0, 1], [0, 1], model__name="gpt_neo_2_7b", dataset__name="tldr")
    add(tmp_path, "apa", 0, [0, 1], [0, 1], model__name="tldr_6b", dataset__name="tldr")
    contents = contents_of(5, tmp_path)
    assert contents.gaps == (
        "figure 5 shows ppo; there is no finished run of it for tldr_6b on tldr",
        "figure 5 shows awr; the folder has no finished run of it",
    )


def test_other_data_sets_and_algorithms(tmp_path: Path) -> None:
    fill_hh(tmp_path / "letters", dataset__name="letters", model__name="tiny")
    contents = contents_of(6, tmp_path / "letters")
    assert contents.gaps == (
        "figure 6 shows the data set HH; these runs are on letters",
        "figure 6 shows Dolly-v2-7B; the model of these runs is tiny",
    )
    assert contents.left_out == ("left out: awr: figure 6 does not show it",)
    fill_hh(tmp_path / "hh", model__name="dolly_7b")
    contents = contents_of(6, tmp_path / "letters", tmp_path / "hh")
    assert [row.title for row in contents.rows] == ["dolly_7b on hh"] and contents.gaps == ()
    assert contents.left_out[-1] == "left out: runs on letters: figure 6 shows HH"


def test_settings_are_chosen_at_matched_kl(tmp_path: Path) -> None:
    for lam, kl in ((0.1, 9.0), (1.0, 3.0)):
        add(tmp_path, "apa", 0, [0, kl], [0, kl], algo__lam=lam)
        add(tmp_path, "awr", 0, [0, 4 * kl], [0, kl], algo__lam=lam)
    add(tmp_path, "ppo", 0, [0, 10], [0, 1])
    contents = contents_of(3, tmp_path)
    assert legend(3, contents) == ["APA", "PPO", "AWR"] and len(contents.chosen) == 1
    assert points(contents, "kl", "APA")[-1][2] == 9 and points(contents, "kl", "AWR")[-1][2] == 12
    assert points(contents_of(3, tmp_path, target_kl=3.0), "kl", "APA")[-1][2] == 3
    contents = contents_of(2, tmp_path, all_settings=True)
    assert legend(2, contents) == ["APA (lam=0.1)", "APA (lam=1)", "PPO", "AWR (lam=0.1)", "AWR (lam=1)"]
    assert contents.chosen == () and len(styles(2, contents)) == 5


def test_figure_2_always_says_how_kl_matches(tmp_path: Path) -> None:
    fill_hh(tmp_path)
    contents = contents_of(2, tmp_path)
    assert "2.00" in contents.chosen[0] and "4.00" in contents.chosen[0]
    assert contents_of(3, tmp_path).chosen == ()
    said = "Here KL at the last evaluation is not matched: the largest is 2.0 times the smallest"
    assert mismatches(contents.rows) == said
    assert title(FIGURES[2]) == "In the form of figure 2: APA, PPO and AWR at similar KL"
    for algo in ("apa", "ppo", "awr"):
        add(tmp_path / "alike", algo, 0, [0, 1, 2], [0, 1, 2])
    assert mismatches(contents_of(2, tmp_path / "alike").rows) == ""


def test_runs_of_several_folders_are_joined_and_each_counted_once(tmp_path: Path) -> None:
    add(tmp_path / "a", "apa", 0, [0, 1], [0, 1], name="apa-s0-x")
    add(tmp_path / "a", "apa", 1, [0, 1], [0, 9], name="apa-s1-x", status=None)
    add(tmp_path / "b", "apa", 0, [0, 1], [0, 1], name="apa-s0-x")
    add(tmp_path / "b", "apa", 1, [0, 1], [0, 3], name="apa-s1-x")
    add(tmp_path / "b", "apa", 0, [0, 1], [0, 7], name="apa-s0-y")
    contents = contents_of(4, tmp_path / "a", tmp_path / "b", tmp_path / "b" / "apa-s1-x")
    assert points(contents, "reward", "APA")[-1] == (64, 1, 2, 3)
    assert sorted(contents.left_out) == [
        "left out: a/apa-s1-x: the same run as b/apa-s1-x",
        "left out: b/apa-s0-x: the same run as a/apa-s0-x",
        "left out: b/apa-s0-y: the same algorithm, settings and seed as a/apa-s0-x",
        "left out: b/apa-s1-x: the same run as b/apa-s1-x",
    ]


def test_lambdas_are_lines_in_order(tmp_path: Path) -> None:
    lams = [10.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 0.05, 20.0]
    fill_lambdas(tmp_path, lams)
    contents = contents_of(7, tmp_path)
    assert legend(7, contents) == [f"\N{GREEK SMALL LETTER LAMDA} = {lam:g}" for lam in sorted(lams)]
    assert points(contents, "kl", "\N{GREEK SMALL LETTER LAMDA} = 0.1")[-1][2] == 20
    colours = {look.colour for look in line_looks(FIGURES[7], contents.rows).values()}
    assert len(colours) == 9 and contents.gaps == ()


def test_gaps_of_the_lambda_figure(tmp_path: Path) -> None:
    fill_lambdas(tmp_path, [0.3])
    gaps = contents_of(7, tmp_path).gaps
    assert gaps == ("figure 7 shows several lambdas; the runs of apa have 0.3 alone",)
    add(tmp_path, "apa", 0, [0, 1], [0, 1], algo__lam=0.3, optimization__learning_rate=0.5)
    contents = contents_of(7, tmp_path)
    assert contents.gaps[-1] == "the lines do not differ in lambda alone, but in optimization.learning_rate too"
    assert len(legend(7, contents)) == 2


def test_controllers_are_lines(tmp_path: Path) -> None:
    fill_controllers(tmp_path, {"adaptive": 4.0, "none": 400.0, "fixed": 10.0})
    contents = contents_of(8, tmp_path)
    names = ["no KL control", "fixed KL coefficient 0.05", "adaptive KL control (from 0.05, target 6 nats)"]
    assert legend(8, contents) == names and contents.gaps == ()
    assert points(contents, "kl", names[0]) == [(0, 0, 0, 0), (64, 200, 200, 200), (128, 400, 400, 400)]
    # From a tenth of the lowest peak on, 4 nats, or so.
    assert log_threshold(panel_rows(contents.rows[0], "kl", "samples")) == 1.0 and len(styles(8, contents)) == 3


def test_gaps_of_the_controller_figure(tmp_path: Path) -> None:
    fill_controllers(tmp_path, {"adaptive": 4.0, "none": 100.0})  # 25 times
    contents = contents_of(8, tmp_path)
    gap = "figure 8 shows ppo with fixed KL coefficient; no finished run has algo.kl.controller=fixed"
    assert contents.gaps == (gap,) and log_threshold(panel_rows(contents.rows[0], "kl", "samples")) is None


@pytest.mark.parametrize(("samples", "over", "last"), [(0, "step", 4), (50, "samples", 100)])
def test_offline_runs(tmp_path: Path, samples: int, over: str, last: int) -> None:
    fill_offline(tmp_path, samples_per_row=samples)
    add(tmp_path, "ppo", 0, [0, 1], [0, 1])  # online
    contents = contents_of(9, tmp_path)
    assert legend(9, contents) == ["ILQL", "AWR", "APA"] and contents.over == over
    assert points(contents, "reward", "ILQL")[-1] == (last, 0, 0.25, 0.5)
    assert contents.gaps == ("figure 9 shows 1B; the model of these runs is pythia_125m",)
    with pytest.raises(SweepFolderError, match="needs finished runs of apa or ppo or awr; there is none"):
        contents_of(3, tmp_path / f"ilql-s0-{tmp_path.name}0")


def test_gold_is_a_panel_of_its_own(tmp_path: Path) -> None:
    add(tmp_path / "gold", "apa", 0, [0, 1], [0, 1], gold=[0.5, 0.25])
    assert points(contents_of(3, tmp_path / "gold"), "gold_reward", "APA")[-1] == (64, 0.25, 0.25, 0.25)


def test_title_claims_no_data_set_of_the_paper(tmp_path: Path) -> None:
    fill_hh(tmp_path, dataset__name="letters")
    assert title(FIGURES[3]) == "In the form of figure 3: APA, PPO and AWR"
    assert row_title(contents_of(3, tmp_path).rows[0]) == "Here: pythia_125m on letters, 2 seeds"
    for one in FIGURES.values():
        assert not any(name in one.shows for name in ("HH", "TLDR", "StackExchange", "LLaMA", "Dolly", "B", "125M"))


def test_evaluations_without_a_number_are_a_note(tmp_path: Path) -> None:
    for seed, gaps in enumerate((1, 2)):
        reward = [0.0, *[float("nan")] * gaps, *[1.0] * (3 - gaps)]
        add(tmp_path, "apa", seed, [0, 1, 2, 3], reward, name=f"r{seed}")
    lacking = "no finite KL, reward or reward of one half of the prompts, and no point"
    assert contents_of(4, tmp_path).left_out == (
        f"note: {tmp_path.name}/r0 is drawn, but 1 evaluation has {lacking}",
        f"note: {tmp_path.name}/r1 is drawn, but 2 evaluations have {lacking}",
    )


def test_names_of_models_and_data_sets() -> None:
    """Which figure a model's name belongs to."""
    names = {
        "pythia_125m": "125M",
        "pythia_1b": "1B",
        "pythia_6b": "6B",
        "gpt_neo_2_7b": "2.7B",
        "dolly_v2_7b": "Dolly",
    }
    for (name, model), figure in product(names.items(), FIGURES.values()):
        for expected in figure.models:
            assert expected.matches(name) == expected.name.startswith(model), (name, expected)
