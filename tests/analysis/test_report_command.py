"""Options of `python -m analysis report` that say where the runs come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.__main__ import COMMANDS, main
from analysis.load import load_sweep
from tests.analysis.made_up import config, rows, write_run


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give a sweep's folder, such as runs/default, or --wandb ENTITY/PROJECT --group SWEEP"),
        (["s", "--group", "x"], "give a sweep's folder, such as runs/default, or --wandb ENTITY/PROJECT --group SWEEP"),
        (["--wandb", "a/b"], "--wandb: needs --group SWEEP and --output FOLDER, and no sweep folder"),
        (["nosuch"], "nosuch: no such folder; give a sweep's folder, such as runs/default"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, monkeypatch, capsys, words: list[str], line: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "s", "apa-s0", config("apa", 0), rows([0, 1], [0, 1]))
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err == f"analysis: {line}\n"


def test_diagnoses_end_the_table_and_output_is_elsewhere(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "s", "apa-s0", config("apa", 0), rows([0, 1, 2], [0, 4, 2.9]))
    assert main(["report", str(tmp_path / "s"), "--output", str(tmp_path / "there")]) == 0
    printed = capsys.readouterr().out
    assert "apa: reward fell while KL rose in the run" in printed and str(tmp_path / "there/report.html") in printed
    assert (tmp_path / "there/report.html").is_file() and not (tmp_path / "s/report.html").exists()


def test_what_a_reader_must_know_is_printed(tmp_path: Path, capsys) -> None:
    good = rows([0, 1], [0, 1])
    long = "a_setting_with_quite_a_long_name_" * 2
    write_run(tmp_path, "apa-s0", config("apa", 0, model__name=long), good)
    write_run(tmp_path, "apa-t0", config("apa", 0, model__name="b"), good)
    for seed in range(1, 8):
        write_run(tmp_path, f"apa-s{seed}", config("apa", seed), good, status="failed", error=f"OSError: [{seed}]")
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"apa (model={long})" in printed  # in one line: what is not a terminal is wide enough
    assert "\nnote: Of the compared runs 2 of 2 never reached" in printed
    assert "left out: apa-s5: failed: OSError: [5]\nand 2 more; runs.csv has all\n" in printed
    assert "apa-s6" not in printed


def test_nothing_to_compare_is_no_success(tmp_path: Path, capsys) -> None:
    """Nor is an evaluation lost afterwards, or code that differs, kept quiet."""
    write_run(tmp_path, "apa-s0", config("apa", 0), [], status="interrupted")
    assert main(["report", str(tmp_path)]) == 1
    cut = write_run(tmp_path, "apa-s1", config("apa", 1), rows([0, 1, 2], [0, 1, 2]))
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert main(["report", str(tmp_path)]) == 1
    assert "left out: apa-s1: the last evaluation in summary.json is not in metrics.jsonl" in capsys.readouterr().out
    for seed, commit in ((2, "0cde85c"), (3, "0cde85c+")):
        run = write_run(tmp_path, f"apa-s{seed}", config("apa", seed), rows([0, 1], [0, 1]))
        summary = json.loads((run / "summary.json").read_text()) | {"git_commit": commit}
        (run / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 different states of the code (0cde85c, 0cde85c+; + stands for changes that were not committed)" in printed


def test_what_wandb_does_not_keep_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    write_run(tmp_path, "apa-s0", config("apa", 0), rows([0, 1], [0, 1]))
    monkeypatch.setattr("analysis.wandb_run.load_wandb_server", lambda path, group: load_sweep(tmp_path))
    assert main(["report", "--wandb", "me/it", "--group", "g", "--output", str(tmp_path / "out")]) == 0
    assert "note: read from W&B, which keeps no versions and no samples" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 0
    assert "W&B" not in capsys.readouterr().out


def test_a_narrow_terminal_keeps_the_algorithm(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    monkeypatch.setenv("TERM", "dumb")
    write_run(tmp_path, "apa-s0", config("apa", 0), rows([0, 1], [0, 1]))
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "algorithm" in printed and " apa " in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0 and "usage: python -m analysis" in capsys.readouterr().out
