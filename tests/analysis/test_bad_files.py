"""Files that are damaged, or made to break their reader: the run is listed with its reason, and the report is made."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.load import load_run, make_record, sample_pairs
from analysis.report import write_report
from analysis.run_files import to_metrics
from tests.analysis.made_up import config, rows, write_run

HUGE = "9" * 400
DEEP = "[" * 100_000
GOOD = rows([0, 1], [0, 1])
HALF = "\ud800"


def _config(text: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / "config.yaml").write_text((run / "config.yaml").read_text() + text)

    return damage


def _as_folder(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return damage


def _first_row(text: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / "metrics.jsonl").write_text(text + "\n" + (run / "metrics.jsonl").read_text())

    return damage


def _summary(text: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / "summary.json").write_text('{"status": "finished", ' + text + "}")

    return damage


UNREADABLE = ("config.yaml is nested too deeply", "config.yaml is not readable YAML")
"""Where nesting is deep, either we or the YAML library may be first to notice."""
BAD = {
    "date": (_config("when: 2023-13-45\n"), "config.yaml is not readable YAML"),
    "set": (_config("some: !!set {a, b}\n"), "config.yaml holds a set, which is no setting"),
    "binary": (_config("some: !!binary aGVsbG8=\n"), "config.yaml holds a bytes, which is no setting"),
    "alias": (_config("some: &a [*a]\n"), "config.yaml is nested too deeply"),
    "aliases of aliases": (
        _config(
            "a: &a [1,1,1,1,1,1,1,1]\n" + "".join(f"{k}: &{k} [{f'*{j},' * 8}]\n" for j, k in pairwise("abcdefgh"))
        ),
        "config.yaml holds too many values",
    ),
    "folder": (_as_folder("config.yaml"), f"config.yaml cannot be read: {os.strerror(errno.EISDIR)}"),
    "flow": (_config(f"some: {DEEP}"), UNREADABLE),
    "block": (_config(f"some:\n  {'- ' * 100_000}1\n"), UNREADABLE),
    "keys": (_config(f"? {'? ' * 100_000}1\n"), UNREADABLE),
    "indents": (_config("".join(f"{' ' * i}a:\n" for i in range(1000))), UNREADABLE),
    "large": (_config(f"some: {'a' * 1_000_001}\n"), "config.yaml is larger than 1 MB"),
    "key": (_config("? {a: 1}\n: 1\n"), "config.yaml is not readable YAML"),
    "huge setting": (_config(f"some: {HUGE}\n"), "config.yaml holds a whole number that is too large"),
    "huge metric": (_first_row(f'{{"train/kl": {HUGE}}}'), "metrics.jsonl holds a whole number that is too large"),
    "deep metric": (_first_row(f'{{"a": {DEEP}'), "line 1 of metrics.jsonl is not a JSON object"),
    "metrics folder": (_as_folder("metrics.jsonl"), "metrics.jsonl is missing"),
    "deep summary": (_summary(f'"a": {DEEP}{"]" * 100_000}'), "summary.json is not readable JSON"),
    "commit": (_summary('"git_commit": ["a"]'), "summary.json: git_commit is not text"),
    "seconds": (_summary(f'"wall_seconds": {HUGE}'), "summary.json holds a whole number that is too large"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_reason(tmp_path: Path, name: str) -> None:
    damage, reasons = BAD[name]
    run = write_run(tmp_path, "r", config("apa", 0), GOOD)
    damage(run)
    assert load_run(run).reason in ((reasons,) if isinstance(reasons, str) else reasons)


def test_no_bad_file_keeps_the_report_from_being_made(tmp_path: Path) -> None:
    names = {name.replace(" ", "_"): damage for name, (damage, _) in BAD.items()}
    for seed in (0, 1):
        write_run(tmp_path, f"good{seed}", config("apa", seed), GOOD)
    for name, damage in names.items():
        damage(write_run(tmp_path, name, config("apa", 2), GOOD))
    files = write_report(tmp_path)
    assert {item.record.id for item in files.comparison.excluded} >= names.keys()
    assert [len(setting.runs) for setting in files.comparison.settings] == [2]


def test_half_characters_become_question_marks(tmp_path: Path) -> None:
    samples = [
        {"step": step, "prompt": HALF, "response": f"re{HALF}", "reward": reward}
        for step, reward in ((0, 1.0), (2, int(HUGE)), (4, 2.0))
    ]
    run = write_run(tmp_path, "r", config("apa", 0), GOOD, samples=samples)
    _summary(f'"cpu": {json.dumps(HALF)}')(run)
    write_run(tmp_path, "q", config("apa", 1), GOOD, status="failed", error=f"OSError: {HALF}")
    record = load_run(run)
    assert record.summary["cpu"] == "?"
    # A sample whose reward no float holds is left out.
    assert [(pair.before["response"], pair.after["step"]) for pair in sample_pairs(record)] == [("re?", 4)]
    assert "failed: OSError: ?" in write_report(tmp_path).html.read_text(encoding="utf-8")


def test_a_date_is_text(tmp_path: Path) -> None:
    run = write_run(tmp_path, "r", config("apa", 0), GOOD)
    _config("when: 2023-12-05\n")(run)
    assert load_run(run).setting("when") == "2023-12-05"


@pytest.mark.parametrize("lam", [float("nan"), float("inf")])
def test_a_setting_without_a_place_on_an_axis_is_not_drawn(tmp_path: Path, lam: float) -> None:
    for place, value in enumerate((0.1, 1.0, lam)):
        write_run(tmp_path, f"apa{place}", config("apa", 0, algo__lam=value), GOOD)
    files = write_report(tmp_path)
    (ablation,) = files.findings.ablations
    assert [point.value for point in ablation.points] == [0.1, 1.0]
    assert len(files.comparison.settings) == 3


def test_text_is_never_a_number() -> None:
    alike: list[dict[str, Any]] = [{"a": "1.5", "b": True}, {"a": 2, "b": None}]
    for made in (alike, [alike[0]], [{"a": "nan", "b": 1.0}, {"a": 1.0, "b": 1.0}]):
        assert np.isnan(to_metrics(made).columns["a"][0]) and to_metrics(made).columns["b"][0] == 1.0


def test_a_record_from_elsewhere_is_checked_too() -> None:
    made = make_record(Path("r"), config("apa", 0, model__name={1}), GOOD, {"status": "finished"}, [], [])
    assert made.reason == "config.yaml holds a set, which is no setting" and made.config == {}
    assert json.dumps(made.summary) == '{"status": "finished"}'
