"""NAME=SOURCE arguments: run folders, files, seeds, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.errors import WinrateError
from analysis.winrate.matching import (
    make_comparisons,
    match_prompts,
    meeting_notes,
    read_models,
    read_pairs,
    read_references,
)
from tests.analysis.made_up import config, rows, write_run
from tests.analysis.winrate.made_up import answers, write_rows


def run_folder(folder: Path, name: str, evaluations: dict[int, dict[str, str]], tail: str = "") -> Path:
    rows = [
        {"step": step, "prompt": prompt, "response": response, "reference": f"good {prompt}", "reward": 1.5}
        for step, responses in evaluations.items()
        for prompt, response in responses.items()
    ]
    file = write_rows(folder / name / "samples.jsonl", rows)
    file.write_text(file.read_text() + tail)
    return file.parent


def test_last_and_first_evaluation_of_a_run(tmp_path: Path) -> None:
    # The run was killed while it wrote its last line.
    run = run_folder(tmp_path, "apa-s0", {0: {"p": "before"}, 8: {"p": "middle"}, 16: {"p": "after"}}, '{"step": 16, ')
    first, last, file = read_models([f"sft={run}@first", f"apa={run}", f"same={run}/samples.jsonl@last"])
    assert [m.sources[0].answers["p"].response for m in (first, last, file)] == ["before", "after", "after"]
    assert [m.sources[0].step for m in (first, last, file)] == [0, 16, 16]


def test_a_pattern_stands_for_the_seeds_that_it_matches(tmp_path: Path) -> None:
    """As the README writes it: no shell expands a pattern behind `name=`."""
    for seed in (1, 0):
        run_folder(tmp_path, f"apa-s{seed}", {0: {"p": f"before {seed}"}, 8: {"p": f"after {seed}"}})
    (tmp_path / "apa-s0.lock").touch()
    odd = run_folder(tmp_path, "odd[1]", {0: {"p": "odd"}})
    sft, apa, literal = read_models([f"sft={tmp_path}/apa-s*@first", f"apa={tmp_path}/apa-s1*", f"odd={odd}"])
    assert [source.answers["p"].response for source in sft.sources] == ["before 0", "before 1"]
    assert [source.answers["p"].response for source in apa.sources] == ["after 1"]
    assert literal.sources[0].answers["p"].response == "odd"


def test_counts_of_matching_and_limit(tmp_path: Path) -> None:
    """a: p1 p2 p3 p4, p1 again; b: p4 p3 p2 p5. Shared: p2 p3 p4; missing: p1 p5; p3 has no reference anywhere."""
    rows = [{"prompt": f"p{i}", "response": "x"} | ({"reference": "r"} if i != 3 else {}) for i in (1, 2, 3, 4, 1)]
    a = write_rows(tmp_path / "a.jsonl", rows)
    b = write_rows(tmp_path / "b.jsonl", [{"prompt": f"p{i}", "response": "y"} for i in (4, 3, 2, 5)])
    models = read_models([f"a={a}", f"b={b}"])
    matching = match_prompts(models, {}, needs_reference=True, limit=None)
    assert matching.prompts == ("p2", "p4")
    assert (matching.shared, matching.missing, matching.duplicated, matching.without_reference) == (3, 2, 1, 1)
    assert match_prompts(models, {"p3": "z", "p2": "own"}, needs_reference=True, limit=2).prompts == ("p2", "p3")
    assert match_prompts(models, {"p2": "own"}, needs_reference=True, limit=2).references["p2"] == "own"
    limited = match_prompts(models, {}, needs_reference=False, limit=1)
    assert limited.prompts == ("p2",)
    assert limited.describe() == (
        "prompts: 3 shared by all models (2 missing in some source, 1 duplicated, 0 without reference, "
        "2 beyond --limit); 1 judged"
    )


def test_seeds_meet_in_order_and_a_single_source_meets_each(tmp_path: Path) -> None:
    files = {
        name: answers(tmp_path / f"{name}.jsonl", {"p": name, "q": name}) for name in ("s", "a0", "a1", "b0", "b1")
    }
    models = read_models([f"sft={files['s']}", f"a={files['a0']},{files['a1']}", f"b={files['b0']},{files['b1']}"])
    pairs = read_pairs(None, models)
    assert pairs == [("sft", "a"), ("sft", "b"), ("a", "b")]
    made = make_comparisons(models, pairs, match_prompts(models, {}, needs_reference=True, limit=1))
    met = [(c.answer_a.response, c.answer_b.response, c.seed) for c in made]
    assert met == [("s", "a0", 0), ("s", "a1", 1), ("s", "b0", 0), ("s", "b1", 1), ("a0", "b0", 0), ("a1", "b1", 1)]
    three = read_models([f"a={files['a0']},{files['a1']},{files['s']}", f"b={files['b0']},{files['b1']}"])
    with pytest.raises(WinrateError, match="a has 3 sources and b 2; give both the same number"):
        make_comparisons(three, [("a", "b")], match_prompts(three, {}, needs_reference=True, limit=None))


def finished(folder: Path, algo: str, seed: int, status: str | None = "finished", **changes: Any) -> Path:
    """A run whose last response names it."""
    name = f"{algo}-s{seed}-" + "-".join(map(str, changes.values()))
    samples = [{"step": step, "prompt": "p", "response": f"{algo}{seed}", "reference": "r"} for step in (0, 2)]
    return write_run(folder, name, config(algo, seed, **changes), rows([0, 1], [0, 1]), status=status, samples=samples)


def test_runs_that_no_report_would_take_are_left_out_by_name(tmp_path: Path) -> None:
    for seed, status in ((0, "finished"), (1, None), (2, "finished"), (3, "finished")):
        finished(tmp_path, "apa", seed, status)
    (tmp_path / "apa-s2-" / "metrics.jsonl").write_text("")
    (tmp_path / "apa-s3-" / "config.yaml").write_text("")
    good = answers(tmp_path / "good.jsonl", {"p": "x"})
    apa, _ = read_models([f"apa={tmp_path}/apa-*", f"good={good}"])
    assert [source.seed for source in apa.sources] == [0]
    reasons = [line.split(": ", 1)[1] for line in apa.left_out]
    assert reasons[0].startswith("no summary.json: still running, or killed")
    assert reasons[0].endswith("(--include-unfinished takes it in)")
    assert reasons[1:] == ["metrics.jsonl is empty", "config.yaml is empty"]
    apa, _ = read_models([f"apa={tmp_path}/apa-*", f"good={good}"], include_unfinished=True)
    assert [source.seed for source in apa.sources] == [0, 1] and len(apa.left_out) == 2
    with pytest.raises(WinrateError, match=r"^apa: no finished run: .*apa-s1-/samples.jsonl: no summary.json"):
        read_models([f"apa={tmp_path}/apa-s1-/samples.jsonl", f"good={good}"])


def test_runs_of_several_settings_or_of_one_seed_are_no_seeds(tmp_path: Path) -> None:
    for lam in (0.1, 0.2):
        finished(tmp_path, "apa", 0, algo__lam=lam)
    finished(tmp_path / "other", "apa", 0, algo__lam=0.1)
    good = answers(tmp_path / "good.jsonl", {"p": "x"})
    with pytest.raises(WinrateError, match=r"^apa: its 2 runs are not of one setting: algo.lam is 0.1 or 0.2; give"):
        read_models([f"apa={tmp_path}/apa-*", f"good={good}"])
    with pytest.raises(WinrateError, match="are both of seed 0; give one of them"):
        read_models([f"apa={tmp_path}/apa-*0.1,{tmp_path}/other/apa-*", f"good={good}"])
    finished(tmp_path, "ppo", 1)
    sft, _ = read_models([f"sft={tmp_path}/ppo-*@first,{tmp_path}/apa-*0.1@first", f"good={good}"])
    assert [source.seed for source in sft.sources] == [1, 0]  # before RL it is one policy, whatever comes after


def test_runs_meet_by_seed(tmp_path: Path) -> None:
    for seed in (0, 2, 10):
        finished(tmp_path, "apa", seed)
    for seed in (10, 0, 100):
        finished(tmp_path, "ppo", seed)
    for seed in (5, 6, 7):
        finished(tmp_path, "awr", seed)
    models = read_models([f"{algo}={tmp_path}/{algo}-*" for algo in ("apa", "ppo", "awr")])
    pairs = [("apa", "ppo"), ("apa", "awr")]
    made = make_comparisons(models, pairs, match_prompts(models, {}, needs_reference=True, limit=None))
    met = [(one.seed, one.answer_a.response, one.answer_b.response) for one in made]
    assert met[:2] == [(0, "apa0", "ppo0"), (10, "apa10", "ppo10")]
    assert met[2:] == [(0, "apa0", "awr5"), (1, "apa10", "awr6"), (2, "apa2", "awr7")]  # in the order of their names
    assert meeting_notes(models, pairs) == [
        "apa vs ppo: not the same seeds; left out without a counterpart: 2 of apa, 100 of ppo",
        "apa vs awr: no seed in common; in the order given 0 with 5, 10 with 6, 2 with 7",
    ]
    assert meeting_notes(models[:1] * 2, [("apa", "apa")]) == []


def test_pairs_by_name(tmp_path: Path) -> None:
    file = answers(tmp_path / "x.jsonl", {"p": "x"})
    models = read_models([f"{name}={file}" for name in ("sft", "ppo", "apa")])
    assert read_pairs("sft:apa, apa:ppo", models) == [("sft", "apa"), ("apa", "ppo")]
    for text in ("sft", "sft:dpo", "sft:sft", "sft:apa,apa:sft"):
        with pytest.raises(WinrateError, match=r"^--pairs"):
            read_pairs(text, models)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a={good}"], "needs two models"),
        (["a={good}", "a={good}"], r"a= is given twice; .*a=RUN1,RUN2"),
        (["{good}", "b={good}"], "write NAME=SOURCE"),
        (["a:b={good}", "b={good}"], "write NAME=SOURCE"),
        (["a={good}", "b={folder}/none"], "none: no such run folder or JSONL file"),
        (["a={good}", "b={folder}/ppo-*"], r"ppo-\*: matches no run folder and no file; `ls "),
        (["a={good}", "b={folder}"], "holds no samples.jsonl; give a run's folder"),
        (["a={good}@first", "b={good}"], "@first: its rows have no step"),
        (["a={good}", "b={broken}"], "broken.jsonl: line 1 is not a JSON object"),
        (["a={good}", "b={lacking}"], "lacking.jsonl: line 2 has no text 'response'"),
        (["a={good}", "b={empty}"], "empty.jsonl: holds no responses"),
    ],
)
def test_bad_sources_are_refused_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("good", "broken", "lacking", "empty")}
    answers(files["good"], {"p": "x"})
    files["broken"].write_text("{\n{}\n")
    write_rows(files["lacking"], [{"prompt": "p", "response": "x"}, {"prompt": "q"}])
    files["empty"].touch()
    with pytest.raises(WinrateError, match=message) as caught:
        read_models([argument.format(folder=tmp_path, **files) for argument in arguments])
    assert "\n" not in str(caught.value)


def test_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    a = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "response": "x"}])
    b = write_rows(tmp_path / "b.jsonl", [{"prompt": "q", "response": "x"}])
    with pytest.raises(WinrateError, match="no prompt was answered by all of a, b"):
        match_prompts(read_models([f"a={a}", f"b={b}"]), {}, needs_reference=False, limit=None)
    with pytest.raises(WinrateError, match=r"none of the 1 shared prompts has a reference answer; give --references"):
        match_prompts(read_models([f"a={a}", f"b={a}"]), {}, needs_reference=True, limit=None)


def test_references_file_and_half_surrogates(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"prompt": "p", "reference": "a\\ud800b"}\n{"prompt": "p", "reference": "later"}\n')
    assert read_references(file) == {"p": "a?b"}
    with pytest.raises(WinrateError, match="cannot be read"):
        read_references(tmp_path / "none.jsonl")
