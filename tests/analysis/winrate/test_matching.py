"""NAME=SOURCE arguments: run folders, files, seeds, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.errors import AnalysisError
from analysis.winrate.matching import make_comparisons, match_prompts, read_models, read_pairs, read_references
from rlhf.errors import FileError
from tests.analysis.made_up import config, rows, write_run
from tests.analysis.winrate.made_up import answers, write_rows


def responses(sources: Any) -> list[str]:
    return [source.answers["p"]["response"] for source in sources]


def met(folder: Path, pairs: list[tuple[str, str]], **patterns: str) -> tuple[list[tuple[int, str, str]], list[str]]:
    """Of one prompt: (seed, response of a, response of b)."""
    models, _ = read_models([f"{name}={folder}/{pattern}" for name, pattern in patterns.items()])
    made, notes = make_comparisons(models, pairs, {"p": "r"})
    return [(one.seed, one.response_a, one.response_b) for one in made], notes


def finished(folder: Path, algo: str, seed: int, status: str | None = "finished", **changes: Any) -> Path:
    """A run whose last response names it."""
    name = f"{algo}-s{seed}-" + "-".join(map(str, changes.values()))
    said = {0: f"before {seed}", 2: f"{algo}{seed}"}
    samples = [{"step": step, "prompt": "p", "response": text, "reference": "r"} for step, text in said.items()]
    return write_run(folder, name, config(algo, seed, **changes), rows([0, 1], [0, 1]), status=status, samples=samples)


def test_first_and_last_evaluation_of_the_runs_that_a_pattern_matches(tmp_path: Path) -> None:
    """As the README writes it: no shell expands a pattern behind `name=`. One run was killed in its last line."""
    for seed in (1, 0):
        run = finished(tmp_path, "apa", seed)
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"step": 4, ')
    (tmp_path / "apa-s0-.lock").touch()
    odd = write_rows(tmp_path / "odd[1]" / "samples.jsonl", [{"step": 0, "prompt": "p", "response": "odd"}]).parent
    places = (f"sft={tmp_path}/apa-s*@first", f"apa={run}", f"same={run}/samples.jsonl@last", f"odd={odd}")
    sft, apa, same, literal = read_models(places)[0].values()
    assert responses(sft) == ["before 0", "before 1"] and responses(apa) == responses(same) == ["apa0"]
    assert [source.step for source in (*sft, *apa)] == [0, 0, 2] and responses(literal) == ["odd"]


def test_counts_of_matching_and_limit(tmp_path: Path) -> None:
    """a: p1 p2 p3 p4, p1 again; b: p4 p3 p2 p5. Shared: p2 p3 p4; missing: p1 p5; p3 has no reference anywhere."""
    made = [{"prompt": f"p{i}", "response": "x"} | ({"reference": "r"} if i != 3 else {}) for i in (1, 2, 3, 4, 1)]
    a = write_rows(tmp_path / "a.jsonl", made)
    b = write_rows(tmp_path / "b.jsonl", [{"prompt": f"p{i}", "response": "y"} for i in (4, 3, 2, 5)])
    models, _ = read_models([f"a={a}", f"b={b}"])
    references, counts = match_prompts(models, {}, needs_reference=True, limit=None)
    assert references == {"p2": "r", "p4": "r"}
    assert list(counts.values()) == [2, 3, 2, 1, 1, 0]  # judged, shared, missing, duplicated, without reference
    own, _ = match_prompts(models, {"p3": "z", "p2": "own"}, needs_reference=True, limit=2)
    assert own == {"p2": "own", "p3": "z"}
    references, counts = match_prompts(models, {}, needs_reference=False, limit=1)
    assert list(references) == ["p2"] and counts["beyond_limit"] == 2


def test_files_meet_in_order_and_a_single_source_meets_each(tmp_path: Path) -> None:
    files = {name: answers(tmp_path / f"{name}.jsonl", {"p": name}) for name in ("s", "a0", "a1", "b0", "b1")}
    one, two = [("sft", "a")], [("a", "b")]
    assert met(tmp_path, one, sft="s.jsonl", a="a?.jsonl")[0] == [(0, "s", "a0"), (1, "s", "a1")]
    assert met(tmp_path, two, a="a?.jsonl", b="b?.jsonl")[0] == [(0, "a0", "b0"), (1, "a1", "b1")]
    with pytest.raises(AnalysisError, match="a has 3 sources and b 2; give both the same number"):
        met(tmp_path, two, a=f"a?.jsonl,{files['s']}", b="b?.jsonl")


def test_runs_meet_by_seed(tmp_path: Path) -> None:
    for algo, seeds in (("apa", (0, 2, 10)), ("ppo", (10, 0, 100)), ("awr", (5, 6, 7))):
        for seed in seeds:
            finished(tmp_path, algo, seed)
    pairs = [("apa", "ppo"), ("apa", "awr")]
    made, notes = met(tmp_path, pairs, apa="apa-*", ppo="ppo-*", awr="awr-*")
    assert made[:2] == [(0, "apa0", "ppo0"), (10, "apa10", "ppo10")]
    assert made[2:] == [(0, "apa0", "awr5"), (1, "apa10", "awr6"), (2, "apa2", "awr7")]  # in the order of their names
    assert notes == [
        "apa vs ppo: not the same seeds; left out without a counterpart: 2 of apa, 100 of ppo",
        "apa vs awr: no seed in common; in the order given 0 with 5, 10 with 6, 2 with 7",
    ]
    assert met(tmp_path, [("sft", "awr")], sft="apa-*@first", awr="awr-*")[1] == []  # before RL is no seed


def test_runs_that_no_report_would_take_are_left_out_by_name(tmp_path: Path) -> None:
    for seed, status in ((0, "finished"), (1, None), (2, "finished")):
        finished(tmp_path, "apa", seed, status)
    (tmp_path / "apa-s2-" / "metrics.jsonl").write_text("")
    good = answers(tmp_path / "good.jsonl", {"p": "x"})
    models, left_out = read_models([f"apa={tmp_path}/apa-*", f"good={good}"])
    assert responses(models["apa"]) == ["apa0"]
    assert "no summary.json" in left_out[0] and left_out[0].endswith("(--include-unfinished takes it in)")
    assert left_out[1].endswith("metrics.jsonl is empty") and len(left_out) == 2
    models, left_out = read_models([f"apa={tmp_path}/apa-*", f"good={good}"], include_unfinished=True)
    assert responses(models["apa"]) == ["apa0", "apa1"] and len(left_out) == 1
    with pytest.raises(AnalysisError, match=r"^apa: no finished run: .*apa-s1-/samples.jsonl: no summary.json"):
        read_models([f"apa={tmp_path}/apa-s1-/samples.jsonl", f"good={good}"])


def test_runs_of_several_settings_or_of_one_seed_are_no_seeds(tmp_path: Path) -> None:
    for lam in (0.1, 0.2):
        finished(tmp_path, "apa", 0, algo__lam=lam)
    finished(tmp_path / "other", "apa", 0, algo__lam=0.1)
    finished(tmp_path, "ppo", 1)
    good = answers(tmp_path / "good.jsonl", {"p": "x"})
    with pytest.raises(AnalysisError, match=r"^apa: .* not of one setting: algo.lam is 0.1 or 0.2; give each"):
        read_models([f"apa={tmp_path}/apa-*", f"good={good}"])
    with pytest.raises(AnalysisError, match="are both of seed 0; give one of them"):
        read_models([f"apa={tmp_path}/apa-*0.1,{tmp_path}/other/apa-*", f"good={good}"])
    models, _ = read_models([f"sft={tmp_path}/ppo-*@first,{tmp_path}/apa-*0.1@first", f"good={good}"])
    assert responses(models["sft"]) == ["before 1", "before 0"]  # before RL it is one policy, whatever comes after


def test_pairs_by_name() -> None:
    names = ["sft", "ppo", "apa"]
    assert read_pairs(None, names) == [("sft", "ppo"), ("sft", "apa"), ("ppo", "apa")]
    assert read_pairs("sft:apa, apa:ppo", names) == [("sft", "apa"), ("apa", "ppo")]
    for text in ("sft", "sft:dpo", "sft:sft", "sft:apa,apa:sft"):
        with pytest.raises(AnalysisError, match=r"^--pairs"):
            read_pairs(text, names)


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
    with pytest.raises(AnalysisError, match=message) as caught:
        read_models([argument.format(folder=tmp_path, **files) for argument in arguments])
    assert "\n" not in str(caught.value)


def test_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    a = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "response": "x"}])
    b = write_rows(tmp_path / "b.jsonl", [{"prompt": "q", "response": "x"}])
    with pytest.raises(AnalysisError, match="no prompt was answered by all of a, b"):
        match_prompts(read_models([f"a={a}", f"b={b}"])[0], {}, needs_reference=False, limit=None)
    with pytest.raises(AnalysisError, match=r"none of the 1 shared prompts has a reference answer; give --references"):
        match_prompts(read_models([f"a={a}", f"b={a}"])[0], {}, needs_reference=True, limit=None)


def test_references_file_and_half_surrogates(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"prompt": "p", "reference": "a\\ud800b"}\n{"prompt": "p", "reference": "later"}\n')
    assert read_references(file) == {"p": "a?b"}
    with pytest.raises(FileError, match=r"none\.jsonl"):
        read_references(tmp_path / "none.jsonl")
