"""The page as text: what it holds, that its numbers are the comparison's, that nothing of a run is taken for HTML."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.charts import charts
from analysis.charts_training import training_figure
from analysis.findings import Findings, findings
from analysis.load import label_runs, load_sweep, make_record
from analysis.page import render_page
from analysis.summary import compare
from tests.analysis.made_up import config, rows, write_run
from tests.analysis.test_report import fill

HOSTILE = "</script><script>alert('run')</script><img src=x onerror=alert(1)>"
AWR = f"awr (model={HOSTILE})"


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words)).strip()

    def all(self, tag: str) -> list[Element]:
        found = [child for child in self.children if child.tag == tag]
        return found + [one for child in self.children for one in child.all(tag)]


class Page(HTMLParser):
    """A tree of elements; every text belongs to all elements around it."""

    VOID = ("meta", "br", "wbr", "img", "path")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = self.here = Element("", {}, None)
        self.order: list[Element] = []
        self.feed(html)
        assert self.here is self.root, f"<{self.here.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(made)
        self.order.append(made)
        if tag not in self.VOID:
            self.here = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.here.tag == tag and self.here.parent is not None, f"</{tag}> closes <{self.here.tag}>"
            self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        at: Element | None = self.here
        while at is not None:
            at.words.append(data)
            at = at.parent

    def by_id(self, name: str) -> Element:
        return next(one for one in self.order if one.attributes.get("id") == name)

    def table(self, name: str) -> list[list[str]]:
        """The rows of a table as text, its heading first."""
        return [[cell.text for cell in row.all("th") + row.all("td")] for row in self.by_id(name).all("tr")]


@dataclass
class Made:
    found: Findings
    html: str
    page: Page


def made(found: Findings, name: str = "made_up", folder: Path = Path()) -> Made:
    html = render_page(name, folder, found, charts(found) + training_figure(found.comparison.settings))
    return Made(found, html, Page(html))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`fill`'s sweep, one run of which is out to break the page."""
    sweep = tmp_path_factory.mktemp("runs") / "made_up"
    fill(sweep)
    samples = [{"step": step, "prompt": HOSTILE, "response": HOSTILE * 200, "reward": 1.0} for step in (0, 4)]
    name = "awr-s1-" + HOSTILE.replace("/", "")
    write_run(sweep, name, config("awr", 1, model__name=HOSTILE), rows([0, 2], [0, 1]), samples=samples)
    for place, noted in (("jobs", {"command": "python main.py -m algo=apa,ppo"}), ("logs", "done")):
        (sweep / place).mkdir()
        (sweep / place / f"apa-s0-00000000.{'json' if place == 'jobs' else 'log'}").write_text(json.dumps(noted))
    return made(findings(compare(load_sweep(sweep))), HOSTILE, sweep)


def test_the_answer_comes_first(report: Made) -> None:
    page = report.page
    assert page.by_id("main").all("p")[0].text == report.found.verdict.sentence
    # 2, 1.5 and 1 seeds; the best first.
    assert page.order[[one.tag for one in page.order].index("h1")].text == "apa, ppo and awr on 2 tasks, 1 to 3 seeds"
    sections = [one.attributes["id"] for one in page.order if one.tag == "section"]
    first = ["result", "frontier", "budgets", "overoptimization", "curves", "training"]
    assert sections[:6] == first and sections[-1] == "diagnoses"


def test_numbers_are_the_comparison_own(report: Made) -> None:
    _, *lines = report.page.table("change-table")
    arrow = "\N{RIGHTWARDS ARROW}"
    # Reward from 0.5 to 2.5, 4.5 and 6.5; gold from 0.1 to 0.3, 0.6 and 0.9.
    found = {line[0]: line for line in lines}
    assert found["apa"][1:3] == [f"0.500 {arrow} 4.500", f"0.100 {arrow} 0.600"] and found["apa"][4] == "0, 1, 2"
    exact = {one.name: one.headline.kl_efficiency.mean for one in report.found.comparison.settings}
    rows_drawn = report.page.by_id("budgets-table").all("tr")[1:]
    sorted_by = {row.all("th")[0].text: float(row.all("td")[0].attributes["data-sort"]) for row in rows_drawn}
    assert sorted_by == exact and list(sorted_by.values()) == sorted(exact.values(), reverse=True)


def test_runs_lead_to_their_folders_and_logs(report: Made) -> None:
    found = {row.all("th")[0].text: row for row in report.page.by_id("runs-table").all("tr")[1:]}
    links = [one.attributes["href"] for one in found["apa-s0-00000000"].all("a")]
    assert links == ["./apa-s0-00000000/", "./logs/apa-s0-00000000.log"]
    # Slope 1, E(1) = 0.5, and the reward goes from 0.5 to 2.5.
    assert [cell.text for cell in found["apa-s0-00000000"].all("td")][1:4] == ["0.500", "4.00", "2.500"]
    assert dict(report.page.table("provenance-table"))["command"] == "python main.py -m algo=apa,ppo"


