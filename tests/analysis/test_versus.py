"""`python -m analysis compare` and the choice of settings at matched KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.load import load_sweep
from analysis.matched import matched_settings
from analysis.summary import compare
from analysis.versus import MatchedComparison, compare_folders, csv_rows
from tests.analysis.made_up import config, rows, write_run
from tests.analysis.test_verdict import run as by_prompt_run


def write(sweep: Path, algo: str, seed: int, kl: float, reward: float, **changes: Any) -> Path:
    """A straight line in sqrt(KL) from nothing to `reward` at `kl` nats."""
    name = "-".join([algo, f"s{seed}", *(f"{value}" for value in changes.values())])
    return write_run(sweep, name, config(algo, seed, **changes), rows([0, kl], [0, reward]))


def names(found: MatchedComparison) -> list[str]:
    return [setting.name for setting in found.comparison.settings]


def test_within_what_every_run_reached_or_the_kl_asked_for(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "s", "apa", seed, 1.0, 2.0 + seed)
        write(tmp_path / "s", "ppo", seed, 4.0, 3.0 + seed)
    found = compare_folders([tmp_path / "s"])
    assert found.kl == 1.0
    # PPO is then half-way in sqrt(KL). E of a straight line is half of its gain.
    assert [one.headline.gain.mean for one in found.comparison.settings] == pytest.approx([3.0, 2.0])
    assert [one.headline.kl_efficiency.mean for one in found.comparison.settings] == pytest.approx([1.5, 1.0])
    (pair,) = found.answer.pairs
    assert (pair.first.name, pair.second.name, pair.difference) == ("apa", "ppo", pytest.approx(0.5))
    # 1, 1.5, 2 against 0.75, 1, 1.25: of nine pairs of runs the first has more in seven and as much in one.
    (row,) = csv_rows(found)
    assert (row["kl"], row["probability"]) == (1.0, pytest.approx(7.5 / 9))
    # At a quarter of the KL half of all of it.
    asked = compare_folders([tmp_path / "s"], kl=0.25)
    assert (asked.kl, asked.answer.pairs[0].difference) == (0.25, pytest.approx(0.25))


def test_runs_that_kept_their_prompts_are_paired_by_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        by_prompt_run(tmp_path / "one", "apa", seed, 0.5)
        by_prompt_run(tmp_path / "two", "awr", seed, 0.2)
    (pair,) = compare_folders([tmp_path / "one", tmp_path / "two"]).answer.pairs
    # E(4) is the slope. The noise of a prompt, 0.2 an evaluation, is all that is left: at most 0.2 sqrt(2 / 120).
    assert pair.difference == pytest.approx(0.3, abs=0.05) and pair.low is not None and 0.25 < pair.low < 0.3
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "one: apa is above two: awr." in said
        and "interval over seeds and prompts" in said
        and "paired by prompt" in said
    )


def test_several_folders_and_single_runs(tmp_path: Path) -> None:
    write(tmp_path / "one", "apa", 0, 4.0, 2.0)
    write(tmp_path / "two", "apa", 0, 4.0, 3.0)
    assert names(compare_folders([tmp_path / "one", tmp_path / "two"])) == ["one: apa", "two: apa"]
    runs = [write(tmp_path / "three", algo, seed, 4.0, 1.0) for algo in ("apa", "ppo") for seed in (0, 1)]
    found = compare_folders(runs)
    assert [(one.name, len(one.runs)) for one in found.comparison.settings] == [("apa", 2), ("ppo", 2)]
    assert compare_folders([*runs, runs[0]]).comparison.settings[0].seeds == [0, 1]


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
    assert names(found) == ["apa (lam=0.5)", "ppo (lam=0.1)"] and found.kl == 2.9  # of these, not of all five
    assert found.notes[-1].startswith("Settings (of 5 by KL alone, nearest to 3.00 nats, the most at which they match)")
    assert len(names(compare_folders([tmp_path], all_settings=True))) == 5


def test_settings_of_two_sweeps_are_matched_to_one_another(tmp_path: Path) -> None:
    for sweep, algo, kls in (("a", "apa", (1.0, 5.0, 20.0)), ("b", "ppo", (1.1, 5.2, 100.0))):
        for index, kl in enumerate(kls):
            write(tmp_path / sweep, algo, 0, kl, 1.0, algo__lam=0.1 * (index + 1))
    found = compare_folders([tmp_path / "a", tmp_path / "b"])
    assert [one.kl.mean for one in found.comparison.settings] == [5.0, 5.2]
    assert "a: apa (lam=0.2) 5.00, b: ppo (lam=0.2) 5.20 nats." in found.notes[-1]


def test_settings_that_hardly_moved_are_no_match(tmp_path: Path) -> None:
    """Though they would match better: 1 % of 4 nats, which the data set asks for, is the least."""
    for algo, kls in (("apa", (0.03, 5.0)), ("ppo", (0.03, 9.0))):
        for index, kl in enumerate(kls):
            write(tmp_path, algo, 0, kl, 1.0, algo__lam=0.1 * (index + 1))
    assert [one.kl.mean for one in compare_folders([tmp_path]).comparison.settings] == [5.0, 9.0]


def test_all_settings_of_one_algorithm_alone(tmp_path: Path) -> None:
    for lam in (0.1, 0.2, 0.3):
        write(tmp_path, "apa", 0, 4.0, lam, algo__lam=lam)
    assert len(names(compare_folders([tmp_path]))) == 3


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
    assert "within 4 nats" in printed and "ppo \N{MINUS SIGN} apa" in printed
    assert max(map(len, printed.splitlines())) <= 80 or str(tmp_path) in printed
    header, row = (tmp_path / "pairs.csv").read_text().splitlines()
    assert header == "a,b,seeds_a,seeds_b,kl,measure,difference,low,high,p_holm,probability"
    assert row.startswith("ppo,apa,3,3,4.0,kl_efficiency,0.5,")  # 1, 1.5, 2 against 1.5, 2, 2.5


def test_what_the_intervals_conclude(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """KL efficiencies of 1, 1.5, 2 and 1.5, 2, 2.5 overlap; 6, 6.5, 7 lie above both, by 5 and 4.5. Each difference has
    a half-width of t_4 times sqrt(1 / 6), and t is 1.225, 12.2 and 11.0: of p = 0.288, 0.00026 and 0.00038 Holm's are
    0.288, and the smaller ones below 0.001."""
    for seed in range(3):
        for algo, least in (("apa", 2.0), ("awr", 3.0), ("ppo", 12.0)):
            write(tmp_path / "s", algo, seed, 4.0, least + seed)
    assert main(["compare", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr().out
    said, minus, half = " ".join(printed.split()), "\N{MINUS SIGN}", 2.776445 / 6**0.5
    assert "ppo is above awr and apa. Not told apart: awr and apa." in said
    table = {tuple(line.split()[:3]): line.split()[3:] for line in printed.splitlines()}
    # A run of AWR beats one of APA in 6 of 9 pairs and is its equal in 2.
    ends = [f"[{minus}{half - 0.5:.3f},", f"{half + 0.5:.3f}]"]
    assert table["awr", minus, "apa"] == ["0.500", *ends, "0.78", "0.288"]
    assert table["ppo", minus, "apa"][:2] == ["5.000", f"[{5 - half:.3f},"]
    for other in ("apa", "awr"):
        assert table["ppo", minus, other][-3:] == ["1.00", "<", "0.001"]
    # The higher first and by falling efficiency, as in the report.
    assert [name for name in table if name[1:2] == (minus,)] == [
        (first, minus, second) for first, second in (("ppo", "awr"), ("ppo", "apa"), ("awr", "apa"))
    ]


def test_two_runs_have_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        write(tmp_path, "apa", seed, 4.0, 2.0)
        write(tmp_path, "ppo", seed, 4.0, 3.0)
    assert main(["compare", str(tmp_path)]) == 0
    printed, minus = capsys.readouterr().out, "\N{MINUS SIGN}"
    assert "Not told apart: ppo and apa." in " ".join(printed.split())
    row = next(line for line in printed.splitlines() if line.split()[:3] == ["ppo", minus, "apa"])
    assert row.split() == ["ppo", minus, "apa", "0.500", "1.00", "\N{EN DASH}"]  # 1 and 1.5, twice each


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nosuch"], "nosuch: no such folder; give a sweep's folder, such as runs/default"),
        (["s"], "two settings with finished runs are needed, and there is apa; give more folders"),
        (["t", "--kl", "2"], "--kl: runs that never reached 2 nats: 1 of apa; give at most 1"),
        (["s", "--kl", "-1"], "--kl: -1 is not a number of nats above 0"),
        (["s", "--target-kl", "inf"], "--target-kl: inf is not a number of nats above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, monkeypatch, capsys, words: list[str], line: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s", "apa", 0, 4.0, 2.0)
    write(tmp_path / "t", "apa", 0, 1.0, 2.0)
    write(tmp_path / "t", "ppo", 0, 4.0, 2.0)
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("analysis: ") and error.strip().endswith(line) and error.count("\n") == 1


def test_what_a_reader_must_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An option that does nothing; independence; the number of pairs; no other KL than the one of this comparison."""
    for seed in range(3):
        for lam in (1.0, 2.0):
            write(tmp_path, "apa", seed, 1.0, 2.0 + seed, algo__lam=lam)
    assert main(["compare", str(tmp_path), "--target-kl", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--target-kl: not used" in said and "Runs count as independent" in said
    assert "adjusted by Holm for the number of pairs" in said and "4 nats" not in said


def test_a_table_in_a_pipe_breaks_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        for lam in (0.1, 0.2):
            write(tmp_path, "apa", seed, 1.0, 2000.0 + seed, algo__lam=lam, model__name="a" * 30)
    assert main(["compare", str(tmp_path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "A: apa" in line)
    assert row.count("[") == row.count("]") == 2
