"""The command of the paper's figures: files, captions, figure 1 from win rates, and what cannot be drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.errors import AnalysisError
from analysis.paper_figures.command import missing_pairs
from analysis.paper_figures.table import FIGURES
from analysis.winrate.output import read_winrates
from tests.analysis.test_paper_figures import add, fill_controllers, fill_hh, fill_lambdas, fill_offline

WINRATES = """model_a,model_b,prompts,wins,ties,losses,unparsed,win_rate,ci_low,ci_high
sft,ppo,10,2,2,6,0,0.3,0.1,0.6
sft,apa,10,1,1,8,1,0.15,,
"""


def test_win_rates(tmp_path: Path) -> None:
    (tmp_path / "winrates.csv").write_text(WINRATES)
    pairs, judge = read_winrates([tmp_path])
    assert missing_pairs(pairs) == ["figure 1 shows ppo vs apa; no such pair was judged"] and "unnamed" in judge
    assert main(["figure", "1", str(tmp_path)]) == 0
    drawn = (tmp_path / "figure_1.svg").read_text(encoding="utf-8")
    assert all(f">{text}<" in drawn for text in ("20%", "60%", "10%", "80%", "0.30 [0.10, 0.60]", "0.15"))
    for said in ("In the form of figure 1: win rates of SFT, PPO and APA", "judged by an unnamed judge on 10 prompts"):
        assert said in drawn


def test_win_rates_of_the_winrate_command(tmp_path: Path) -> None:
    for judge in ("a", "b"):
        folder = tmp_path / "winrate" / judge
        folder.mkdir(parents=True)
        (folder / "winrates.csv").write_text(WINRATES)
        (folder / "winrate.json").write_text(f'{{"judge": "{judge}"}}')
    with pytest.raises(AnalysisError, match="several winrates"):
        read_winrates([tmp_path])
    with pytest.raises(AnalysisError, match="judged by a and b"):
        read_winrates([tmp_path / "winrate" / "a", tmp_path / "winrate" / "b"])
    assert read_winrates([tmp_path / "winrate" / "a"])[1] == "a"
    (folder / "winrates.csv").write_text("model_a\nsft\n")
    with pytest.raises(AnalysisError, match="not a table of win rates"):
        read_winrates([folder])


FILLED = {
    1: lambda folder: (folder / "winrates.csv").write_text(WINRATES),
    **dict.fromkeys((2, 3, 4, 5, 6), fill_hh),
    7: lambda folder: fill_lambdas(folder, [0.1, 1.0]),
    8: lambda folder: fill_controllers(folder, {"adaptive": 4.0, "none": 400.0}),
    9: fill_offline,
}


@pytest.mark.parametrize("number", FIGURES)
def test_command_writes_each_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
    FILLED[number](tmp_path)
    png, svg = (tmp_path / "out" / f"figure_{number}.{suffix}" for suffix in ("png", "svg"))
    assert main(["figure", str(number), str(tmp_path), "--output", str(png.parent)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(svg)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [str(png), str(svg)]
    assert lines[2].startswith(FIGURES[number].title) and any(one.startswith("The paper: ") for one in lines)


def test_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_hh(tmp_path)
    add(tmp_path, "apa", 1000, [0, 1, 2], [0, 1, 2])
    assert main(["figure", "4", str(tmp_path), "--all-settings", "--target-kl", "3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "APA seeds 0, 100, 1000, PPO seeds 0, 100, AWR seeds 0, 100" in text
    assert "--target-kl: not used, figure 4 draws every setting here" in text
    assert (tmp_path / "figure_4.png").is_file()


@pytest.mark.parametrize(("number", "said"), [(1, "winrates.csv"), (3, "needs finished runs"), (9, "offline runs")])
def test_nothing_to_draw_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, said: str
) -> None:
    add(tmp_path, "apa", 0, [0, 1], [0, 1], status="failed")
    assert main(["figure", str(number), str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and said in captured.err
    assert list(tmp_path.glob("figure_*")) == []


def test_options_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_hh(tmp_path)
    for kl in ("0", "inf", "nan"):
        assert main(["figure", "3", str(tmp_path), "--target-kl", kl]) == 2
        assert capsys.readouterr().err == f"analysis: --target-kl: {kl} is not a number of nats above 0\n"
    assert main(["figure", "2", str(tmp_path / "nonesuch")]) == 2
    (tmp_path / "file").touch()
    assert main(["figure", "2", str(tmp_path), "--output", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    with pytest.raises(SystemExit):
        main(["figure", "10", str(tmp_path)])


def test_gold_that_was_not_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_hh(tmp_path)
    assert main(["figure", "3", str(tmp_path), "--gold"]) == 0
    assert "--gold: no run drawn here has logged a gold reward" in capsys.readouterr().out


def _without_axis(folder: Path) -> None:
    add(folder, "apa", 0, [0, 1], [0, 1], name="r")
    file = folder / "r" / "metrics.jsonl"
    made = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key not in ("step", "samples")} for row in made]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))


@pytest.mark.parametrize(
    ("number", "fill", "said"),
    [
        (3, _without_axis, "r: metrics.jsonl has no step to draw its evaluations over"),
        (7, lambda folder: add(folder, "apa", 0, [0, 1], [0, 1], algo__lam="one"), "algo.lam=one is not a number"),
        (7, lambda folder: add(folder, "apa", 0, [0, 1], [0, 1], algo__lam=[1]), "algo.lam=[1] is not a number"),
        (
            8,
            lambda folder: add(folder, "ppo", 0, [0, 1], [0, 1], algo__kl={"controller": "fixed", "init_coef": "x"}),
            "algo.kl.init_coef=x is not a number",
        ),
    ],
)
def test_runs_that_cannot_be_drawn_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, fill: Callable[[Path], None], said: str
) -> None:
    fill(tmp_path)
    assert main(["figure", str(number), str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and said in captured.err
