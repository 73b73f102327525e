"""The comparison as rows: for the terminal, for CSV files and for the page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.compared import BudgetResult, Comparison, SettingSummary
from analysis.replicates import interval_texts, spread
from analysis.statistics import Interval, shares_draws
from rlhf.errors import visible
from rlhf.terminal import Column, fitted_columns

if TYPE_CHECKING:
    from rich.table import Table

SPREAD_TITLE = "Why runs differ in KL efficiency: shares of a run's variance"
_NARROWEST_NAME = 9  # of the column of algorithms

KL_EFFICIENCY_COLUMNS = (
    "algo",
    "label",
    "seeds",
    "kl_budget",
    "kl_efficiency",
    "ci_low",
    "ci_high",
    "ci_method",
    "kl_efficiency_min",
    "kl_efficiency_max",
    "kl_efficiency_iqm",
    "iqm_low",
    "iqm_high",
    "reward_gain_at_budget",
    "reward_gain_min",
    "reward_gain_max",
    "share_of_optimum",
    "share_low",
    "share_high",
    "runs_at_budget",
    "reward_before",
    "reward_after",
    "gold_before",
    "gold_after",
    "kl_after",
)


def number(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals, fewer for large values; a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.{digits if abs(value) < 100 else min(digits, 1)}f}".replace("-", "\N{MINUS SIGN}")


def interval_text(value: Interval, digits: int = 3) -> str:
    """`0.51 [0.40, 0.62]` from 3 seeds on, `0.51 (0.48 to 0.55)` with min and max for 2, the mean alone for 1 and where
    all have the same."""
    mean = number(value.mean, digits)
    if value.low is not None and value.high is not None:
        return f"{mean} [{number(value.low, digits)}, {number(value.high, digits)}]"
    if value.minimum == value.maximum:
        return mean
    return f"{mean} ({number(value.minimum, digits)} to {number(value.maximum, digits)})"


def change_text(before: Interval | None, after: Interval | None, digits: int = 2) -> str:
    if before is None or after is None:
        return number(None)
    return f"{number(before.mean, digits)} \N{RIGHTWARDS ARROW} {number(after.mean, digits)}"


def efficiency_header(settings: Sequence[SettingSummary]) -> str:
    """Names the KL that every run reached."""
    budgets = {setting.headline.kl_budget for setting in settings}
    return f"KL efficiency at {budgets.pop():g} nats" if len(budgets) == 1 else "KL efficiency"


def explanation(settings: Sequence[SettingSummary]) -> str:
    """What the brackets of the headline column mean, for the rows at hand."""
    found = [setting.headline.kl_efficiency for setting in settings]
    methods = {one.method for one in found}
    parts = []
    if methods & {"crossed", "prompts", "replicates"}:
        over, few = interval_texts(settings, prompts="replicates" not in methods)
        parts.append(f"[ ]: 95 % interval over {over}; {few}." if few else f"[ ]: 95 % interval over {over}.")
    if "student_t" in methods or "bca" in methods:
        names = [name for key, name in (("student_t", "Student t"), ("bca", "BCa bootstrap")) if key in methods]
        parts.append(f"[ ]: 95 % interval over seeds ({', '.join(names)}).")
    if any(one.seeds == 2 and one.low is None for one in found):
        parts.append("( ): min to max over seeds; fewer than 3 carry no interval.")
    return " ".join(parts)


def spread_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Why runs of a setting differ in KL efficiency, part by part; no row where SFT policies and reward models are not
    replicated."""
    found = [one for setting in comparison.settings if (one := spread(setting, comparison.crossed))]
    return [
        {"algorithm": one.setting.name, "SD of a run": number(one.deviation)}
        | {
            name: number(None) if part is None else f"{part / one.deviation**2:.0%}" if one.deviation else "0%"
            for name, part in one.parts.items()
        }
        for one in found
    ]


