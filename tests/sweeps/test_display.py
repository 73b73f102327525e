"""Progress as read from metrics.jsonl while it grows, and as it is shown."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.config.identity import run_folder, run_id
from sweeps.display import Display, RunProgress
from sweeps.runs import Outcome, log_path
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


def look(display: Display, running: list[Path]) -> None:
    display._looked = 0.0
    display.update(running, [])


def test_speed_and_time_left(run):
    progress = RunProgress(run)
    progress.state = "running"
    progress.look()
    assert progress.seconds_left is None and progress.described() == f"{run_id(run)} starting"
    write(run, row(0, **{"eval/reward": 0.5, "eval/kl": 0.0}), row(1, **{"train/reward": 0.7, "train/kl": 0.2}))
    progress.look()
    assert progress.done == 1 and progress.share == 0.1
    assert progress.responses_per_second == pytest.approx(16.0)
    assert progress.seconds_left == pytest.approx(36.0)
    numbers = "eval reward 0.500, eval KL 0.000, train reward 0.700, train KL 0.200, 16.0 responses/s"
    assert progress.described() == f"{run_id(run)} 1/10 {numbers}, 0:36 left"


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
            display.update([], [Outcome(run, "failed", "RuntimeError: [/not] \x1b]0;title\x07markup")])
        shown = stream.getvalue()
        assert f"{run_id(run)} failed: RuntimeError: [/not] markup" in shown and "\x1b]0" not in shown
        assert ("4/10" in shown and "0.250" in shown) == terminal


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_table_cuts_no_number_and_tells_evaluation_from_training(run, width):
    write(
        run,
        row(0, **{"eval/reward": -12.345, "eval/kl": 0.0}),
        row(4, **{"train/reward": -1.25, "train/kl": 123.456, "eval/reward": -10.5, "eval/kl": 98.765}),
    )
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, width=width)
    with Display([run], console) as display:
        look(display, [run_folder(run)])
    shown = stream.getvalue()
    assert {"4/10", "-12.345", "-10.500", "98.765"} <= set(shown.split()) and "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert ("123.456" in shown) == ("responses/s" in shown) == (width > 80) and ("-1.250" in shown) == (width > 60)
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).splitlines())) <= width


@pytest.mark.parametrize("stage", ["online", "reference_samples"])
def test_eighty_columns_have_room_for_bar_and_time_left(tmp_path, stage):
    run = config(
        f"output_dir={tmp_path}", "rollout.iterations=1200", f"stage={stage}", "evaluation.reference_responses=64"
    )
    unit = "step" if stage == "reference_samples" else "iteration"
    rows = [{unit: i, "samples": i, "seconds": 400.0 * i, "eval/reward": -1.5 + i, "eval/kl": 10.5 * i} for i in (0, 1)]
    write(run, *rows)
    stream = io.StringIO()
    with Display([run], Console(file=stream, force_terminal=True, color_system=None, width=80)) as display:
        look(display, [run_folder(run)])
    shown = stream.getvalue()
    assert "left" in shown.split() and "-1.500 → -0.500" in shown
    assert ("7:00:00" if stage == "reference_samples" else "133:13:20") in shown.split()  # 63 or 1199 x 400 s


def test_a_finished_run_shows_no_speed(run):
    write(run, row(0, **{"eval/reward": 0.5}), row(10, **{"eval/reward": 0.7, "train/reward": 0.9, "eval/kl": 1.5}))
    progress = RunProgress(run)
    progress.look()
    progress.state = "running"
    assert progress.responses_per_second == pytest.approx(16.0)
    progress.state = "finished"
    assert progress.change_of("reward") == "0.500 → 0.700"
    assert progress.responses_per_second is None


def test_rows_of_junk_are_passed_over(run):
    write(run, row(0), [1], "text", row(1, **{"train/reward": "\x1b[31m", "train/kl": None, "eval/kl": True}))
    progress = RunProgress(run)
    progress.look()
    assert progress.done == 1 and progress.latest.keys().isdisjoint({"train/reward", "train/kl", "eval/kl"})


def test_how_many_are_done_and_how_long_the_rest_takes(tmp_path):
    """Two at a time: 24 s and 12 s left of 40 s each, two more of 40 s wait, so (24 + 12 + 40 + 40) / 2."""
    runs = [config(f"output_dir={tmp_path}", "rollout.iterations=10", f"seed={seed}") for seed in range(5)]
    write(runs[0], row(0), row(10))
    write(runs[1], row(0), row(4))
    write(runs[2], row(0), row(7))
    stream = io.StringIO()
    with Display(runs, Console(file=stream, force_terminal=True, color_system=None, width=100)) as display:
        look(display, [run_folder(run) for run in runs[:3]])
        display.update([], [Outcome(runs[0], "finished")])
    shown = stream.getvalue()
    assert "1 of 5 done, about 0:58 left (1 finished, 2 running, 2 queued)" in shown
    last = next(line for line in reversed(shown.splitlines()) if "of 5 done" in line)
    assert last.count("\N{BOX DRAWINGS HEAVY HORIZONTAL}") == 3  # (1 + 0.4 + 0.7) of 5, of 8 cells


def test_a_failure_is_red(run):
    stream = io.StringIO()
    with Display([run], Console(file=stream, force_terminal=True, color_system="standard", width=80)) as display:
        display.update([], [Outcome(run, "failed", "no room")])
    assert "\x1b[1;31m" in stream.getvalue().partition("failed: no room")[0].splitlines()[-1]
    assert stream.getvalue().count("\x1b[1;31mfailed") >= 1  # in the table


def test_stopping_says_how_long_an_iteration_takes(run):
    write(run, row(0), row(1), row(2))
    stream = io.StringIO()
    with Display([run], Console(file=stream, width=100)) as display:
        look(display, [run_folder(run)])
        display.stopping = lambda: True
        display.update([run_folder(run)], [])
        display.update([run_folder(run)], [])
    assert stream.getvalue().count("stopping after this iteration (0:04 or less), with a checkpoint") == 1


def test_what_runs_say_of_their_data_is_shown_once_with_their_stage(tmp_path):
    runs = [config(f"output_dir={tmp_path}", "rollout.iterations=10", f"seed={seed}") for seed in range(2)]
    stream = io.StringIO()
    with Display(runs, Console(file=stream, width=100), logs=True) as display:
        for run in runs:
            write(run, row(0))
            log_path(run).parent.mkdir(exist_ok=True)
            log_path(run).write_text("warning\ndata: letters: 64 prompts\n")
        look(display, [run_folder(run) for run in runs])
    assert stream.getvalue() == "online data: letters: 64 prompts\n"
