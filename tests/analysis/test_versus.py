"""`python -m analysis compare` and the choice of settings at matched KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.load import load_sweep
from analysis.matched import matched_settings
from analysis.summary import compare
from analysis.versus import compare_folders
from tests.analysis.made_up import config, rows, write_run


def write(sweep: Path, algo: str, seed: int, kl: float, reward: float, **changes: Any) -> Path:
    """A straight line in sqrt(KL) from nothing to `reward` at `kl` nats."""
    name = "-".join([algo, f"s{seed}", *(f"{value}" for value in changes.values())])
    return write_run(sweep, name, config(algo, seed, **changes), rows([0, kl], [0, reward]))


def test_gains_within_the_budget_and_within_what_every_run_spent(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "s", "apa", seed, 1.0, 2.0 + seed)  # E(4): up to 1 nat half of it, then constant
        write(tmp_path / "s", "ppo", seed, 4.0, 3.0 + seed)
    found = compare_folders([tmp_path / "s"])
    at_budget, spent = found.matches
    assert (at_budget.kl, spent.kl) == (4.0, 1.0)
    assert [gain.mean for gain in at_budget.gains] == [3.0, 4.0] and at_budget.short == (3, 0)
    assert [gain.mean for gain in spent.gains] == [3.0, 2.0] and spent.short == (0, 0)
    # sqrt(4) = 2: APA rises to 3 in the first half and stays, PPO rises to 4 all the way.
    assert [one.mean for one in at_budget.efficiencies] == pytest.approx([(1.5 + 3.0) / 2, 2.0])
    ((a, b, gain, efficiency),) = spent.pairs
    assert (a, b, gain.difference, gain.probability) == (
        0,
        1,
        1.0,
        pytest.approx(7.5 / 9),
    )  # 2, 3, 4 against 1.5, 2, 2.5
    assert gain.better is not None and gain.better > 0.5 and efficiency.difference == pytest.approx(0.5)


def test_several_folders_and_single_runs(tmp_path: Path) -> None:
    write(tmp_path / "one", "apa", 0, 4.0, 2.0)
    write(tmp_path / "two", "apa", 0, 4.0, 3.0)
    assert [side.name for side in compare_folders([tmp_path / "one", tmp_path / "two"]).sides] == [
        "one: apa",
        "two: apa",
    ]
    runs = [write(tmp_path / "three", algo, seed, 4.0, 1.0) for algo in ("apa", "ppo") for seed in (0, 1)]
    found = compare_folders(runs)
    assert [(side.name, len(side.setting.runs)) for side in found.sides] == [("apa", 2), ("ppo", 2)]
    assert compare_folders([*runs, runs[0]]).sides[0].setting.seeds == [0, 1]


def test_rewards_of_different_scales_are_said(tmp_path: Path) -> None:
    write(tmp_path / "one", "apa", 0, 4.0, 2.0)
    write(tmp_path / "two", "apa", 0, 4.0, 3.0, dataset__name="hh")
    (note,) = compare_folders([tmp_path / "one", tmp_path / "two"]).notes
    assert note.startswith("Not the same in all runs: dataset.name. Rewards may not be on one scale")
    write(tmp_path / "one", "ppo", 0, 4.0, 2.0, dataset__name="hh")  # within one sweep, too
    assert any("dataset.name" in note for note in compare(load_sweep(tmp_path / "one")).notes)


def test_one_setting_each_at_matched_kl_whatever_it_gained(tmp_path: Path) -> None:
    for lam, kl, reward in ((0.1, 8.0, 9.0), (0.5, 3.0, 1.0), (1.0, 0.5, 5.0)):
        write(tmp_path, "apa", 0, kl, reward, algo__lam=lam)
    for lam, kl in ((0.1, 2.9), (0.2, 20.0)):
        write(tmp_path, "ppo", 0, kl, 1.0, algo__lam=lam)
    settings = compare(load_sweep(tmp_path)).settings
    chosen = matched_settings(settings)
    assert [one.name for one in chosen.settings] == ["apa (lam=0.5)", "ppo (lam=0.1)"]
    assert chosen.target_kl == 3.0 and chosen.ratio == pytest.approx(3.0 / 2.9) and "not matched" not in chosen.text
    asked = matched_settings(settings, 9.0)
    assert [one.name for one in asked.settings] == ["apa (lam=0.1)", "ppo (lam=0.2)"]
    assert "not matched: the largest is 2.5 times the smallest" in asked.text
    found = compare_folders([tmp_path])
    assert len(found.sides) == 2
    assert found.notes[-1].startswith("Settings (of 5 by KL alone, nearest to 3.00 nats, the most at which they match)")
    assert len(compare_folders([tmp_path], all_settings=True).sides) == 5


def test_settings_of_two_sweeps_are_matched_to_one_another(tmp_path: Path) -> None:
    for sweep, algo, kls in (("a", "apa", (1.0, 5.0, 20.0)), ("b", "ppo", (1.1, 5.2, 100.0))):
        for index, kl in enumerate(kls):
            write(tmp_path / sweep, algo, 0, kl, 1.0, algo__lam=0.1 * (index + 1))
    found = compare_folders([tmp_path / "a", tmp_path / "b"])
    assert [side.setting.kl.mean for side in found.sides] == [5.0, 5.2]
    assert "a: apa (lam=0.2) 5.00, b: ppo (lam=0.2) 5.20 nats." in found.notes[-1]


def test_settings_that_never_moved_are_no_match(tmp_path: Path) -> None:
    for algo, kls in (("apa", (0.0, 5.0)), ("ppo", (0.0, 5.2))):
        for index, kl in enumerate(kls):
            write(tmp_path, algo, 0, kl, 1.0, algo__lam=0.1 * (index + 1))
    assert [side.setting.kl.mean for side in compare_folders([tmp_path]).sides] == [5.0, 5.2]


def test_all_settings_of_one_algorithm_alone(tmp_path: Path) -> None:
    for lam in (0.1, 0.2, 0.3):
        write(tmp_path, "apa", 0, 4.0, lam, algo__lam=lam)
    assert len(compare_folders([tmp_path]).sides) == 3


def test_the_smaller_of_two_budgets(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, 9.0, 1.0)
    write(tmp_path, "ppo", 0, 9.0, 1.0, dataset__kl_budgets=[2.0])
    assert compare_folders([tmp_path]).matches[0].kl == 2.0


def test_a_seed_counts_once(tmp_path: Path) -> None:
    """Whatever lets two of its runs be: what does not count as a setting, or copies in two sweeps."""
    for index in range(3):
        changed = config("apa", 0)
        changed["checkpoint"] = {"save_final": ("full", "trained", "none")[index]}
        write_run(tmp_path / "s", f"apa-s0-{index}", changed, rows([0, 4], [0, 1]))
    found = compare(load_sweep(tmp_path / "s"))
    assert [run.record.id for run in found.settings[0].runs] == ["apa-s0-0"]
    assert found.excluded[0].reason == "of the same algorithm, settings and seed as apa-s0-0, which counts"


def test_settings_that_print_alike_stay_apart(tmp_path: Path) -> None:
    for lam in (0.1234567, 0.1234568):
        write(tmp_path, "apa", 0, 4.0, 1.0, algo__lam=lam)
    assert [one.label for one in compare(load_sweep(tmp_path)).settings] == ["lam=0.1234567", "lam=0.1234568"]


@pytest.mark.parametrize("budgets", [4.0, [0], [-1], [float("nan")], [float("inf")], ["a"], [None], [True]])
def test_budgets_that_cannot_be_leave_the_run_out(tmp_path: Path, budgets: Any) -> None:
    write(tmp_path, "apa", 0, 4.0, 1.0, dataset__kl_budgets=budgets)
    (left_out,) = compare(load_sweep(tmp_path)).excluded
    assert left_out.reason.startswith("dataset.kl_budgets: ") and left_out.reason.endswith(
        "is no list of numbers above 0"
    )


def test_rewards_too_large_to_add_leave_the_run_out(tmp_path: Path) -> None:
    write(tmp_path, "apa", 0, 4.0, 1e308)
    assert "lies beyond" in compare(load_sweep(tmp_path)).excluded[0].reason


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        write(tmp_path / "s", "apa", seed, 4.0, 2.0 + seed)
        write(tmp_path / "s", "ppo", seed, 4.0, 3.0 + seed)
    assert main(["compare", str(tmp_path / "s"), "--csv", str(tmp_path / "pairs.csv")]) == 0
    printed = capsys.readouterr().out
    assert "within 4 nats, the KL budget" in printed and "apa \N{MINUS SIGN} ppo" in printed
    assert max(map(len, printed.splitlines())) <= 80 or str(tmp_path) in printed
    header, gain, efficiency = (tmp_path / "pairs.csv").read_text().splitlines()
    assert header.startswith("a,b,seeds_a,seeds_b,kl,measure,difference,low,high,probability,")
    assert gain.startswith("apa,ppo,3,3,4.0,gain,-1.0,") and ",kl_efficiency," in efficiency


def test_what_the_intervals_conclude(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gains of 2, 3, 4 and 3, 4, 5 overlap; 12, 13, 14 lie above both, by 10 and 9, each with a half-width of t_4 times
    sqrt(2 / 3); two runs have no interval."""
    for seed in range(3):
        for algo, least in (("apa", 2.0), ("awr", 3.0), ("ppo", 12.0)):
            write(tmp_path / "s", algo, seed, 4.0, least + seed)
    assert main(["compare", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr().out
    apart = f"[{10 - 2.7764 * (2 / 3) ** 0.5:.3f}, {10 + 2.7764 * (2 / 3) ** 0.5:.3f}]"
    assert f"Within 4 nats, ppo gained 10.000 {apart} more reward than apa." in printed
    assert "Within 4 nats, apa and awr are not told apart (difference \N{MINUS SIGN}1.000 [" in printed
    assert "one-sided confidence" in " ".join(printed.split())
    for seed in range(2):
        write(tmp_path / "t", "apa", seed, 4.0, 2.0)
        write(tmp_path / "t", "ppo", seed, 4.0, 3.0)
    assert main(["compare", str(tmp_path / "t")]) == 0
    assert "apa and ppo have no interval to conclude from (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nosuch"], "nosuch: no such folder; give a sweep's folder, such as runs/default"),
        (["s"], "two settings with finished runs are needed, and there is apa; give more folders"),
        (["s", "--kl", "-1"], "--kl: -1 is not a number of nats above 0"),
        (["s", "--target-kl", "inf"], "--target-kl: inf is not a number of nats above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, monkeypatch, capsys, words: list[str], line: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s", "apa", 0, 4.0, 2.0)
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("analysis: ") and error.strip().endswith(line) and error.count("\n") == 1


def test_what_a_reader_must_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both columns rest on the continuation; three seeds against three; no other KL than the one asked for; an option
    that does nothing; independence; the number of pairs."""
    for seed in range(3):
        for lam in range(1, 6):
            write(tmp_path, "apa", seed, 1.0, 2.0 + seed, algo__lam=float(lam))
    assert main(["compare", str(tmp_path), "--kl", "2", "--target-kl", "1"]) == 0
    printed = capsys.readouterr().out
    said = " ".join(printed.split())
    assert "Runs that never spent 2 nats: 3 of apa (lam=1), 3 of apa (lam=2)," in said and "\N{DAGGER}" not in said
    assert "With 3 seeds against 3 the interval of `a run beats a run` covers about 90 %, not 95." in said
    assert "Runs count as independent, also where two sides share seeds." in said
    assert "never spent 4 nats" not in said and "--target-kl: not used" in said and "10 pairs, each" in said


def test_a_table_in_a_pipe_breaks_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        for lam in (0.1, 0.2):
            write(tmp_path, "apa", seed, 1.0, 2000.0 + seed, algo__lam=lam, model__name="a" * 30)
    assert main(["compare", str(tmp_path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "A: apa" in line)
    assert row.count("[") == row.count("]") == 2
