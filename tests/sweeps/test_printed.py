"""What commands print of runs: folders and texts as they are, numbers whole, and what to type next."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.config.identity import input_runs, run_folder, run_id, sweep_folder
from sweeps.__main__ import main
from sweeps.experiment import closing_lines, report_sweeps
from sweeps.runs import Outcome, Stopped, log_path, outcome_path, read_records, write_json, write_record
from sweeps.single import print_result, print_start
from tests.analysis.made_up import config as made_up_config
from tests.analysis.made_up import rows as made_up_rows
from tests.analysis.made_up import write_run
from tests.config.composed import config

HOSTILE = "[/red] [bold]x \x1b[31mred\u202e"
FOLDER = "runs[/old] [red]a b"


def console(width: int = 500) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width), stream


def made(folder: Path, *overrides: str):
    run = config(f"output_dir='{folder}'", f"cache_dir={folder.parent}/cache", "tracking=none", *overrides)
    run_folder(run).mkdir(parents=True)
    return run


def log(run, *rows: dict) -> None:
    (run_folder(run) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS = (
    {"iteration": 0, "eval/reward": -12.345, "eval/kl": 0.0, "samples": 0, "seconds": 0.0},
    {"iteration": 1, "train/reward": 0.5, "eval/reward": -10.25, "eval/kl": 123.456, "samples": 64, "seconds": 9.0},
)


def test_status_of_folders_and_errors_that_look_like_markup(tmp_path, capsys):
    failed, finished = made(tmp_path / FOLDER), made(tmp_path / FOLDER, "seed=1")
    for run in (failed, finished):
        write_record(run, "rlhf.run:execute")
        log(run, *ROWS)
    log_path(failed).parent.mkdir(parents=True)
    log_path(failed).touch()
    write_json(outcome_path(failed), {"status": "failed", "reason": HOSTILE})
    (run_folder(finished) / "summary.json").write_text(json.dumps({"status": "finished"}))
    assert main(["status", str(sweep_folder(failed))]) == 0
    printed = capsys.readouterr().out
    assert f"failed: {run_id(failed)}: [/red] [bold]x red (log: " in printed
    assert f"{FOLDER}/default/logs/{run_id(failed)}.log" in printed
    row = next(line for line in printed.splitlines() if line.startswith(run_id(finished)))
    done = f"1/{finished.rollout.iterations}"
    assert row.split()[1:7] == ["finished", done, "-12.345", "\N{RIGHTWARDS ARROW}", "-10.250", "123.456"]
    assert "\x1b" not in printed and "\u202e" not in printed


def test_status_names_the_input_that_failed(tmp_path, capsys):
    """Of a single run, whose input is done in the same process and has no record."""
    run = made(tmp_path / "runs")
    write_record(run, "rlhf.run:execute", driver_started="0")
    sft = input_runs(run)[0]
    run_folder(sft).mkdir(parents=True)
    (run_folder(sft) / "summary.json").write_text(json.dumps({"status": "failed", "error": "RuntimeError: no room"}))
    assert main(["status", str(sweep_folder(run))]) == 0
    line = f"its input {run_id(sft)} failed (RuntimeError: no room); once that is mended, the same command goes on"
    assert f"failed: {run_id(run)}: {line}" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 200])
def test_status_on_terminals(tmp_path, monkeypatch, width):
    from rlhf.terminal import fitted_table
    from sweeps.__main__ import status_columns, sweep_status

    monkeypatch.chdir(tmp_path)
    run = made(tmp_path / "runs")
    write_record(run, "rlhf.run:execute")
    log(run, *ROWS)
    log_path(run).parent.mkdir(parents=True)
    log_path(run).touch()
    printer, stream = console(width)
    statuses, _ = sweep_status(sweep_folder(run))
    printer.print(fitted_table(status_columns(statuses), width))
    printed = stream.getvalue()
    assert {"-10.250", "123.456", f"1/{run.rollout.iterations}"} <= set(printed.split())
    assert max(map(len, printed.splitlines())) <= width and "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert (f"runs/default/logs/{run_id(run)}.log" in printed) == (width == 200)  # relative, or not at all


def test_the_end_of_a_sweep(tmp_path):
    run = made(tmp_path / FOLDER)
    printer, stream = console()
    report_sweeps([Outcome(run, "finished")], printer)  # there is nothing to report on
    with pytest.raises(Stopped):
        closing_lines([], [Outcome(run, "failed", HOSTILE)], 65.0, printer)
    printed = stream.getvalue()
    assert "no report (" in printed and FOLDER in printed
    assert f"0 of 1 run finished in 1:05\nfailed: {run_id(run)}: [/red] [bold]x red" in printed


def test_the_end_of_a_single_run(tmp_path):
    run = made(tmp_path / FOLDER, "overwrite=true")
    log(run, *ROWS)
    printer, stream = console()
    print_result(run, {"eval/reward": -10.25, "eval/kl": 123.456, "eval/gold_reward": None}, printer)
    first, results, report = stream.getvalue().splitlines()
    assert first == f"{run_id(run)} finished, reward from -12.345 to -10.250, KL 123.456 (last evaluation)"
    assert results == f"results: {run_folder(run)}"
    assert report.startswith("report: python -m analysis report ") and FOLDER in report


def test_what_went_wrong_in_a_single_run_is_printed(tmp_path):
    run = config(f"output_dir='{tmp_path}'", "tracking=none")
    write_run(
        run_folder(run).parent, run_folder(run).name, made_up_config("apa", 0), made_up_rows([0, 1, 2], [0, 4, 2.9])
    )
    printer, stream = console()
    print_result(run, {"eval/reward": 2.9}, printer)
    *_, told, report = stream.getvalue().splitlines()
    assert told.startswith("apa: reward fell while KL rose in the run") and "Try: raise algo.lam (1.0)" in told
    assert report.startswith("report: ")


def test_the_command_is_noted_beside_the_run(tmp_path, monkeypatch):
    run = made(tmp_path / "runs")
    monkeypatch.setattr("sys.argv", ["main.py", "-m", "algo=apa,ppo", "overwrite=true", "tracking.tags=[a b]"])
    write_record(run, "rlhf.run:execute")
    record = read_records(sweep_folder(run))[run_id(run)]
    assert record["command"] == "python main.py -m algo=apa,ppo 'tracking.tags=[a b]'"


def test_the_start(tmp_path, monkeypatch):
    run = made(tmp_path / "runs")
    sft = input_runs(run)[0]
    run_folder(sft).mkdir(parents=True)
    (run_folder(sft) / "summary.json").write_text(json.dumps({"status": "finished"}))
    printer, stream = console()
    print_start([run, run], printer)
    sizes, cached = stream.getvalue().splitlines()
    assert cached == f"from the cache, trained earlier: {run_id(sft)} (in {run_folder(sft).parent})"
    rollout, length = run.rollout, run.dataset.max_total_length
    assert f"{rollout.iterations} iterations of {rollout.num_responses} responses" in sizes
    assert f"{rollout.batch_size * length:,} tokens per forward pass" in sizes
    monkeypatch.setenv("RLHF_VERBOSE", "1")
    print_start([run], printer)
    assert "micro-batches per minibatch and rank (optimization.minibatch_size" in stream.getvalue()
