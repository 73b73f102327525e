"""The page in a real browser: what it draws, asks for, and does with mouse, keyboard and small windows."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from analysis.report import write_report
from tests.analysis.browser import CHROMIUM, NEEDED, chromium, opened
from tests.analysis.made_up import config, rows, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason=NEEDED),
]

HOSTILE = "</script><script>document.title = 'taken over'</script><img src='https://example.com/a.png'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two algorithms over four values of lam with a gold reward, long labels, a failed run and texts out for harm."""
    sweep = tmp_path_factory.mktemp("runs") / "made_up"
    samples = [{"step": step, "prompt": "Say it", "response": HOSTILE, "reward": 1.0} for step in (0, 8)]
    kl = [0.0, 0.5, 1.0, 2.0, 4.0]
    for place, algo in enumerate(("apa", "awr")):
        for lam in (0.1, 0.3, 1.0, 3.0):
            for seed in (0, 1):
                gain = [(1 + place + lam / 3 + seed / 10) * math.sqrt(one) for one in kl]
                gold = [math.sqrt(one) * (1 - 0.6 * math.log(max(one, 1e-9)) / 2) for one in kl]
                run = config(algo, seed, algo__lam=lam)
                write_run(sweep, f"{algo}-{lam}-s{seed}", run, rows(kl, gain, gold=gold), samples=samples)
    write_run(sweep, "ppo-s0", config("ppo", 0), rows([0, 1], [0, 1]), status="failed", error=f"ValueError: {HOSTILE}")
    return write_report(sweep).html


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_draws_everything_and_fetches_nothing(browser: Browser, html: Path, width: int, dark: bool) -> None:
    with opened(browser, html, width, dark=dark) as seen:
        assert seen.complaints == [] and seen.requests == [html.resolve().as_uri()]
        assert seen.page.title() == "awr and apa on letters with tiny, 2 seeds"
        charts = seen.page.locator(".chart")
        assert charts.count() == 10
        for index in range(charts.count()):
            svg = charts.nth(index).locator("svg")
            box = svg.bounding_box()
            assert box and box["width"] > 250 and box["height"] > 150 and box["x"] + box["width"] <= width
            drawn = "path[d]:not([d='']):not([fill='transparent'])"
            assert svg.locator(f".mark-line {drawn}, .mark-symbol {drawn}").count() > 3
        wide = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
        assert max(seen.page.evaluate(wide)) <= width


def column(page: Page, table: str, place: int) -> list[str]:
    return page.locator(f"#{table} tbody tr > :nth-child({place})").all_inner_texts()


def test_tables_sort_by_click_and_by_key(browser: Browser, html: Path) -> None:
    with opened(browser, html) as seen:
        heading = seen.page.locator("#budgets-table thead th").nth(1)
        button = heading.locator("button")
        written = column(seen.page, "budgets-table", 1)  # the best is the first as it is
        button.click()
        seen.page.wait_for_function("document.querySelector('#budgets-table th[aria-sort=descending]')")
        efficiencies = [float(text.split(" ")[0]) for text in column(seen.page, "budgets-table", 2)]
        assert efficiencies == sorted(efficiencies, reverse=True) and column(seen.page, "budgets-table", 1) == written
        for key, direction in (("Enter", "ascending"), ("Space", "descending")):
            button.focus()
            seen.page.keyboard.press(key)
            seen.page.wait_for_function(f"document.querySelector('#budgets-table th[aria-sort={direction}]')")
            seen.page.wait_for_timeout(50)  # the library moves the rows a moment after it has marked the heading
            found = [float(text.split(" ")[0]) for text in column(seen.page, "budgets-table", 2)]
            assert found == sorted(found, reverse=direction == "descending")
        assert seen.complaints == []


def test_a_table_can_be_copied_and_brought_back(browser: Browser, html: Path) -> None:
    with opened(browser, html) as seen:
        first = column(seen.page, "budgets-table", 1)
        for direction in ("descending", "ascending"):
            seen.page.locator("#budgets-table thead th button").nth(0).click()
            seen.page.wait_for_function(f"document.querySelector('#budgets-table th[aria-sort={direction}]')")
        seen.page.wait_for_timeout(50)
        assert column(seen.page, "budgets-table", 1) != first
        tools = seen.page.locator(".scroll:has(#budgets-table) + .tools")
        tools.get_by_text("First order").click()
        assert column(seen.page, "budgets-table", 1) == first
        seen.page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        tools.get_by_text("Copy as CSV").click()
        header, row, *_ = seen.page.evaluate("window.copied").splitlines()
        assert header == 'algorithm,"4 nats, reached by all",1 nats' and row.startswith(f"{first[0]},")
        tools.get_by_text("Copy as LaTeX").click()
        made = seen.page.evaluate("window.copied").splitlines()
        assert (
            made[0] == "\\begin{tabular}{lrr}" and made[2].endswith(" & 1 nats \\\\") and made[-1] == "\\end{tabular}"
        )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_print_loses_no_column_and_is_light(browser: Browser, html: Path, dark: bool) -> None:
    with opened(browser, html, width=700, dark=dark) as seen:  # as wide as a sheet
        seen.page.emulate_media(media="print", color_scheme="dark" if dark else "light")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 700
        for table in seen.page.locator(".scroll > table").all():
            box = table.bounding_box()
            assert box is None or box["x"] + box["width"] <= 700
        for chart in seen.page.locator(".chart svg").all():
            box = chart.bounding_box()
            assert box and box["x"] + box["width"] <= 700
        ink, paper = seen.page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert luminance(paper) == 1.0 and contrast(ink, paper) >= 4.5
        assert seen.page.locator("nav").is_hidden()


