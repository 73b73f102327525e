"""Progress as read from metrics.jsonl while it grows, and as it is shown."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from rlhf.config.identity import run_folder, run_id
from sweeps.display import Display, RunProgress, duration
from sweeps.runs import Outcome
from tests.config.composed import config


@pytest.fixture
def run(tmp_path):
    return config(f"output_dir={tmp_path}", "rollout.iterations=10")


def write(run, *rows, tail=""):
    file = run_folder(run) / "metrics.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def row(iteration, **more):
    return {"iteration": iteration, "samples": 64 * iteration, "seconds": 4.0 * iteration} | more


def test_speed_and_time_left(run):
    progress = RunProgress(run)
    progress.state = "running"
    progress.look()
    assert progress.done == 0 and progress.seconds_left is None
    write(run, row(0, **{"eval/reward": 0.5, "eval/kl": 0.0}), row(1, **{"train/reward": 0.7, "train/kl": 0.2}))
    progress.look()
    assert (progress.done, progress.reward, progress.kl) == (1, 0.7, 0.2)
    assert progress.responses_per_second == pytest.approx(16.0)
    assert progress.seconds_left == pytest.approx(36.0)


def test_half_written_rows_wait_and_a_cut_file_is_read_again(run):
    progress = RunProgress(run)
    write(run, row(0), row(1), row(2), tail='{"iteration": 3, "sam')
    progress.look()
    assert progress.done == 2
    write(run, row(0), row(1), row(2), row(3))
    progress.look()
    assert progress.done == 3
    write(run, row(0), row(1))
    progress.look()
    assert progress.done == 1


def test_a_terminal_gets_a_table_and_a_file_gets_lines(run):
    write(run, row(0), row(4, **{"train/reward": 0.25}))
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
        with Display([run], console) as display:
            display.update([run_folder(run)], [])
            display.update([], [Outcome(run, "failed", "RuntimeError: [not markup]")])
        shown = stream.getvalue()
        assert f"{run_id(run)} failed: RuntimeError: [not markup]" in shown
        assert ("4/10" in shown and "0.250" in shown) == terminal


def test_duration():
    assert [duration(seconds) for seconds in (None, 5.4, 65, 3723)] == ["-", "0:05", "1:05", "1:02:03"]
