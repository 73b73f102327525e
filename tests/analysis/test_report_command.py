"""Options of `python -m analysis report` that say where the runs come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.__main__ import COMMANDS, main
from tests.analysis.made_up import config, rows, write_run


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give a sweep's folder, such as runs/default, or --wandb ENTITY/PROJECT --group SWEEP"),
        (["s", "--group", "x"], "give a sweep's folder, such as runs/default, or --wandb ENTITY/PROJECT --group SWEEP"),
        (["--wandb", "a/b"], "--wandb: needs --group SWEEP and --output FOLDER, and no sweep folder"),
        (["nosuch"], "nosuch: no such folder; give a sweep's folder, such as runs/default"),
        (["s", "--from-wandb"], "s: no run has W&B files; leave out --from-wandb to read metrics.jsonl"),
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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0 and "usage: python -m analysis" in capsys.readouterr().out
