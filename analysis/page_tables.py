"""The page's tables as cells of text; the template makes HTML of them, and escapes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis.findings import Findings
from analysis.labels import differing_settings
from analysis.load import RunRecord
from analysis.looks import Drawn, drawn_settings
from analysis.measures import Claims, ClaimsTable, Sensitivity
from analysis.overoptimization import GoldFit
from analysis.replicates import drawn_text
from analysis.statistics import Interval, shares_draws
from analysis.summary import BudgetResult, Comparison, Contender, NotReached, SettingSummary
from analysis.tables import SPREAD_TITLE, change_text, interval_text, number, spread_rows
from analysis.verdict import Pair
from rlhf.runs.state import JOBS, LOGS

_LISTED_SEEDS = 5
_TRENDS = {
    "rises": "only rises",
    "falls": "only falls",
    "peaks beyond reach": "beyond the runs",
    "undecided": "cannot be told",
}
MOST_ROWS = 100
"""Of hundreds of settings or runs a page would grow to many megabytes; the CSV files have them all."""


@dataclass(frozen=True)
class Cell:
    text: str
    sort: float | str | None = None
    """What the column is sorted by, where it is not the text."""
    link: str = ""


@dataclass(frozen=True)
class PageTable:
    """The first cell of a row is its heading; `numbers` says whether the other columns are set flush right."""

    id: str
    caption: str
    rows: Sequence[Mapping[str, Cell]]
    """By name of the column."""
    numbers: bool = True
    sortable: bool = True
    whole: int | None = None
    """How many rows there would be, where not all are shown."""

    @property
    def header(self) -> tuple[str, ...]:
        return tuple(self.rows[0]) if self.rows else ()

    @property
    def count(self) -> int:
        return len(self.rows) if self.whole is None else self.whole


def _best(settings: Sequence[Drawn]) -> list[Drawn]:
    """Those of the highest KL efficiency, the highest first; all, where they are few."""
    return sorted(settings, key=lambda setting: -setting.headline.kl_efficiency.mean)[:MOST_ROWS]


def _of_settings(caption: str, count: int, file: str) -> str:
    if count <= MOST_ROWS:
        return caption
    return f"{caption}: the {MOST_ROWS} of {count} settings of the highest KL efficiency; {file} has all"


def _of_rows(caption: str, count: int, where: str) -> str:
    return caption if count <= MOST_ROWS else f"{caption}: the first {MOST_ROWS} of {count}; {where}"


def _cell(value: Interval | float | None, digits: int = 3) -> Cell:
    if value is None:
        return Cell(number(None), "")
    if isinstance(value, Interval):
        return Cell(interval_text(value, digits), value.mean)
    return Cell(number(value, digits), value)


def _mean(value: Interval, whole: bool = False) -> Cell:
    """Without the range over two seeds, but for `whole`."""
    return Cell(interval_text(value) if whole or value.low is not None else number(value.mean), value.mean)


def _seeds(setting: SettingSummary) -> str:
    if shares_draws(setting.replicates):
        return drawn_text([setting])
    seeds = setting.seeds
    if len(seeds) <= _LISTED_SEEDS:
        return ", ".join(map(str, seeds))
    return f"{len(seeds)} ({min(seeds)} to {max(seeds)})"


def budget_table(
    settings: Sequence[Contender],
    name: str = "budgets-table",
    caption: str = "KL efficiency within each KL budget",
) -> PageTable:
    """A matrix: algorithms by the budgets, the one that all reached first, with its share of the optimum."""
    shown = _best(settings)
    common = shown[0].headline.kl_budget if shown else 0.0
    by_budget = {id(one): {budget.kl_budget: budget for budget in (*one.budgets, one.headline)} for one in shown}
    budgets = sorted({kl for found in by_budget.values() for kl in found} - {common})
    with_share = any(setting.headline.share for setting in settings)
    rows = [
        {
            "algorithm": Cell(one.name),
            f"{common:g} nats, reached by all": _mean(one.headline.kl_efficiency, whole=True),
            **({f"share of the optimum at {common:g} nats": _share(one)} if with_share else {}),
            **{f"{kl:g} nats": _at_budget(by_budget[id(one)].get(kl), one) for kl in budgets},
        }
        for one in shown
    ]
    return PageTable(name, _of_settings(caption, len(settings), "kl_efficiency.csv"), rows)


def change_table(settings: Sequence[SettingSummary]) -> PageTable:
    """Before and after training."""
    with_gold = any(setting.gold_after for setting in settings)
    rows = []
    for setting in _best(settings):
        gold, reward = setting.gold_after, setting.reward_after
        changed = Cell(change_text(setting.gold_before, gold, 3), "" if gold is None else gold.mean)
        rows.append(
            {
                "algorithm": Cell(setting.name),
                "reward": Cell(change_text(setting.reward_before, reward, 3), reward.mean),
                **({"gold reward": changed} if with_gold else {}),
                "KL, nats": _cell(setting.kl, 2),
                "seeds": Cell(_seeds(setting), len(setting.runs)),
            }
        )
    caption = "Initial policy and last evaluation, means over seeds"
    return PageTable("change-table", _of_settings(caption, len(settings), "kl_efficiency.csv"), rows)


def pairs_table(found: Sequence[Pair]) -> PageTable:
    """Each against each of lower KL efficiency."""
    rows = [
        {
            "pair": Cell(f"{pair.first.name} \N{MINUS SIGN} {pair.second.name}"),
            "difference in KL efficiency": Cell(pair.text, pair.difference),
            "p, adjusted": Cell(
                number(None) if pair.p_value is None else "< 0.001" if pair.p_value < 0.001 else number(pair.p_value),
                "" if pair.p_value is None else pair.p_value,
            ),
            "told apart": Cell("yes" if pair.told_apart else "no"),
        }
        for pair in found[:MOST_ROWS]
    ]
    caption = "Differences within the KL that all reached; p-values by Holm's method for several pairs"
    return PageTable("pairs", _of_rows(caption, len(found), "python -m analysis compare lists all"), rows)


def spread_table(comparison: Comparison) -> PageTable | None:
    """None where SFT policies and reward models are not replicated."""
    rows = [{name: Cell(text) for name, text in row.items()} for row in spread_rows(comparison)]
    caption = _of_rows(SPREAD_TITLE, len(rows), "compare lists all")
    return PageTable("spread", caption, rows[:MOST_ROWS]) if rows else None


def _at_budget(budget: BudgetResult | NotReached | None, setting: Contender) -> Cell:
    if budget is None:
        return Cell(number(None), "")
    if isinstance(budget, NotReached):
        return Cell(f"not reached ({budget.runs} of {len(setting.runs)} runs)", "")
    return _mean(budget.kl_efficiency)


def _share(setting: Contender) -> Cell:
    share = setting.headline.share
    if share is None:
        return Cell(number(None), "")
    bounds = "" if share.low is None or share.high is None else f" [{share.low:.0%}, {share.high:.0%}]"
    return Cell(f"{share.mean:.0%}{bounds}", share.mean)


def claims_page_table(claims: ClaimsTable) -> PageTable:
    def to_target(row: Claims) -> Cell:
        if row.samples_to_target is None and claims.target is not None:
            return Cell(f"reached by {row.runs_at_target} of {len(row.setting.runs)} runs", "")
        return _cell(row.samples_to_target, 0)

    by_setting = {id(row.setting): row for row in claims.rows}
    rows = [
        {
            "algorithm": Cell(row.setting.name),
            "mean gain": _cell(row.mean_gain),
            "responses to target": to_target(row),
            "largest fall": _cell(row.largest_fall),
            "spread over seeds": _cell(None) if row.spread is None else _mean(row.spread),
        }
        for row in (by_setting[id(setting)] for setting in _best([row.setting for row in claims.rows]))
    ]
    caption = _of_settings("Sample efficiency and stability", len(claims.rows), "claims.csv")
    return PageTable("claims-table", caption, rows)


def sensitivity_table(found: Sequence[Sensitivity]) -> PageTable:
    rows = [
        {
            "algorithm": Cell(one.algo),
            "settings drawn": Cell(str(one.settings), one.settings),
            "tried": Cell(str(one.tried), one.tried),
            "without a result": Cell(str(one.failed), one.failed),
            **{name: _cell(getattr(one, name)) for name in ("best", "median", "worst")},
        }
        for one in found
    ]
    caption = "KL efficiency, within the KL that every run reached, of settings drawn from those tried"
    return PageTable("sensitivity-table", caption, rows)


def gold_table(fits: Sequence[GoldFit]) -> PageTable:
    by_setting = {id(fit.setting): fit for fit in fits}
    rows = [
        {
            "algorithm": Cell(fit.setting.name),
            "alpha": _cell(fit.alpha),
            "beta": _cell(fit.beta),
            "highest at, nats": Cell(_TRENDS[fit.trend], "") if fit.peak_kl is None else _cell(fit.peak_kl, 1),
            "R\N{SUPERSCRIPT TWO}": _cell(fit.explained, 2),
        }
        for fit in (by_setting[id(setting)] for setting in _best([fit.setting for fit in fits]))
    ]
    caption = (
        "The fitted lines, gold gain = d (alpha \N{MINUS SIGN} beta log d) with d = sqrt(KL); [ ]: 95 % interval over "
        "seeds; R\N{SUPERSCRIPT TWO}: share of the gains' variance that the line explains"
    )
    return PageTable("gold-table", caption, rows)


def excluded_table(comparison: Comparison) -> PageTable:
    count = len(comparison.excluded)
    rows = [{"run": Cell(item.record.id), "reason": Cell(item.reason)} for item in comparison.excluded[:MOST_ROWS]]
    caption = _of_rows("Runs left out of the comparison", count, "runs.csv has all")
    return PageTable("excluded-table", caption, rows, numbers=False, whole=count)


def settings_table(settings: Sequence[SettingSummary]) -> PageTable:
    """A column for each setting that the charts tell apart, a row for each thing that differs between any two."""
    shown = [settings.index(setting) for setting in drawn_settings(settings)[0]]
    differing = differing_settings([setting.runs[0].record.config for setting in settings])
    rows = [
        {"setting": Cell(key)} | {settings[place].name: Cell(values[place]) for place in shown}
        for key, values in differing.items()
        if key != "settings_from"  # says where values come from, which are rows themselves
    ]
    where = "the runs' config.yaml files have all, kl_efficiency.csv the labels"
    caption = _of_rows("Settings that are not the same in all runs", len(rows), where)
    return PageTable("settings-table", caption, rows[:MOST_ROWS], numbers=False, sortable=False, whole=len(rows))


def runs_table(settings: Sequence[SettingSummary], page_folder: Path) -> PageTable:
    """The compared runs, the best setting first, with links from the page's folder to theirs and to their logs."""
    found = [(setting, run) for setting in _best(settings) for run in setting.runs]
    rows = []
    for setting, run in found[:MOST_ROWS]:
        record = run.record
        log = record.folder.parent / LOGS / f"{record.folder.name}.log"
        seconds = record.summary.get("wall_seconds")
        rows.append(
            {
                "run": Cell(record.id, link=_link(record.folder, page_folder)),
                "algorithm": Cell(setting.name),
                "KL efficiency": _cell(run.efficiency(setting.headline.kl_budget)),
                "largest KL, nats": _cell(run.curve.largest_kl, 2),
                "last reward": _cell(float(run.evaluations.reward[-1])),
                "seconds": _cell(float(seconds), 0) if isinstance(seconds, int | float) else _cell(None),
                "log": Cell("log" if log.is_file() else number(None), "", _link(log, page_folder)),
            }
        )
    return PageTable("runs-table", _of_rows("Compared runs", len(found), "runs.csv has all"), rows, whole=len(found))


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