def test_tab_reaches_everything(browser: Browser, html: Path) -> None:
    describe = """() => { const e = document.activeElement;
        return [e.tagName, e.className, e.textContent.trim().slice(0, 40),
                parseFloat(getComputedStyle(e).outlineWidth)]; }"""
    with opened(browser, html) as seen:
        stops: list[tuple[str, str, str, float]] = []
        for _ in range(300):
            seen.page.keyboard.press("Tab")
            stops.append(tuple(seen.page.evaluate(describe)))
            if stops[-1][0] == "BODY":
                break
        assert stops.pop()[0] == "BODY"
        assert stops[0][:3] == ("A", "skip", "Skip to the result")
        kinds = {tag for tag, *_ in stops}
        assert kinds == {"A", "BUTTON", "DIV", "SUMMARY"}
        reached = seen.page.locator("a, button, summary, [tabindex='0']").count()
        hidden = seen.page.locator("details:not([open]) > :not(summary)").locator("a, button, [tabindex='0']").count()
        assert len(stops) == reached - hidden
        assert all(outline >= 2 for *_, outline in stops)
        # The skip link leads past the contents.
        seen.page.locator(".skip").focus()
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate("document.activeElement.id") == "main"


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, by WCAG 2."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_can_both_be_read(browser: Browser, html: Path) -> None:
    colours: dict[bool, list[str]] = {}
    kinds = ("body", "nav a", "summary", "figcaption", "thead th", "caption", ".legend button", ".score", ".panel h3")
    for dark in (False, True):
        with opened(browser, html, dark=dark) as seen:
            style = "(kind) => getComputedStyle(document.querySelector(kind)).color"
            paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
            panel = seen.page.evaluate("getComputedStyle(document.querySelector('.samples td')).backgroundColor")
            found = [seen.page.evaluate(style, kind) for kind in kinds]
            assert all(contrast(colour, paper) >= 4.5 for colour in found)
            assert contrast(found[kinds.index(".score")], panel) >= 4.5
            axis = seen.page.locator("#frontier .role-axis-label text").first
            assert axis.get_attribute("fill") == "currentColor"
            drawn = axis.evaluate("(text) => getComputedStyle(text).fill")
            line = seen.page.locator("#frontier .mark-line path").first
            assert contrast(line.evaluate("(path) => getComputedStyle(path).stroke"), paper) >= 4.5
            for place in range(6):  # marks
                seen.page.evaluate(f"document.body.style.outlineColor = 'var(--line-{place})'")
                mark = seen.page.evaluate("getComputedStyle(document.body).outlineColor")
                assert contrast(mark, paper) >= 3.0
            assert drawn == found[0]  # the text of the charts is the text of the page
            colours[dark] = [paper, *found]
    assert all(light != dark for light, dark in zip(colours[False], colours[True], strict=True))


@pytest.mark.parametrize("section", ["frontier", "curves", "overoptimization"])
def test_pointing_at_a_chart_tells_run_and_value(browser: Browser, html: Path, section: str) -> None:
    with opened(browser, html) as seen:
        told = hover(seen.page, seen.page.locator(f"#{section} .chart svg").first)
        assert told["run"].startswith(("apa-", "awr-")) and told["setting"].startswith(("apa (lam=", "awr (lam="))
        value = next(told[name] for name in ("reward", "value", "gain") if name in told)
        float(value.replace("\N{MINUS SIGN}", "-"))


def hover(page: Page, svg: Any) -> dict[str, str]:
    """What the tooltip says over the middle of a chart, once it says anything."""
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    for share in (0.5, 0.55, 0.62, 0.4):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.71 * box["height"], steps=3)
        page.wait_for_timeout(150)
        rows_of = page.locator("#vg-tooltip-element.visible tr")
        told = dict(row.split("\t") for row in rows_of.all_inner_texts())
        if "run" in told:
            return told
    return {}


def test_legend_brings_a_line_out(browser: Browser, html: Path) -> None:
    faint = "#frontier .mark-line path[stroke-opacity='0.12']"
    with opened(browser, html) as seen:
        assert seen.page.locator(faint).count() == 0
        first = seen.page.locator("#frontier .legend button").first
        first.focus()
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_selector(faint, state="attached")
        # The frontiers of two algorithms: one is faint, and the legends of gold and of the varied number follow.
        assert seen.page.locator(faint).count() == 1
        assert seen.page.locator(".legend button[aria-pressed='true']").count() == 3
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_selector(faint, state="detached")
        assert seen.page.locator(".legend button[aria-pressed='true']").count() == 0


def test_charts_follow_the_window(browser: Browser, html: Path) -> None:
    with opened(browser, html) as seen:
        svg = seen.page.locator("#frontier .chart svg")
        before = svg.bounding_box()
        seen.page.set_viewport_size({"width": 500, "height": 900})
        seen.page.wait_for_timeout(500)
        after = svg.bounding_box()
        assert before and after and before["width"] > 800 and 300 < after["width"] < 500


def test_without_javascript_the_tables_stand(browser: Browser, html: Path) -> None:
    with opened(browser, html, scripts=False) as seen:
        text = seen.page.locator("main").inner_text()
        assert "frontier.png" in text and "apa (lam=0.1)" in text
        assert seen.page.locator(".panels").first.is_hidden() and seen.page.locator("thead button").count() == 0
        assert seen.complaints == []
