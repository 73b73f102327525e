"""The page's tables as cells of text; the template makes HTML of them, and escapes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.findings import Findings
from analysis.labels import differing_settings
from analysis.load import RunRecord
from analysis.looks import drawn_settings
from analysis.measures import Claims, ClaimsTable, Sensitivity
from analysis.overoptimization import GoldFit
from analysis.statistics import Interval
from analysis.summary import BudgetResult, Comparison, SettingSummary
from analysis.tables import change_text, efficiency_header, efficiency_text, interval_text, number

_NONE = "\N{EN DASH}"
_LISTED_SEEDS = 5


@dataclass(frozen=True)
class Cell:
    text: str
    sort: float | str | None = None
    """What the column is sorted by, where it is not the text."""


@dataclass(frozen=True)
class PageTable:
    """The first cell of a row is its heading; `numbers` are the columns set flush right."""

    id: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()
    sortable: bool = True


def _cell(value: Interval | None, digits: int = 3) -> Cell:
    return Cell(_NONE, "") if value is None else Cell(interval_text(value, digits), value.mean)


def _mean(value: Interval) -> Cell:
    """Without the range over two seeds, for a table that has a column of it."""
    text = interval_text(value) if value.low is not None else number(value.mean)
    return Cell(text, value.mean)


def _range(value: Interval) -> Cell:
    return Cell(f"{number(value.minimum)} to {number(value.maximum)}", value.minimum)


def _plain(value: float | None, digits: int = 3) -> Cell:
    return Cell(number(value, digits), "" if value is None else value)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) <= _LISTED_SEEDS:
        return ", ".join(map(str, seeds))
    return f"{len(seeds)} ({min(seeds)} to {max(seeds)})"


def headline_table(settings: Sequence[SettingSummary]) -> PageTable:
    with_gold = any(setting.gold_after for setting in settings)
    header = ["algorithm", efficiency_header(settings), "reward", *(["gold reward"] if with_gold else [])]
    rows = []
    for setting in settings:
        gold = setting.gold_after
        gold_cell = Cell(change_text(setting.gold_before, gold, 3), "" if gold is None else gold.mean)
        cells = [
            Cell(setting.name),
            Cell(efficiency_text(setting, settings), setting.headline.kl_efficiency.mean),
            Cell(change_text(setting.reward_before, setting.reward_after, 3), setting.reward_after.mean),
            *([gold_cell] if with_gold else []),
            _cell(setting.kl, 2),
            Cell(_seeds(setting.seeds), len(setting.runs)),
        ]
        rows.append(cells)
    caption = "The result: before and after training, means over seeds"
    whole = (*header, "KL, nats", "seeds")
    return PageTable("headline", caption, whole, rows, frozenset(range(1, len(whole))))


def budget_table(settings: Sequence[SettingSummary]) -> PageTable:
    """By rising budget; the columns of several seeds only where some setting has them."""
    pairs = [(setting, budget) for setting in settings for budget in setting.budgets]
    pairs.sort(key=lambda pair: pair[1].kl_budget)
    with_range = any(len(setting.runs) > 1 for setting in settings)
    with_iqm = any(budget.iqm is not None for _, budget in pairs)

    def several_seeds(budget: BudgetResult) -> list[Cell]:
        ranges = [_range(budget.kl_efficiency)] if with_range else []
        return ranges + ([_cell(budget.iqm)] if with_iqm else [])

    rows = [
        [
            Cell(setting.name),
            Cell(f"{budget.kl_budget:g}", budget.kl_budget),
            _mean(budget.kl_efficiency),
            *several_seeds(budget),
            _cell(budget.gain),
            Cell(f"{budget.short_runs} of {len(setting.runs)}", budget.short_runs),
        ]
        for setting, budget in pairs
    ]
    extra = [*(["min to max"] if with_range else []), *(["interquartile mean"] if with_iqm else [])]
    header = ("algorithm", "budget, nats", "KL efficiency", *extra, "reward gain within it", "runs short of it")
    caption = "KL efficiency and reward gain at each KL budget"
    return PageTable("budgets-table", caption, header, rows, frozenset(range(1, len(header))))


def claims_page_table(claims: ClaimsTable) -> PageTable:
    def to_target(row: Claims) -> Cell:
        if row.samples_to_target is not None:
            return _cell(row.samples_to_target, 0)
        if claims.target is None:
            return Cell(_NONE, "")
        return Cell(f"reached by {row.runs_at_target} of {len(row.setting.runs)} runs", "")

    rows = [
        [
            Cell(row.setting.name),
            _cell(row.mean_gain),
            to_target(row),
            _cell(row.largest_fall),
            _cell(row.kl_overshoot, 2),
            Cell(_NONE, "") if row.spread is None else _mean(row.spread),
        ]
        for row in claims.rows
    ]
    header = (
        "algorithm",
        "mean gain",
        "responses to target",
        "largest fall",
        "KL overshoot, nats",
        "spread over seeds",
    )
    caption = "Sample efficiency and stability"
    return PageTable("claims-table", caption, header, rows, frozenset(range(1, len(header))))


def sensitivity_table(found: Sequence[Sensitivity]) -> PageTable:
    rows = [
        [
            Cell(one.algo),
            Cell(str(one.settings), one.settings),
            *(_plain(value) for value in (one.best, one.median, one.worst)),
            Cell(_NONE, "") if one.spread is None else _mean(one.spread),
        ]
        for one in found
    ]
    header = ("algorithm", "settings", "best", "median", "worst", "spread between settings")
    caption = "KL efficiency at the headline budget over the settings tried"
    return PageTable("sensitivity-table", caption, header, rows, frozenset(range(1, len(header))))


def gold_table(fits: Sequence[GoldFit]) -> PageTable:
    rows = [
        [
            Cell(fit.setting.name),
            _cell(fit.alpha),
            _cell(fit.beta),
            Cell("not within reach", "") if fit.peak_kl is None else _plain(fit.peak_kl, 1),
            _plain(fit.explained, 2),
        ]
        for fit in fits
    ]
    header = ("algorithm", "alpha", "beta", "highest at, nats", "share explained")
    caption = "The fitted lines: gold gain = d (alpha \N{MINUS SIGN} beta log d) with d = sqrt(KL)"
    return PageTable("gold-table", caption, header, rows, frozenset(range(1, len(header))))


def excluded_table(comparison: Comparison) -> PageTable:
    rows = [[Cell(item.record.id), Cell(item.reason)] for item in comparison.excluded]
    return PageTable("excluded-table", "Runs left out of the comparison", ("run", "reason"), rows)


def settings_table(settings: Sequence[SettingSummary]) -> PageTable:
    """A column for each setting that the charts tell apart, a row for each thing that differs between any two."""
    drawn, _ = drawn_settings(settings)
    differing = differing_settings([setting.runs[0].record.config for setting in settings])
    columns = [place for place, setting in enumerate(settings) if any(setting is one for one in drawn)]
    rows = [[Cell(key), *(Cell(values[place]) for place in columns)] for key, values in differing.items()]
    header = ("setting", *(settings[place].name for place in columns))
    return PageTable("settings-table", "Settings that are not the same in all runs", header, rows, sortable=False)


def provenance_table(findings: Findings) -> PageTable:
    records = [run.record for setting in findings.comparison.settings for run in setting.runs]
    seconds, memory = _numbers(records, "wall_seconds"), _numbers(records, "peak_memory_mb")
    versions = sorted({f"{name} {version}" for record in records for name, version in _versions(record).items()})
    facts = {
        "commit": _distinct(record.summary.get("git_commit") for record in records),
        "data set": _distinct(record.setting("dataset.name") for record in records),
        "model": _distinct(record.setting("model.name") for record in records),
        "machine": _distinct(record.summary.get("hostname") for record in records),
        "processor": _distinct(record.summary.get("cpu") for record in records),
        "device, precision, threads": _distinct(_hardware(record) for record in records),
        "versions": ", ".join(versions),
        "seconds": f"{sum(seconds):.0f} in all, {min(seconds):.0f} to {max(seconds):.0f} a run" if seconds else "",
        "peak memory, largest run": f"{max(memory):.0f} MB" if memory else "",
    }
    rows = [[Cell(name), Cell(text or "not recorded")] for name, text in facts.items()]
    return PageTable("provenance-table", "Of the compared runs", ("what", "value"), rows, sortable=False)


def _numbers(records: Sequence[RunRecord], key: str) -> list[float]:
    return [float(value) for record in records if isinstance(value := record.summary.get(key), int | float)]


def _versions(record: RunRecord) -> dict[str, Any]:
    versions = record.summary.get("versions")
    return versions if isinstance(versions, dict) else {}


def _hardware(record: RunRecord) -> str:
    parts = (record.setting(f"hardware.{key}") for key in ("device", "precision", "threads"))
    return ", ".join(str(part) for part in parts if part is not None)


def _distinct(values: Iterable[Any], most: int = 12) -> str:
    found = sorted({str(value) for value in values if value})
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")
