"""Many runs are read by worker processes, with the same outcome and whatever the program is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from analysis import parallel
from analysis.load import load_sweep
from analysis.summary import compare
from tests.analysis.made_up import config, rows, write_run

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path) -> None:
    for seed in range(4):
        write_run(folder, f"apa-s{seed}", config("apa", seed), rows([0, 1, 2], [0, seed, 2]))
    write_run(folder, "ppo-s0", config("ppo", 0), None)


def test_workers_change_nothing(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path)
    alone = compare(load_sweep(tmp_path))
    monkeypatch.setattr(parallel, "WORTH_SHARING", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    shared = compare(load_sweep(tmp_path))
    assert [record.id for record in shared.records] == [record.id for record in alone.records]
    for one, other in zip(shared.settings[0].runs, alone.settings[0].runs, strict=True):
        assert one.record.metrics.columns.keys() == other.record.metrics.columns.keys()
        for name, column in one.record.metrics.columns.items():
            np.testing.assert_array_equal(column, other.record.metrics.columns[name])
        assert one.efficiency(2.0) == other.efficiency(2.0)
    assert [item.reason for item in shared.excluded] == ["metrics.jsonl is missing"]


def test_a_program_without_a_file_or_a_guard(tmp_path: Path) -> None:
    """Workers would import it again, and it would start workers."""
    write(tmp_path / "s")
    lines = ["import os, pathlib", "os.sched_getaffinity = lambda _: {0, 1}", "from analysis import load, parallel"]
    lines += ["parallel.WORTH_SHARING = 2", f"print(len(load.load_sweep(pathlib.Path({str(tmp_path / 's')!r}))))"]
    program = "\n".join(lines) + "\n"
    (tmp_path / "unguarded.py").write_text(program)
    for words, typed in ((["-"], program), ([str(tmp_path / "unguarded.py")], None)):
        done = subprocess.run(
            [sys.executable, *words],
            input=typed,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr
