"""Studies of the stand-in `tuned`: searched in this process or by the command in a child, and what they left."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import main
from sweeps.grid import Groups, cells
from sweeps.runs import Stopped
from sweeps.search import search as search_studies
from sweeps.settings import DEFAULTS, study_settings
from sweeps.study import StoredStudy
from sweeps.study_spec import StudySpec
from sweeps.study_storage import open_storage
from tests.config.composed import with_values

ROOT = Path(__file__).resolve().parents[2]
TARGET = "tests.sweeps.tuned:execute"
LR = "optimization.learning_rate=tag(log,interval(1e-4,1e-2))"
GROUPS = Groups({"algo": ["apa", "awr", "ppo"]}, {"algo": "apa"})

Search = Callable[..., tuple[int, str]]


def arguments(folder: Path, *further: str) -> list[str]:
    places = [f"output_dir={folder}/runs", f"cache_dir={folder}/cache", "tracking=none"]
    return [*places, "hardware.parallel_runs=4", "rollout.iterations=4", *further]


def words(folder: Path, *further: str) -> list[str]:
    return ["-m", f"hydra.launcher.target={TARGET}", *arguments(folder, *further)]


def specs(typed: list[str], search: bool = True) -> list[StudySpec]:
    """As the sweeper makes them, but Hydra composes the groups alone, once each, since it takes its time."""
    found = cells([], OverridesParser.create().parse_overrides(typed), GROUPS, search=search)
    return [StudySpec(cell, with_values(tuple(cell.overrides))[0]) for cell in found]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Search:
    """`python main.py -m ...` in this process, without the report, which takes a second: exit code and stdout."""
    monkeypatch.setattr("sweeps.experiment.write_report", lambda *_: None)

    def run(*further: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["main.py", *words(tmp_path, *further)])
        try:
            main._hydra(sys.argv[1:])
            code = 0
        except Stopped as stopped:
            code = stopped.exit_code
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Search:
    """The same beneath Hydra, which takes half a second: overrides as typed, settings of hydra.sweeper by name."""
    monkeypatch.setattr("sweeps.experiment.write_report", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["main.py", "-m"])

    def run(*typed: str, target: str = TARGET, **settings: Any) -> tuple[int, str]:
        try:
            search_studies(specs(arguments(tmp_path, *typed)), study_settings(DEFAULTS | settings), target)
            code = 0
        except Stopped as stopped:
            code = stopped.exit_code
        return code, capsys.readouterr().out

    return run


def command(folder: Path, *further: str) -> subprocess.Popen[str]:
    """A session of its own, so that a signal to its group is what Ctrl-C in a terminal is."""
    program = [sys.executable, str(ROOT / "main.py"), *words(folder, *further)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(program, cwd=folder, text=True, start_new_session=True, **pipes)


def load(folder: Path, name: str = "default/algo=apa") -> optuna.Study:
    journal = folder / "runs" / name.partition("/")[0] / "study.journal"
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def trials_csv(folder: Path, sweep: str = "default") -> list[dict[str, str]]:
    with (folder / "runs" / sweep / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def spans(folder: Path, what: str, of: tuple[str, ...] = ("apa", "ppo", "awr")) -> list[dict[str, Any]]:
    """The notes that say `what` of RL runs, or of other ones whose ids begin so, in order of time."""
    file = folder / "spans.jsonl"
    notes = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [note for note in notes if note["what"] == what and note["run"].startswith(of)]


def stored(folder: Path, *typed: str, owner: str = "owner", **settings: Any) -> StoredStudy:
    """The study of a command of this folder, which goes no further than to open it."""
    (spec,) = specs(arguments(folder, *typed))
    sweep = folder / "runs/default"
    sweep.mkdir(parents=True, exist_ok=True)
    (sweep / "study.owner").write_text(owner)
    checked = study_settings(DEFAULTS | settings)
    return StoredStudy(spec, checked, open_storage(checked, sweep), owner)


def behave(folder: Path, **behaviour: Any) -> None:
    (folder / "behaviour.json").write_text(json.dumps(behaviour))


def summary(folder: Path, run: str, sweep: str = "default") -> dict[str, Any]:
    return json.loads((folder / "runs" / sweep / run / "summary.json").read_text())
