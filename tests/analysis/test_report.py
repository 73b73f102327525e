"""From made-up run folders with a known frontier to the tables, figures and page."""

from __future__ import annotations

import csv
import os
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from analysis.__main__ import main
from analysis.load import SweepFolderError, load_sweep
from analysis.report import ReportFiles, write_report
from analysis.summary import compare
from analysis.tables import kl_efficiency_rows, number, summary_table
from tests.analysis.made_up import config, rows, write_run


def fill(sweep: Path) -> None:
    """APA on seeds 0, 1, 2 and PPO on 0, 1, whose third run failed; one run unfinished, one of another stage.

    With u = sqrt(KL), APA's gain is slope * u on [0, 2] with slopes 1, 2, 3; so E(K) = slope * sqrt(K) / 2, the gain at
    K is slope * sqrt(K). PPO gains 1 and 3 up to u = 1, where it ends: 1 nat is what every run reached.
    """
    samples = [
        {"step": step, "iteration": step, "prompt": prompt, "response": text, "reward": reward, "ended": ended}
        for step, prompt, text, reward, ended in (
            (0, "Say <hello>", "no & never", -0.5, True),
            (0, "Count", "one two", 0.25, False),
            (4, "Say <hello>", "hello\nthere", 1.75, True),
            (4, "Count", "one two three", 0.5, True),
        )
    ]
    for seed, slope in enumerate((1.0, 2.0, 3.0)):
        apa = rows([0, 1, 4], [0.5, 0.5 + slope, 0.5 + 2 * slope], gold=[0.1, 0.2, 0.3 * slope])
        write_run(sweep, f"apa-s{seed}-00000000", config("apa", seed), apa, samples=samples)
    for seed, gain in enumerate((1.0, 3.0)):
        ppo = rows([0, 1], [0.5, 0.5 + gain], gold=[0.1, 0.2])
        write_run(sweep, f"ppo-s{seed}-00000000", config("ppo", seed), ppo)
    broken = rows([0, 1], [0.5, 1.5])
    write_run(sweep, "ppo-s2-00000000", config("ppo", 2), broken, status="failed", error="ValueError: <loss> is NaN")
    write_run(sweep, "awr-s0-00000000", config("awr", 0), broken, status=None)
    write_run(sweep, "sft-s0-00000000", config("apa", 0, stage__name="sft"), [{"step": 1, "train/loss": 2.0}])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    sweep = tmp_path_factory.mktemp("runs") / "made_up"
    fill(sweep)
    return write_report(sweep)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_kl_efficiency_csv(report: ReportFiles) -> None:
    found = {(row["algo"], float(row["kl_budget"])): row for row in read_csv(report.kl_efficiency_csv)}
    assert list(found) == [("apa", 1.0), ("apa", 4.0), ("ppo", 1.0), ("ppo", 4.0)]
    assert len(read_csv(report.kl_efficiency_csv)) == 4  # that 1 nat is also a budget gives no second row
    # APA at K = 4: 1, 2, 3, whose Student t interval is 2 -+ 2.484138; at K = 1 half of each.
    apa = found["apa", 4.0]
    numbers = [float(apa[key]) for key in ("kl_efficiency", "ci_low", "ci_high", "reward_gain_at_budget")]
    assert numbers == pytest.approx([2.0, -0.484138, 4.484138, 4.0], abs=1e-6)
    assert (apa["label"], apa["seeds"], apa["ci_method"], apa["runs_at_budget"]) == ("", "3", "student_t", "3")
    apa = found["apa", 1.0]
    numbers = [float(apa[key]) for key in ("kl_efficiency", "ci_low", "ci_high", "reward_gain_at_budget")]
    assert numbers == pytest.approx([1.0, -0.242069, 2.242069, 2.0], abs=1e-6)
    # PPO at K = 1: gains 1 and 3, E half of each; two seeds have no interval.
    ppo = found["ppo", 1.0]
    assert float(ppo["kl_efficiency"]) == pytest.approx(1.0)
    assert (ppo["ci_low"], ppo["ci_high"], ppo["ci_method"], ppo["runs_at_budget"]) == ("", "", "none", "2")
    assert [float(ppo["kl_efficiency_min"]), float(ppo["kl_efficiency_max"])] == pytest.approx([0.5, 1.5])
    # Neither run reached 4 nats: no value there, while what does not depend on a budget stands.
    ppo = found["ppo", 4.0]
    of_budget = ("kl_efficiency", "ci_low", "ci_method", "kl_efficiency_max", "reward_gain_at_budget")
    assert {ppo[key] for key in of_budget} == {""} and ppo["runs_at_budget"] == "0"
    assert [float(ppo["reward_before"]), float(ppo["reward_after"])] == pytest.approx([0.5, 2.5])