def test_what_a_run_started_from_is_told() -> None:
    inputs = {"sft": {"eval/loss": 0.575}, "reward_model": {"eval/accuracy": 0.7675, "eval/loss": 0.5}}
    ended = {"status": "finished", "inputs": inputs, "finished_at": 1796000000.0}
    changes: dict[str, Any] = {"dataset__num_eval_prompts": 120, "evaluation": {"responses_per_prompt": 4}}
    record = make_record(Path("apa-s0"), config("apa", 0, **changes), rows([0, 4], [0, 2]), ended, [], [])
    page = made(findings(compare([record]))).page
    facts = dict(page.table("provenance-table"))
    assert facts["evaluation prompts"] == "120, 4 responses each"
    assert (
        facts["reward model, accuracy on held-out pairs"] == "0.767" and facts["SFT, loss on held-out text"] == "0.575"
    )
    assert page.root.all("h1")[0].text.endswith("1 seed, 30 November 2026")


def test_every_training_metric_has_a_panel() -> None:
    logged = [{"step": i, "iteration": i, "samples": 64 * i, "train/new_metric": float(i)} for i in range(1, 400)]
    made_rows = rows([0, 4], [0, 2])
    made_rows = [{**made_rows[0], "train/kl": 1.0}, *logged, {**made_rows[1], "step": 400, "samples": 64 * 400}]
    record = make_record(Path("apa-s0"), config("apa", 0), made_rows, {"status": "finished"}, [], [])
    (figure,) = training_figure(compare([record]).settings)
    assert [panel.title for panel in figure.panels] == ["train/kl", "train/new_metric", "train/reward"]
    line = next(layer.data for layer in figure.panels[1].chart.layer if len(layer.data) > 20)
    # 399 rows in means of seven: of 1 to 7 it is 4, at as many times 64 responses.
    assert len(line) == 57 and line[["x", "mean"]].iloc[0].tolist() == [256.0, 4.0]


def test_a_budget_that_was_not_reached_has_no_value(report: Made) -> None:
    header, *lines = report.page.table("budgets-table")
    assert header == ["algorithm", "1 nats, reached by all", "4 nats"]
    minus = "\N{MINUS SIGN}"
    assert {line[0]: line[1:] for line in lines} == {
        "apa": [f"1.000 [{minus}0.242, 2.242]", f"2.000 [{minus}0.484, 4.484]"],  # E = slope * sqrt(K) / 2
        "ppo": ["1.000 (0.500 to 1.500)", "not reached (0 of 2 runs)"],
        AWR: ["0.354", "not reached (0 of 1 runs)"],
    }


def test_the_kl_that_every_run_reached_comes_before_the_budgets() -> None:
    finished = {"status": "finished"}
    records = [
        make_record(Path(f"apa-s{seed}"), config("apa", seed), rows([0, kl], [0, kl**0.5]), finished, [], [])
        for seed, kl in enumerate((9.0, 2.25))
    ]
    # Gain is sqrt(KL), so that E is sqrt(K) / 2.
    assert made(findings(compare(records))).page.table("budgets-table") == [
        ["algorithm", "2.25 nats, reached by all", "1 nats", "4 nats"],
        ["apa", "0.750", "0.500", "not reached (1 of 2 runs)"],
    ]


def test_claims_and_what_was_looked_for(report: Made) -> None:
    claims = report.page.table("claims-table")
    assert {line[0] for line in claims[1:]} == {row.setting.name for row in report.found.claims.rows}
    assert f"first {report.found.claims.horizon:,.0f} responses" in report.page.root.text
    diagnoses = report.page.by_id("diagnoses").text
    assert all(one.text in diagnoses for one in report.found.diagnoses)
    assert "entropy collapsed (threshold: 20% of the initial entropy)" in diagnoses


def test_no_problem_found() -> None:
    records = [
        make_record(Path(f"apa-s{seed}"), config("apa", seed), rows([0, 4], [0, 2]), {"status": "finished"}, [], [])
        for seed in (0, 1)
    ]
    section = made(findings(compare(records))).page.by_id("diagnoses").text
    assert "No problem found." in section and "What was looked for" in section


def test_left_out_and_provenance(report: Made) -> None:
    excluded = dict(report.page.table("excluded-table")[1:])
    assert excluded["ppo-s2-00000000"] == "failed: ValueError: <loss> is NaN"
    facts = dict(report.page.table("provenance-table"))
    assert facts["commit"] == "0cde85c" and facts["processor"] == "Some CPU" and facts["machine"] == "bench"
    assert facts["versions"] == "python 3.11.2, torch 2.13.0" and facts["device, precision, threads"] == "cpu, fp32, 1"
    assert facts["wall time"] == "75 s in all, 12 s to 12 s a run" and facts["peak memory, largest run"] == "321 MB"


def test_settings_that_differ(report: Made) -> None:
    header, *lines = report.page.table("settings-table")
    assert header == ["setting", "apa", "ppo", AWR]
    assert lines == [["algo.name", "apa", "ppo", "awr"], ["model.name", "tiny", "tiny", HOSTILE]]


