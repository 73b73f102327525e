"""The page's tables as cells of text; the template makes HTML of them, and escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.compared import BudgetResult, Comparison, Contender, NotReached, SettingSummary
from analysis.labels import differing_settings
from analysis.looks import Drawn, drawn_settings
from analysis.measures import Claims, ClaimsTable, Sensitivity
from analysis.overoptimization import GoldFit
from analysis.replicates import drawn_text
from analysis.statistics import Interval, shares_draws
from analysis.tables import SPREAD_TITLE, change_text, interval_text, number, spread_rows
from analysis.verdict import Pair

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


def best(settings: Sequence[Drawn]) -> list[Drawn]:
    """Those of the highest KL efficiency, the highest first; all, where they are few."""
    return sorted(settings, key=lambda setting: -setting.headline.kl_efficiency.mean)[:MOST_ROWS]


def _of_settings(caption: str, count: int, file: str) -> str:
    if count <= MOST_ROWS:
        return caption
    return f"{caption}: the {MOST_ROWS} of {count} settings of the highest KL efficiency; {file} has all"


def of_rows(caption: str, count: int, where: str) -> str:
    return caption if count <= MOST_ROWS else f"{caption}: the first {MOST_ROWS} of {count}; {where}"


def cell(value: Interval | float | None, digits: int = 3) -> Cell:
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
    shown = best(settings)
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
    for setting in best(settings):
        gold, reward = setting.gold_after, setting.reward_after
        changed = Cell(change_text(setting.gold_before, gold, 3), "" if gold is None else gold.mean)
        rows.append(
            {
                "algorithm": Cell(setting.name),
                "reward": Cell(change_text(setting.reward_before, reward, 3), reward.mean),
                **({"gold reward": changed} if with_gold else {}),
                "KL, nats": cell(setting.kl, 2),
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
    return PageTable("pairs", of_rows(caption, len(found), "python -m analysis compare lists all"), rows)


def spread_table(comparison: Comparison) -> PageTable | None:
    """None where SFT policies and reward models are not replicated."""
    rows = [{name: Cell(text) for name, text in row.items()} for row in spread_rows(comparison)]
    caption = of_rows(SPREAD_TITLE, len(rows), "compare lists all")
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
        return cell(row.samples_to_target, 0)

    by_setting = {id(row.setting): row for row in claims.rows}
    rows = [
        {
            "algorithm": Cell(row.setting.name),
            "mean gain": cell(row.mean_gain),
            "responses to target": to_target(row),
            "largest fall": cell(row.largest_fall),
            "spread over seeds": cell(None) if row.spread is None else _mean(row.spread),
        }
        for row in (by_setting[id(setting)] for setting in best([row.setting for row in claims.rows]))
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
            **{name: cell(getattr(one, name)) for name in ("best", "median", "worst")},
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
            "alpha": cell(fit.alpha),
            "beta": cell(fit.beta),
            "highest at, nats": Cell(_TRENDS[fit.trend], "") if fit.peak_kl is None else cell(fit.peak_kl, 1),
            "R\N{SUPERSCRIPT TWO}": cell(fit.explained, 2),
        }
        for fit in (by_setting[id(setting)] for setting in best([fit.setting for fit in fits]))
    ]
    caption = (
        "The fitted lines, gold gain = d (alpha \N{MINUS SIGN} beta log d) with d = sqrt(KL); [ ]: 95 % interval over "
        "seeds; R\N{SUPERSCRIPT TWO}: share of the gains' variance that the line explains"
    )
    return PageTable("gold-table", caption, rows)


def settings_table(settings: Sequence[SettingSummary]) -> PageTable:
    """A column for each setting that the charts tell apart, a row for each thing that differs between any two."""
    shown = [settings.index(setting) for setting in drawn_settings(settings)[0]]
    differing = differing_settings([setting.runs[0].record.config for setting in settings])
    rows = [
        {"setting": Cell(key)} | {settings[place].name: Cell(values[place]) for place in shown}
        for key, values in differing.items()
    ]
    where = "the runs' config.yaml files have all, kl_efficiency.csv the labels"
    caption = of_rows("Settings that are not the same in all runs", len(rows), where)
    return PageTable("settings-table", caption, rows[:MOST_ROWS], numbers=False, sortable=False, whole=len(rows))