def spread_table(comparison: Comparison) -> Table | None:
    """`spread_rows` for the terminal; None where there is none."""
    from rich import box
    from rich.table import Table

    rows = spread_rows(comparison)
    if not rows:
        return None
    table = Table(*rows[0], box=box.SIMPLE_HEAD, title=SPREAD_TITLE, title_justify="left", collapse_padding=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def _runs_header(settings: Sequence[SettingSummary]) -> str:
    return "runs" if any(shares_draws(setting.replicates) for setting in settings) else "seeds"


def summary_table(comparison: Comparison, width: int = 80) -> Table:
    """The table that ends a sweep in the terminal; where `width` has no room for all columns, some are left out."""
    from rich import box
    from rich.table import Table

    settings = sorted(comparison.settings, key=lambda setting: -setting.headline.kl_efficiency.mean)
    # Long labels need the room; the page shows both.
    with_gold = any(setting.gold_after for setting in settings) and not any(setting.label for setting in settings)
    gold = [change_text(setting.gold_before, setting.gold_after) for setting in settings]
    columns = [
        Column("algorithm", [setting.name for setting in settings]),
        Column(_runs_header(settings), [str(len(setting.runs)) for setting in settings], True, drop=1),
        Column("reward", [change_text(setting.reward_before, setting.reward_after) for setting in settings], True),
        *([Column("gold reward", gold, True, drop=2)] if with_gold else []),
        Column("KL", [number(setting.kl.mean, 2) for setting in settings], True),
        Column(
            efficiency_header(settings).replace(" at ", "\nat "),
            [interval_text(setting.headline.kl_efficiency) for setting in settings],
        ),
    ]
    # Names may break their lines, so that the room is what the numbers leave.
    longest = max((len(setting.name) for setting in settings), default=0)
    kept = fitted_columns(columns, width - 2 + max(0, longest - _NARROWEST_NAME))
    with_gold = any(column.name == "gold reward" for column in kept)
    table = Table(
        box=box.SIMPLE_HEAD, caption=_caption(comparison, with_gold), caption_justify="left", collapse_padding=True
    )
    for column in kept:
        first = column.name == "algorithm"
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=not first,
            overflow="fold" if first else "ellipsis",
            min_width=_NARROWEST_NAME if first else None,
        )
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*row)
    return table


def _caption(comparison: Comparison, with_gold: bool) -> str:
    settings = comparison.settings
    lines = [explanation(settings)] if settings else [comparison.nothing]
    if any(setting.gold_after for setting in settings) and not with_gold:
        lines.append("Gold reward: see the report, or gold_after in kl_efficiency.csv.")
    if comparison.excluded:
        count = len(comparison.excluded)
        lines.append(f"Left out: {count} run{'s' if count > 1 else ''}; the report says why.")
    return "\n".join(line for line in lines if line)


def kl_efficiency_rows(settings: Sequence[SettingSummary]) -> list[dict[str, Any]]:
    """One row per setting and budget, first the one that every run reached, with the columns above; None where there is
    nothing to say."""
    rows = []
    for setting in settings:
        others = [one for one in setting.budgets if one.kl_budget != setting.headline.kl_budget]
        for budget in (setting.headline, *others):
            reached = budget if isinstance(budget, BudgetResult) else None
            efficiency, gain = reached and reached.kl_efficiency, reached and reached.gain
            iqm, share = reached and reached.iqm, reached and reached.share
            values = (
                setting.algo,
                setting.label,
                len(setting.runs),
                budget.kl_budget,
                efficiency and efficiency.mean,
                efficiency and efficiency.low,
                efficiency and efficiency.high,
                efficiency and efficiency.method,
                efficiency and efficiency.minimum,
                efficiency and efficiency.maximum,
                iqm and iqm.mean,
                iqm and iqm.low,
                iqm and iqm.high,
                gain and gain.mean,
                gain and gain.minimum,
                gain and gain.maximum,
                share and share.mean,
                share and share.low,
                share and share.high,
                len(setting.runs) if isinstance(budget, BudgetResult) else budget.runs,
                setting.reward_before.mean,
                setting.reward_after.mean,
                setting.gold_before and setting.gold_before.mean,
                setting.gold_after and setting.gold_after.mean,
                setting.kl.mean,
            )
            rows.append(dict(zip(KL_EFFICIENCY_COLUMNS, values, strict=True)))
    return rows


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per run folder: what it is, why it was left out if it was, and its final numbers."""
    compared = {run.record.id: run for setting in comparison.settings for run in setting.runs}
    common = comparison.settings[0].headline.kl_budget if comparison.settings else 0.0
    reasons = {item.record.id: item.reason for item in comparison.excluded}
    finals = sorted({key for record in comparison.records for key in record.summary if key.startswith("eval/")})
    rows = []
    for record in comparison.records:
        run = compared.get(record.id)
        rows.append(
            {
                "run": record.id,
                "algo": record.algo,
                "label": record.label,
                **dict(zip(("sft_seed", "reward_model_seed", "seed"), record.replicate, strict=True)),
                "stage": record.stage,
                "sweep": record.sweep,
                "status": record.status,
                "compared": run is not None,
                "reason": reasons.get(record.id) or record.reason or "",
                "kl_budget": run and common,
                "kl_efficiency": run and run.efficiency(common),
                "largest_kl": run and run.curve.largest_kl,
                "wall_seconds": record.summary.get("wall_seconds"),
                "peak_memory_mb": record.summary.get("peak_memory_mb"),
                "git_commit": record.summary.get("git_commit"),
                **{key: record.summary.get(key) for key in finals},
            }
        )
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Numbers in full precision; None is an empty cell; text without what a terminal would obey."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(
            {name: visible(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows
        )
