"""The page's tables of single runs: which were compared and left out, and how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis.compared import Comparison, SettingSummary
from analysis.findings import Findings
from analysis.load import RunRecord
from analysis.page_tables import MOST_ROWS, Cell, PageTable, best, cell, of_rows
from analysis.tables import number
from rlhf.runs.state import JOBS, LOGS


def runs_table(settings: Sequence[SettingSummary], page_folder: Path) -> PageTable:
    """The compared runs, the best setting first, with links from the page's folder to theirs and to their logs."""
    found = [(setting, run) for setting in best(settings) for run in setting.runs]
    rows = []
    for setting, run in found[:MOST_ROWS]:
        record = run.record
        log = record.folder.parent / LOGS / f"{record.folder.name}.log"
        seconds = record.summary.get("wall_seconds")
        rows.append(
            {
                "run": Cell(record.id, link=_link(record.folder, page_folder)),
                "algorithm": Cell(setting.name),
                "KL efficiency": cell(run.efficiency(setting.headline.kl_budget)),
                "largest KL, nats": cell(run.curve.largest_kl, 2),
                "last reward": cell(float(run.evaluations.reward[-1])),
                "seconds": cell(float(seconds), 0) if isinstance(seconds, int | float) else cell(None),
                "log": Cell("log" if log.is_file() else number(None), "", _link(log, page_folder)),
            }
        )
    return PageTable("runs-table", of_rows("Compared runs", len(found), "runs.csv has all"), rows, whole=len(found))


def _link(target: Path, page_folder: Path) -> str:
    """Of a file or folder, as a browser takes it from the page; "" where there is none."""
    if not target.exists():
        return ""
    relative = os.path.relpath(os.fsencode(target.absolute()), os.fsencode(page_folder.absolute()))
    return f"./{quote(relative)}{'/' * target.is_dir()}"


def provenance_table(findings: Findings) -> PageTable:
    records = [run.record for setting in findings.comparison.settings for run in setting.runs]
    seconds, memory = _numbers(records, "wall_seconds"), _numbers(records, "peak_memory_mb")
    known = [record.summary.get("versions") for record in records]
    versions = sorted({f"{name} {one[name]}" for one in known if isinstance(one, dict) for name in one})
    facts = {
        "command": _distinct(_command(record) for record in records),
        "evaluation prompts": _distinct(_prompts(record) for record in records),
        "reward model, accuracy on held-out pairs": _distinct(_input(record, "reward_model") for record in records),
        "SFT, loss on held-out text": _distinct(_input(record, "sft") for record in records),
        "wall time": f"{_time(sum(seconds))} in all, {_time(min(seconds))} to {_time(max(seconds))} a run"
        if seconds
        else "",
        "peak memory, largest run": f"{max(memory):.0f} MB" if memory else "",
        "data set": _distinct(record.setting("dataset.name") for record in records),
        "model": _distinct(record.setting("model.name") for record in records),
        "commit": _distinct(record.summary.get("git_commit") for record in records),
        "machine": _distinct(record.summary.get("hostname") for record in records),
        "processor": _distinct(record.summary.get("cpu") for record in records),
        "device, precision, threads": _distinct(_hardware(record) for record in records),
        "versions": ", ".join(versions),
    }
    rows = [{"what": Cell(name), "value": Cell(text or "not recorded")} for name, text in facts.items()]
    return PageTable("provenance-table", "Of the compared runs", rows, numbers=False, sortable=False)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36000
        else f"{seconds / 3600:.0f} h"
    )


def _command(record: RunRecord) -> str:
    """What was typed, as the sweep noted it."""
    try:
        note = json.loads((record.folder.parent / JOBS / f"{record.folder.name}.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    command = note.get("command") if isinstance(note, dict) else None
    return command if isinstance(command, str) else ""


def _prompts(record: RunRecord) -> str:
    prompts, responses = (
        record.setting(key) for key in ("dataset.num_eval_prompts", "evaluation.responses_per_prompt")
    )
    return "" if prompts is None else f"{prompts}, {responses or 1} response{'s' * (responses not in (None, 1))} each"


def _input(record: RunRecord, stage: str) -> str:
    """The result of the stage that the run started from."""
    inputs = record.summary.get("inputs")
    found = inputs.get(stage) if isinstance(inputs, dict) else None
    value = found.get("eval/accuracy" if stage == "reward_model" else "eval/loss") if isinstance(found, dict) else None
    return number(float(value)) if isinstance(value, int | float) else ""


def _numbers(records: Sequence[RunRecord], key: str) -> list[float]:
    return [float(value) for record in records if isinstance(value := record.summary.get(key), int | float)]


def _hardware(record: RunRecord) -> str:
    parts = (record.setting(f"hardware.{key}") for key in ("device", "precision", "threads"))
    return ", ".join(str(part) for part in parts if part is not None)


def _distinct(values: Iterable[Any], most: int = 12) -> str:
    found = sorted({str(value) for value in values if value})
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")


def excluded_table(comparison: Comparison) -> PageTable:
    count = len(comparison.excluded)
    rows = [{"run": Cell(item.record.id), "reason": Cell(item.reason)} for item in comparison.excluded[:MOST_ROWS]]
    caption = of_rows("Runs left out of the comparison", count, "runs.csv has all")
    return PageTable("excluded-table", caption, rows, numbers=False, whole=count)