def test_interquartile_mean_from_eight_seeds_on(tmp_path: Path) -> None:
    for seed in range(8):
        write_run(tmp_path, f"apa-s{seed}", config("apa", seed), rows([0, 4], [0, seed]))
    found = kl_efficiency_rows(compare(load_sweep(tmp_path)).settings)
    # E(4) = seed / 2; without the two smallest and the two largest, 1, 1.5, 2 and 2.5; at K = 1 half of it.
    assert [(row["kl_budget"], row["kl_efficiency_iqm"]) for row in found] == [
        (4.0, pytest.approx(1.75)),
        (1.0, pytest.approx(0.875)),
    ]


def test_runs_csv_lists_every_folder(report: ReportFiles) -> None:
    found = {row["run"]: row for row in read_csv(report.runs_csv)}
    assert len(found) == 8
    assert found["ppo-s2-00000000"]["reason"] == "failed: ValueError: <loss> is NaN"
    assert found["awr-s0-00000000"]["status"] == "unfinished"
    assert (found["sft-s0-00000000"]["stage"], found["sft-s0-00000000"]["compared"]) == ("sft", "False")
    apa = found["apa-s2-00000000"]
    assert (apa["seed"], apa["compared"], apa["reason"], apa["wall_seconds"]) == ("2", "True", "", "12.5")
    numbers = [float(apa[key]) for key in ("kl_budget", "kl_efficiency", "largest_kl", "eval/reward")]
    assert numbers == pytest.approx([1, 1.5, 4, 6.5])


def test_claims_csv(report: ReportFiles) -> None:
    # PPO's runs end after 64 responses. By then APA has gained 1, 2 and 3, PPO 1 and 3: on average half of it.
    apa, ppo = read_csv(report.claims_csv)
    assert (apa["algo"], apa["seeds"], float(apa["horizon"])) == ("apa", "3", 64.0)
    assert [float(apa["mean_gain"]), float(ppo["mean_gain"])] == pytest.approx([1.0, 1.0])
    # Both gain 2 on average: the target is 0.8 of it, which one run of each does not reach.
    assert (float(apa["target"]), apa["runs_at_target"], apa["samples_to_target"]) == (1.6, "2", "")
    assert (float(apa["largest_fall"]), ppo["mean_gain_ci_low"]) == (0.0, "")


def test_diagnoses_are_written(report: ReportFiles) -> None:
    lines = report.diagnoses_txt.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "2 of 7 runs left out, not looked at; in the other 5: 1 problem in 1 setting (seeds 1)."
    assert lines[1:] == [diagnosis.text for diagnosis in report.findings.diagnoses]
    assert lines[0] in report.html.read_text(encoding="utf-8")


def test_notes_say_what_a_reader_must_know(report: ReportFiles) -> None:
    assert report.comparison.notes == [
        "ppo has no usable run of seed 2; the row rests on the others.",
        "Of the compared runs 2 of 5 never reached 4 nats; where a run of a setting did not, it has no value there.",
        "The budget is as small as it is because of ppo-s0-00000000, ppo-s1-00000000, which ended below half the KL of "
        "the median run; all others reached 4 nats.",
    ]
    assert [item.record.id for item in report.comparison.excluded] == ["awr-s0-00000000", "ppo-s2-00000000"]


def test_figures_are_images(report: ReportFiles) -> None:
    names = ("frontier", "overoptimization", "reward_kl")
    assert [path.name for path in report.figures] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for path in report.figures:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            ElementTree.parse(path)


def test_what_was_not_looked_at_has_no_all_clear(tmp_path: Path) -> None:
    write_run(tmp_path, "apa-s0", config("apa", 0), rows([0, 1], [0, 1]))
    assert write_report(tmp_path).diagnoses_txt.read_text() == "No problem found.\n"
    write_run(tmp_path, "apa-s1", config("apa", 1), [], status="interrupted")
    said = "1 of 2 runs left out, not looked at; in the other 1: no problem."
    files = write_report(tmp_path)
    assert files.diagnoses_txt.read_text() == f"{said}\n" and said in files.html.read_text(encoding="utf-8")


