"""Text out of run files is text: in the terminal, the page, its charts and the tables to copy."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.winrate.output import save_win_rates
from tests.analysis.made_up import config, rows, write_run

HOSTILE = "[/red][bold]x\x1b[31mred\x1b]0;title\x07\x9b2J\u202egpj.exe"
OBEYED = ("\x1b", "\x07", "\x9b", "\u202e", "\\u001b", "\\u009b", "\\u202e", "&#8238;")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Names, settings, samples and errors that a terminal or a browser would obey."""
    samples = [
        {"step": step, "iteration": step, "prompt": HOSTILE, "response": f"line 1\nline 2 {HOSTILE}", "reward": 1.0}
        for step in (0, 2)
    ]
    for seed in range(2):
        for algo in ("apa", f"p{HOSTILE}"):
            made = config(algo, seed, model__name=HOSTILE, hardware__device=HOSTILE)
            write_run(tmp_path / "s", f"{algo[0]}-{seed}", made, rows([0, 20], [0, 1]), samples=samples)
    changed = config("apa", 0, model__name="other")
    write_run(tmp_path / "s", "apa-other", changed, rows([0, 20], [0, 1]))
    write_run(tmp_path / "s", "bad[red]\x1b[31m", config("apa", 3), rows([0], [0]), status="failed", error=HOSTILE)
    return tmp_path / "s"


def test_report_and_compare(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(sweep)]) == 0
    assert main(["compare", str(sweep), "--csv", str(sweep / "pairs.csv")]) == 0
    printed = capsys.readouterr()
    texts = {"stdout": printed.out, "stderr": printed.err}
    for name in ("report.html", "runs.csv", "kl_efficiency.csv", "claims.csv", "pairs.csv", "diagnoses.txt"):
        texts[name] = (sweep / name).read_text(encoding="utf-8")
    for name, text in texts.items():
        if name == "report.html":  # our own libraries name control characters
            text = text[: text.index("<script>")]
        assert not [bad for bad in OBEYED if bad in text], name
    assert "p[/red][bold]xred 2Jgpj.exe" in printed.out and "p[/red][bold]xred 2Jgpj.exe" in texts["diagnoses.txt"]
    assert "left out: bad[red]: failed: [/red][bold]xred" in printed.out
    assert "line 1\nline 2 [/red][bold]xred" in texts["report.html"]


def test_win_rates_of_models_with_strange_names(tmp_path: Path) -> None:
    pair = {"model_a": f"a{HOSTILE}<&>$x$", "model_b": "b\"'\\", "wins": 1, "ties": 1, "losses": 2}
    pair |= {"inconsistent": 0, "win_rate": 0.4, "ci_low": None, "ci_high": None}
    _, svg = save_win_rates(pd.DataFrame([pair]), tmp_path, f"Judged by {HOSTILE}", "")
    ElementTree.parse(svg)
    assert not [bad for bad in OBEYED if bad in svg.read_text(encoding="utf-8")]
