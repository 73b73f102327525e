"""The report as one HTML page that needs nothing else: no network, libraries and data inline.

The page's policy (Content-Security-Policy) allows the scripts below by their hash, and nothing to be fetched: text of a
run that slipped through as HTML could neither run nor reach anybody.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis import page_runs, page_tables, page_texts
from analysis.diagnoses import CHECKS
from analysis.drawing import Figure, on_page, page_spec
from analysis.findings import Findings
from analysis.looks import drawn_settings
from analysis.tables import explanation
from rlhf.errors import visible

_HERE = Path(__file__).parent
_SCRIPTS = (
    "vendor/vega.min.js",
    "vendor/vega-lite.min.js",
    "vendor/vega-embed.min.js",
    "vendor/sortable.min.js",
    "report.js",
)
# Longer tables scroll within the page, longer lists are folded.
_TALL_TABLE = 16
_LONG_LIST = 6


def render_page(name: str, folder: Path, findings: Findings, figures: Sequence[Figure]) -> str:
    """The whole page.

    Args:
        name: of the sweep.
        folder: where the page will lie: its links lead from there.
    """
    comparison = findings.comparison
    settings = comparison.settings
    context: dict[str, Any] = {
        "title": page_texts.title(comparison, name),
        "texts": page_texts,
        "checks": CHECKS,
        "counts": page_texts.counts(comparison, name),
        "diagnoses": findings.diagnoses,
        "answer": findings.verdict,
        "frontiers": page_tables.budget_table(
            findings.envelopes, "frontiers-table", "KL efficiency of each frontier, mean over seeds"
        )
        if findings.envelopes
        else None,
        "spreads": page_tables.spread_table(comparison),
        "pairs": page_tables.pairs_table(findings.verdict.pairs) if findings.verdict.pairs else None,
        "problems": page_texts.problems(comparison, findings.diagnoses),
        "explanation": explanation(settings),
        "notes": comparison.notes,
        "figures": sorted(figures, key=_place),
        "gold": page_tables.gold_table(findings.gold_fits) if findings.gold_fits else None,
        "budgets": page_tables.budget_table(settings) if settings else None,
        "change": page_tables.change_table(settings),
        "claims": page_tables.claims_page_table(findings.claims),
        "claims_notes": page_texts.claims_notes(findings.claims),
        "sensitivity": page_tables.sensitivity_table(findings.sensitivities) if findings.sensitivities else None,
        "some_grey": bool(drawn_settings(settings)[1]),
        "samples": page_texts.sample_groups(settings),
        "differing": page_tables.settings_table(settings),
        "runs": page_runs.runs_table(settings, folder),
        "excluded": page_runs.excluded_table(comparison),
        "provenance": page_runs.provenance_table(findings),
        "tall_table": _TALL_TABLE,
        "long_list": _LONG_LIST,
    }
    scripts = _scripts() if settings else _scripts()[-2:]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **context,
            contents=_contents(context),
            scripts=[Markup(text) for text in scripts],
            policy=_policy(scripts),
            css=Markup((_HERE / "assets" / "report.css").read_text(encoding="utf-8")),
        )
        + "\n"
    )


def _place(figure: Figure) -> int:
    """The frontier first, then gold beside proxy and what else there is, curves, and what was varied."""
    if figure.id.startswith("over_"):
        return 4
    return {"frontier": 0, "curves": 2, "training": 3}.get(figure.id, 1)


def _contents(context: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, title) of the sections, in order."""
    last = [("runs", "Runs"), ("provenance", "How it was made"), ("diagnoses", "Diagnoses")]
    if not context["budgets"]:
        return [("result", "Result"), *last]
    frontier, *others = ((figure.id, figure.title) for figure in context["figures"])
    return [
        ("result", "Result"),
        frontier,
        ("budgets", "KL efficiency"),
        *others,
        ("claims", "Sample efficiency, stability"),
        ("samples", "Responses before and after"),
        ("settings", "Settings that differ"),
        *last,
    ]


def _breakable(text: str) -> Markup:
    """A dotted key may break after its parts, rather than anywhere."""
    return Markup("<wbr>").join(re.split(r"(?<=[_=])|(?<=\.)(?=[a-z])", visible(text)))


def _visible(value: Any) -> Any:
    """Text of runs without what a browser would obey, such as a change of direction; our own HTML as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever it holds.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has no word for.
    """
    return json.dumps(_all_visible(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _all_visible(value: Any) -> Any:
    if isinstance(value, dict):
        return {visible(name): _all_visible(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_all_visible(inner) for inner in value]
    return _visible(value)


def _policy(scripts: tuple[str, ...]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


@functools.cache
def _scripts() -> tuple[str, ...]:
    """In the order in which they run; without the addresses of source maps, which a debugger would fetch."""
    texts = ((_HERE / "assets" / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return tuple(re.sub(r"(?m)^//# sourceMappingURL=.*$", "", text) for text in texts)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["on_page"] = on_page
    environment.filters["spec_json"] = lambda panel: Markup(script_json(page_spec(panel)))
    return environment