def test_responses_stand_side_by_side(report: Made) -> None:
    samples = report.page.by_id("samples")
    first = samples.all("table")[0].all("tr")[1]
    prompt, before, after = [cell.text for cell in first.all("th") + first.all("td")]
    assert prompt == "Say <hello>" and before.startswith("no & never") and "reward \N{MINUS SIGN}0.500" in before
    assert after.startswith("hello there") and "cut off at the longest length" in samples.text
    assert f"({len(HOSTILE) * 200:,} characters in all)" in samples.text


def test_text_of_a_run_stays_text(report: Made) -> None:
    page = report.page
    assert "alert('run')" in page.root.text
    assert [one for one in page.order if one.tag == "img"] == []
    assert not [name for one in page.order for name in one.attributes if name.startswith("on")]
    scripts = [one for one in page.order if one.tag == "script"]
    assert not [one for one in scripts if "alert(" in one.text and one.attributes.get("type") != "application/json"]
    for data in (one for one in scripts if one.attributes.get("type") == "application/json"):
        spec: dict[str, Any] = json.loads(data.text, parse_constant=pytest.fail)  # NaN and Infinity are constants
        assert spec["layer"] and "<" not in data.text


def test_policy_names_every_script_and_no_address(report: Made) -> None:
    page = report.page
    (policy,) = (one.attributes["content"] for one in page.order if "http-equiv" in one.attributes)
    assert policy.startswith("default-src 'none'; ") and "unsafe-eval" not in policy
    scripts = [one for one in page.order if one.tag == "script" and "type" not in one.attributes]
    sources = re.findall(r"<script>(.*?)</script>", report.html, flags=re.DOTALL)
    assert len(scripts) == len(sources) == 5
    for source in sources:
        assert base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() in policy
    assert not [one for one in page.order if one.tag == "link" or "src" in one.attributes]
    assert all(one.attributes["href"].startswith(("#", "./")) for one in page.order if "href" in one.attributes)
    assert "sourceMappingURL" not in report.html


def test_structure_for_screen_readers(report: Made) -> None:
    page = report.page
    tags = [one.tag for one in page.order]
    assert [tags.count(tag) for tag in ("h1", "header", "nav", "main")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [one.attributes["id"] for one in page.order if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    named = [one.attributes["aria-labelledby"] for one in page.order if "aria-labelledby" in one.attributes]
    links = [href[1:] for one in page.order if (href := one.attributes.get("href", "")).startswith("#")]
    assert set(named + links) <= set(ids) and page.order[tags.index("a")].attributes["class"] == "skip"
    for table in (one for one in page.order if one.tag == "table" and "id" in one.attributes):
        assert table.all("caption") and all("scope" in cell.attributes for cell in table.all("th"))
        region = table.parent
        assert region and (region.attributes["role"], region.attributes["tabindex"]) == ("region", "0")
    drawn = [one for one in page.order if "data-spec" in one.attributes]
    assert drawn and all(one.attributes["aria-label"] and one.attributes["data-spec"] in ids for one in drawn)
    assert "frontier.png" in page.by_id("frontier").all("noscript")[0].text


def test_no_run_to_compare() -> None:
    record = make_record(Path("apa-s0"), config("apa", 0), [], {"status": "interrupted"}, [], [])
    page = made(findings(compare([record]))).page
    assert "No finished run to compare." in page.root.text and "interrupted" in page.root.text
    links = {one.attributes["href"].removeprefix("#") for one in page.order if one.tag == "a"}
    assert links <= {one.attributes.get("id") for one in page.order}


def test_size_of_a_small_report(report: Made) -> None:
    assert len(report.html.encode()) < 1_300_000


def test_tables_of_very_many_settings_are_cut() -> None:
    # The k-th gains k at each KL; every second has a setting that the others lack. Half of them were pruned.
    status = {True: "finished", False: "pruned"}
    records = [
        make_record(
            Path(f"apa-{lam}"),
            config("apa", 0, algo__lam=float(lam), **({f"model__k{lam}": lam} if lam % 2 else {})),
            rows([0, 4], [0, lam]),
            {"status": status[lam <= 150]},
            [],
            [],
        )
        for lam in range(1, 301)
    ]
    page = made(findings(compare(label_runs(records)))).page
    files = {"change-table": "kl_efficiency.csv", "budgets-table": "kl_efficiency.csv", "claims-table": "claims.csv"}
    for name, file in files.items():
        shown = {float(re.split("[=,)]", line[0])[1]) for line in page.table(name)[1:]}
        assert shown == set(range(51, 151))
        caption = page.by_id(f"{name}-caption").text
        assert caption.endswith(f": the 100 of 150 settings of the highest KL efficiency; {file} has all")
    assert len(page.table("excluded-table")) == 101 and "150 runs were left out" in page.by_id("runs").text
    assert page.by_id("excluded-table-caption").text.endswith("the first 100 of 150; runs.csv has all")