def test_gold_and_a_number_varied_have_figures(tmp_path: Path) -> None:
    kl, gold = [0.0, 0.5, 1.0, 2.0, 4.0], [0.0, 0.6, 0.9, 0.8, 0.5]
    for lam in (0.1, 1.0):
        for seed in range(3):
            made = rows(kl, kl, gold=[(1.0 + 0.01 * seed) * value for value in gold])
            write_run(tmp_path, f"apa-{lam}-{seed}", config("apa", seed, algo__lam=lam), made)
    files = write_report(tmp_path)
    svgs = {path.name: path.read_text(encoding="utf-8") for path in files.figures if path.suffix == ".svg"}
    assert {"overoptimization.svg", "over_algo.lam.svg"} <= set(svgs)
    assert "reward model" in svgs["overoptimization.svg"]
    assert "KL efficiency" in svgs["over_algo.lam.svg"]
    steps = {float(step) for step in re.findall(r">step ([0-9]+)<", svgs["frontier.svg"])}
    assert steps and max(steps) > 0 and max(steps) <= 8
    assert "bands: standard errors over seeds" in svgs["frontier.svg"]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_command_remakes_a_report_and_removes_folders_of_killed_ones(
    report: ReportFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = report.html.parent
    paths = [report.runs_csv, report.kl_efficiency_csv, report.claims_csv, report.diagnoses_txt, report.html]
    paths += report.figures
    before = [path.read_bytes() for path in paths]
    for name, age in ((".report-old", 7200.0), (".report-new", 60.0)):
        (sweep / name).mkdir()
        (sweep / name / "report.html").touch()
        os.utime(sweep / name, (time.time() - age,) * 2)
    assert main(["report", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert str(report.html) in said and "KL efficiency" in said
    assert [path.read_bytes() for path in paths] == before
    assert hidden(sweep) == [".report-new"]
    shutil.rmtree(sweep / ".report-new")


def test_nothing_half_written_is_left_behind(report: ReportFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    before = report.html.read_bytes()
    monkeypatch.setattr("analysis.page.render_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(report.html.parent)
    assert report.html.read_bytes() == before
    assert hidden(report.html.parent) == []


def test_runs_read_elsewhere_and_another_folder(tmp_path: Path) -> None:
    fill(tmp_path / "made_up")
    records = load_sweep(tmp_path / "made_up")
    files = write_report(tmp_path / "far_away", records, output=tmp_path / "out" / "here")
    assert files.html == tmp_path / "out" / "here" / "report.html"
    assert "far_away: 8 runs, 5 compared, 2 left out" in files.html.read_text(encoding="utf-8")
    assert not (tmp_path / "far_away").exists() and not (tmp_path / "made_up" / "report.html").exists()
    with pytest.raises(SweepFolderError, match="no runs to report on"):
        write_report(tmp_path, records=[])


def printed(table: object, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_summary_table_fits_the_terminal(report: ReportFiles) -> None:
    lines = printed(summary_table(report.comparison)).splitlines()
    apa = next(line for line in lines if line.split()[:1] == ["apa"])
    assert re.split(r"\s{2,}", apa.strip()) == [
        "apa",
        "3",
        "0.50 \N{RIGHTWARDS ARROW} 4.50",
        "0.10 \N{RIGHTWARDS ARROW} 0.60",
        "4.00",
        "1.000 [\N{MINUS SIGN}0.242, 2.242]",
    ]
    ppo = next(line for line in lines if line.split()[:1] == ["ppo"])
    assert ppo.rstrip().endswith("1.00  1.000 (0.500 to 1.500)")
    assert "Left out: 2 runs; the report says why." in "\n".join(lines)


def test_settings_of_one_algorithm_are_rows_of_their_own(tmp_path: Path) -> None:
    for lam, gain in ((0.1, 1.0), (10.0, 2.0)):
        for seed in (0, 1):
            made = rows([0, 1], [0, gain])
            write_run(tmp_path, f"apa-{lam}-{seed}", config("apa", seed, algo__lam=lam), made)
    comparison = compare(load_sweep(tmp_path))
    table = {setting.name: setting.headline.kl_efficiency.mean for setting in comparison.settings}
    assert table == pytest.approx({"apa (lam=0.1)": 0.5, "apa (lam=10)": 1.0})
    assert "apa (lam=10)" in printed(summary_table(comparison))
    assert "Gold reward" not in printed(summary_table(comparison))
    labels = [row["label"] for row in kl_efficiency_rows(comparison.settings)]
    assert labels == ["lam=0.1", "lam=0.1", "lam=10", "lam=10"]


def test_decimals_grow_fewer_with_size() -> None:
    assert [number(value, 0) for value in (64.2, 877.9)] == ["64", "878"]
    assert [number(value) for value in (64.2, 877.9)] == ["64.200", "877.9"]


def test_no_run_to_compare_still_gives_a_report(tmp_path: Path) -> None:
    write_run(tmp_path, "apa-s0", config("apa", 0), [], status="interrupted")
    files = write_report(tmp_path)
    assert read_csv(files.kl_efficiency_csv) == []
    assert "interrupted" in files.html.read_text(encoding="utf-8")
    assert "No finished run to compare." in printed(summary_table(files.comparison))


def test_samples_show_the_other_columns_of_their_rows_as_text(tmp_path: Path) -> None:
    columns = {"answer": "<b>42</b>", "level": 3}
    samples = [
        {"step": step, "prompt": "6 * 7", "response": "42", "reward": 1.0, "columns": columns} for step in (0, 4)
    ]
    write_run(tmp_path, "r", config("apa", 0), rows([0, 1, 2], [0, 1, 2]), samples=samples)
    assert "answer: &lt;b&gt;42&lt;/b&gt;; level: 3" in write_report(tmp_path).html.read_text(encoding="utf-8")
