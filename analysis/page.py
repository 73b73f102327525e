"""The report as one HTML page that needs nothing else: no network, no script, figures inline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from analysis.load import RunRecord
from analysis.samples import sample_pairs
from analysis.summary import Comparison, SettingSummary
from analysis.tables import change_text, efficiency_header, efficiency_text, explanation, interval_text, number

_CSS = """
:root { color-scheme: light dark; --ink: #20262e; --paper: #fff; --soft: #5b6470; --line: #d5dae0; --panel: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ec; --paper: #15181c; --soft: #9aa4b0; --line: #363d46; --panel: #1e2329; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; font: 16px/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p.note, figcaption, li { color: var(--soft); font-size: .9rem; } figure { margin: 0; }
svg { width: 100%; min-width: 34rem; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); }
th { font-size: .85rem; color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; }
td { overflow-wrap: anywhere; } td.number { white-space: nowrap; }
.samples td { width: 40%; white-space: pre-wrap; background: var(--panel); padding: .5rem .7rem; font-size: .9rem;
              border: 3px solid var(--paper); min-width: 12rem; } .samples td:first-child { width: 20%; }
.score { display: block; color: var(--soft); font-size: .8rem; margin-top: .4rem; }
"""

_DEFINITION = (
    "KL efficiency E(K) is the mean height of the reward gain over the square root of KL, from 0 to the budget K: how "
    "much reward a run reached for the KL it spent. The gain at a KL is the best reward reached at or below it minus "
    "the initial one, chosen on half of the evaluation prompts and scored on the other half, both ways round. "
    "Intervals are over seeds and cover the randomness of RL alone: SFT policy and reward model are shared by the runs "
    "of a sweep."
)


def render_page(title: str, comparison: Comparison, figures: Sequence[tuple[str, str]]) -> str:
    """The whole page; `figures` are (inline SVG, caption) in order."""
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(_counts(comparison))}</p>',
        "<h2>Result</h2>",
        _headline_table(comparison.settings),
        f'<p class="note">{escape(explanation(comparison.settings))} {escape(_DEFINITION)}</p>',
        _list(comparison.notes),
        "<h2>Figures</h2>",
        *(
            f'<figure><div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'
            for svg, caption in figures
        ),
        "<h2>At each KL budget</h2>",
        _budget_table(comparison.settings),
        "<h2>Runs left out</h2>",
        _excluded_table(comparison),
        "<h2>Responses before and after</h2>",
        _samples(comparison.settings),
        "<h2>Provenance</h2>",
        _provenance(comparison),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _counts(comparison: Comparison) -> str:
    compared = sum(len(setting.runs) for setting in comparison.settings)
    others = sum(record.stage != "online" for record in comparison.records)
    text = f"{len(comparison.records)} run folders: {compared} compared, {len(comparison.excluded)} left out"
    return f"{text}, {others} of other stages (see runs.csv)." if others else f"{text}."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), kind: str = "") -> str:
    """Cells are HTML already; `numbers` are the columns set flush right."""
    styles = [' class="number"' if column in numbers else "" for column in range(len(header))]
    head = "".join(f'<th scope="col"{style}>{cell}</th>' for style, cell in zip(styles, header, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{style}>{cell}</td>" for style, cell in zip(styles, row, strict=True)) + "</tr>"
        for row in rows
    ]
    css_class = f' class="{kind}"' if kind else ""
    table = f"<table{css_class}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _headline_table(settings: Sequence[SettingSummary]) -> str:
    if not settings:
        return "<p>No finished run to compare.</p>"
    with_gold = any(setting.gold_after for setting in settings)
    header = ["algorithm", "seeds", "reward", *(["gold reward"] if with_gold else []), "KL, nats"]
    rows = [
        [
            escape(setting.name),
            escape(", ".join(map(str, setting.seeds))),
            change_text(setting.reward_before, setting.reward_after, 3),
            *([change_text(setting.gold_before, setting.gold_after, 3)] if with_gold else []),
            interval_text(setting.kl, 2),
            efficiency_text(setting, settings),
        ]
        for setting in settings
    ]
    return _table([*header, efficiency_header(settings)], rows, range(2, len(header) + 1))


def _budget_table(settings: Sequence[SettingSummary]) -> str:
    header = (
        "algorithm",
        "budget, nats",
        "KL efficiency",
        "min to max",
        "reward gain at the budget",
        "runs short of it",
    )
    rows = [
        (
            escape(setting.name),
            f"{budget.kl_budget:g}",
            interval_text(budget.kl_efficiency),
            f"{number(budget.kl_efficiency.minimum)} to {number(budget.kl_efficiency.maximum)}",
            interval_text(budget.gain),
            f"{budget.short_runs} of {len(setting.runs)}",
        )
        for setting in settings
        for budget in setting.budgets
    ]
    return _table(header, rows, range(1, len(header)))


def _excluded_table(comparison: Comparison) -> str:
    if not comparison.excluded:
        return "<p>None.</p>"
    rows = [(escape(item.record.id), escape(item.reason)) for item in comparison.excluded]
    return _table(("run", "reason"), rows)


def _samples(settings: Sequence[SettingSummary]) -> str:
    parts = []
    for setting in settings:
        record = setting.runs[0].record
        pairs = sample_pairs(record)
        if pairs:
            rows = [(escape(pair.prompt), _response(pair.before), _response(pair.after)) for pair in pairs]
            table = _table(("prompt", "before", "after"), rows, kind="samples")
            parts.append(f"<h3>{escape(setting.name)}, seed {record.seed}</h3>{table}")
    if not parts:
        return "<p>No run kept samples of its first and last evaluation.</p>"
    return '<p class="note">The first prompts of the evaluation, from the lowest seed of each row.</p>' + "".join(parts)


def _response(sample: dict[str, Any]) -> str:
    scores = []
    for name, key in (("reward", "reward"), ("gold", "gold_reward")):
        value = sample.get(key)
        if isinstance(value, int | float):
            scores.append(f"{name} {number(float(value))}")
    if sample.get("ended") is False:
        scores.append("cut off at the longest length")
    return f'{escape(str(sample.get("response", "")))}<span class="score">{escape(", ".join(scores))}</span>'


def _provenance(comparison: Comparison) -> str:
    records = [run.record for setting in comparison.settings for run in setting.runs]
    seconds = [float(s) for record in records if isinstance(s := record.summary.get("wall_seconds"), int | float)]
    memory = [float(m) for record in records if isinstance(m := record.summary.get("peak_memory_mb"), int | float)]
    versions = sorted({f"{k} {v}" for record in records for k, v in _versions(record).items()})
    rows = [
        ("commit", _distinct(record.summary.get("git_commit") for record in records)),
        ("data set", _distinct(record.setting("dataset.name") for record in records)),
        ("model", _distinct(record.setting("model.name") for record in records)),
        ("machine", _distinct(record.summary.get("hostname") for record in records)),
        ("processor", _distinct(record.summary.get("cpu") for record in records)),
        ("device, precision, threads", _distinct(_hardware(record) for record in records)),
        ("versions", ", ".join(versions)),
        ("seconds", f"{sum(seconds):.0f} in all, {min(seconds):.0f} to {max(seconds):.0f} a run" if seconds else ""),
        ("peak memory, largest run", f"{max(memory):.0f} MB" if memory else ""),
    ]
    return _table(("of the compared runs", ""), [(name, escape(text or "not recorded")) for name, text in rows])


def _versions(record: RunRecord) -> dict[str, Any]:
    versions = record.summary.get("versions")
    return versions if isinstance(versions, dict) else {}


def _hardware(record: RunRecord) -> str:
    parts = (record.setting(f"hardware.{key}") for key in ("device", "precision", "threads"))
    return ", ".join(str(part) for part in parts if part is not None)


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(sorted({str(value) for value in values if value}))
