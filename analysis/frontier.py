"""`python -m analysis frontier SOURCE ...`: reward over KL of any trainer's runs.

A run is a file, or a column of W&B's chart exports; runs and sweeps of this program may stand beside them. KL
efficiency is the report's, within the KL that every run reached; logs have no numbers of single prompts, so that
intervals are over seeds alone.
"""

from __future__ import annotations

import argparse
import glob
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError
from analysis.load import RunRecord, is_run
from analysis.other_runs import FORMATS, UNITS, Keys, listed, read_other_runs, read_table, rows_of_a_point, to_records
from analysis.summary import compare
from analysis.tables import KL_EFFICIENCY_COLUMNS, kl_efficiency_rows, summary_table, write_csv
from analysis.verdict import verdict
from analysis.versus import records_by_sweep

_OF_LOGS = {
    "reward_key": "column of the reward",
    "kl_key": "column of the KL to the initial policy",
    "kl_unit": f"what that KL counts, {', '.join(UNITS)}; it is never guessed",
    "length_key": "column of the tokens of a response, for a KL per token",
    "step_key": "column by which rows are ordered and joined; otherwise step and its like",
    "average": "means over so many rows in a row; from 2 on the best is chosen on other rows than it is scored on",
    "initial_reward": "the initial policy's, where no row is of it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis frontier`."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="[NAME=]SOURCE",
        help=f"a log ({', '.join(FORMATS)}), a folder of logs, or a run or sweep of this program; logs of one NAME are "
        "seeds of one algorithm, without it those named alike but for the seed (ppo-s0.csv, ppo_seed1.csv)",
    )
    for name, text in _OF_LOGS.items():
        kind = {"average": int, "initial_reward": float}.get(name, str)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--output", type=Path, default=Path("frontier"), help="folder to write into (frontier)")


def run(options: argparse.Namespace) -> int:
    """Write frontier.png, .svg and kl_efficiency.csv, and print the table and the verdict; 1 where no run can be
    compared.

    Raises:
        AnalysisError: a source, file, key or option is not as it must be.
    """
    from rlhf.terminal import NARROWEST, tell
    from rlhf.terminal import console as made_console

    files, folders = _sorted(options.sources)
    notes: list[str] = []
    records = _of_files(options, files, notes)
    own = records_by_sweep(folders) if folders else {}
    for name, found in own.items():
        prefix = f"{name or 'runs'}: " if files or len(own) > 1 else ""
        records += [replace(record, algo=prefix + record.algo) for record in found]
    comparison = compare(records)
    console, answer = made_console(narrowest=NARROWEST), verdict(comparison)
    console.print(summary_table(comparison, console.width))
    said = [f"note: {note}" for note in (*notes, *comparison.notes)]
    said += [f"left out: {item.record.id}: {item.reason}" for item in comparison.excluded]
    for text in filter(None, (answer.sentence, answer.detail, *said)):
        tell(console, text)
    if not comparison.settings:
        return 1
    # The drawing libraries take a second to import.
    from analysis.charts_frontier import frontier_figure
    from analysis.drawing import save_figure

    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(options.output / "kl_efficiency.csv", kl_efficiency_rows(comparison.settings), KL_EFFICIENCY_COLUMNS)
    picture, _ = save_figure(frontier_figure(comparison), options.output, "frontier")
    tell(console, str(picture))
    return 0


def _sorted(texts: Sequence[str]) -> tuple[list[tuple[str, Path]], list[Path]]:
    """(algorithm, file) of other trainers' logs, each file once, and folders of this program."""
    files: dict[Path, tuple[str, Path]] = {}
    folders = []
    for text in texts:
        name, _, pattern = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
        matches = [Path(pattern)] if Path(pattern).exists() else [Path(one) for one in sorted(glob.glob(pattern))]
        if not matches:
            raise AnalysisError(f"{pattern}: no such file or folder")
        for path in matches:
            inside = sorted(path.iterdir()) if path.is_dir() else []
            if path.is_dir() and any(one.is_dir() and is_run(one) for one in (path, *inside)):
                if name:
                    raise AnalysisError(f"{text}: runs of this program have their names; leave out {name}=")
                folders.append(path)
                continue
            logs = [one for one in inside if one.suffix.lower() in FORMATS] if path.is_dir() else [path]
            if not logs:
                raise AnalysisError(f"{path}: holds neither runs nor files that end in {', '.join(FORMATS)}")
            files |= {one.resolve(): (name, one) for one in logs}
    return list(files.values()), folders


def _of_files(options: argparse.Namespace, files: Sequence[tuple[str, Path]], notes: list[str]) -> list[RunRecord]:
    given = {name: getattr(options, name) for name in _OF_LOGS}
    for name in [name for name, value in given.items() if value is not None and not files]:
        raise AnalysisError(f"--{name.replace('_', '-')}: is for other trainers' logs, and there is none")
    if not files:
        return []
    for name in [name for name in ("reward_key", "kl_key") if given[name] is None]:
        columns = listed(list(map(str, read_table(files[0][1])[0].columns)))
        raise AnalysisError(f"--{name.replace('_', '-')}: name a column; {files[0][1]} has {columns}")
    unit, length = options.kl_unit, options.length_key
    per_token = str(unit).endswith("/token")
    for wrong, text in (
        (options.reward_key == options.kl_key, "--kl-key: is the column of the reward; give another"),
        (unit not in UNITS, f"--kl-unit: say what the KL counts, {', '.join(UNITS)}; it is never guessed"),
        (per_token and length is None, f"--length-key: a KL in {unit} needs the column of the tokens of a response"),
        (not per_token and length is not None, f"--length-key: not read with a KL in {unit}; leave it out"),
        (options.average is not None and options.average < 1, "--average: give a number of rows, 1 or more"),
        (not math.isfinite(options.initial_reward or 0.0), "--initial-reward: give a finite number"),
    ):
        if wrong:
            raise AnalysisError(text)
    wanted: dict[str, Any] = {"reward": options.reward_key, "kl": options.kl_key} | (
        {"length": length} if per_token else {}
    )
    runs = read_other_runs(files, Keys(wanted, unit, options.step_key))
    sizes = [rows_of_a_point(run, options.average) for run in runs]
    if max(sizes) > 1 and options.average is None:
        several = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{max(sizes)}"
        notes.append(f"points are means over {several} rows; --average takes another number")
    if min(sizes) == 1:
        notes.append(
            "of rows that are not averaged the best is chosen and scored on the same, so that noise counts as gain; "
            "--average 2 or more ends that, and rows that are evaluations of many prompts hardly need it"
        )
    notes.append("taken on trust: all logs are of one task, one reward and one initial policy, to which the KL is")
    return to_records(runs, options.average, options.initial_reward)
