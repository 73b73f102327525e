"""Collected data from every kind of file, folder and hub: the same examples, malformed rows, what stays in memory."""

import gzip
import importlib.util
import json
import multiprocessing
import random
import sys
import tracemalloc
from pathlib import Path

import pytest

from rlhf.data import load_text_data
from rlhf.data.examples import DataError, Demonstration, Preference
from rlhf.data.rows import CHUNK, json_rows
from tests.data.collected import contents, dialogues, load, settings, write

datasets = pytest.importorskip("datasets")
MALFORMED = [
    ('{"chosen": "a"}', "a row must be an object with the texts chosen and rejected"),
    (
        '{"chosen": "a", "rejected": "a b"}',
        "chosen and rejected do not begin with one dialogue up to an Assistant turn",
    ),
    ('{"chosen": "a",', "not JSON ("),
    ('{"chosen": "\\ud800 ", "rejected": "b", "prompt": "c"}', "a text holds half a surrogate pair"),
    ("[" * 200_000, "not "),
]


def in_every_form(folder: Path, rows: list[dict[str, str]]) -> list[Path]:
    lines = write(folder / "a.jsonl", *rows).read_bytes()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "a.json").write_text(json.dumps(rows, indent=1))
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "a.parquet")
    table.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "saved_train")
    halves = len(rows) // 2
    for number, part in enumerate((rows[:halves], rows[halves:])):
        write(folder / "shards" / "data" / f"train-0000{number}-of-00002.jsonl", *part)
    return [
        folder / name for name in ("a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "saved", "saved_train", "shards")
    ]


def test_every_form_holds_the_same_in_the_same_split(tmp_path: Path):
    paths = in_every_form(tmp_path, dialogues(30))
    expected = contents(load("hh", tmp_path / "a.jsonl"))
    assert len(expected["pairs"]) == 24 and len(expected["test_sft"]) == 6
    for path in paths:
        assert contents(load("hh", path)) == expected, path


def test_a_held_out_part_of_its_own(tmp_path: Path):
    """Rows of the training part whose prompt is held out are dropped, and counted."""
    parts = {"train": dialogues(10), "test": dialogues(range(8, 12)), "valid2": dialogues(range(50, 52))}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    saved.save_to_disk(tmp_path / "saved")
    for name, rows in parts.items():
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "files" / f"{name}-00000-of-00001.parquet")
    seen = []
    for folder in ("saved", "files"):
        data = load("hh", tmp_path / folder, num_test_pairs=4, num_eval_prompts=4)
        assert sorted(pair.prompt for pair in data.test_pairs) == sorted(row["chosen"][:-5] for row in parts["test"])
        assert len(data.pairs) == 8 and data.dropped.held_out == 2
        seen.append(contents(data))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(("line", "problem"), MALFORMED)
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path: Path, line: str, problem: str):
    path = write(tmp_path / "pairs.jsonl", *dialogues(2), "", line, *dialogues(range(2, 5)))
    with pytest.raises(DataError) as error:
        load("hh", path)
    assert str(error.value).startswith(f"{path}:4: {problem}")
    assert str(error.value).endswith("; mend or drop it, or raise dataset.max_bad_rows=0")
    assert "\n" not in str(error.value)


def test_malformed_rows_are_skipped_and_counted_as_far_as_allowed(tmp_path: Path):
    lines = [line for line, _ in MALFORMED]
    path = write(tmp_path / "pairs.jsonl", *dialogues(10), *lines, *dialogues(range(10, 20)))
    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        with pytest.raises(DataError, match=rf"^{file}:15: .*dataset.max_bad_rows=4 \(5 malformed rows so far\)$"):
            load("hh", file, max_bad_rows=4)
        data = load("hh", file, max_bad_rows=5)
        assert len(data.pairs) + len(data.test_sft) == 20 and data.dropped.malformed == 5
        assert [named.split(": ")[0] for named in data.dropped.named] == [f"{file}:{line}" for line in range(11, 16)]
        with pytest.raises(DataError, match=rf"^{file}:11: .*dataset.max_bad_rows=0 \(5 malformed rows so far\)$"):
            load("hh", file)  # though the table is there by now
    rows = [json.loads(line) for line in lines[:2]]
    listed = tmp_path / "pairs.json"
    listed.write_text(json.dumps([*dialogues(10), *rows], indent=0))
    data = load("hh", listed, max_bad_rows=2)
    # A row of two texts takes four lines: {, chosen, rejected, }.
    assert [named.split(": ")[0] for named in data.dropped.named] == [f"{listed}:42 (row 11)", f"{listed}:45 (row 12)"]
    datasets.Dataset.from_list([*dialogues(10), *rows]).to_parquet(tmp_path / "pairs.parquet")
    data = load("hh", tmp_path / "pairs.parquet", max_bad_rows=2)
    places = [f"{tmp_path / 'pairs.parquet'}, row 11", f"{tmp_path / 'pairs.parquet'}, row 12"]
    assert [named.split(": ")[0] for named in data.dropped.named] == places


@pytest.mark.parametrize("rows", [[], [{"prompt": " ", "chosen": "a", "rejected": "b"}]])
def test_a_file_without_a_pair_is_named(tmp_path: Path, rows: list[dict[str, str]]):
    path = write(tmp_path / "pairs.jsonl", *rows)
    with pytest.raises(DataError, match=rf"^dataset.path={path}: has no pair of answers; "):
        load("hh", path)


def test_both_parts_and_both_tables_share_what_may_be_malformed(tmp_path: Path):
    write(tmp_path / "pairs" / "train.jsonl", *dialogues(10), "{")
    write(tmp_path / "pairs" / "test.jsonl", *dialogues(range(20, 24)), "{")
    with pytest.raises(DataError, match=r"test.jsonl:5: not JSON"):
        load("hh", tmp_path / "pairs", max_bad_rows=1)
    assert load("hh", tmp_path / "pairs", max_bad_rows=2).dropped.malformed == 2
    sft = write(tmp_path / "sft.jsonl", "{", *({"prompt": f"{n}?", "response": "a"} for n in range(20)))
    with pytest.raises(DataError, match=r"sft.jsonl:1: not JSON.*dataset.max_bad_rows=2 \(3 malformed rows so far\)$"):
        load("hh", tmp_path / "pairs", sft_path=str(sft), max_bad_rows=2)


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path):
    (tmp_path / "text.jsonl.gz").write_text("not packed")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "object.json").write_text("{}")
    whole = gzip.compress(write(tmp_path / "many.jsonl", *dialogues(3000)).read_bytes())
    (tmp_path / "truncated.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.jsonl.gz").write_bytes(whole[:100] + bytes(100) + whole[200:])
    (tmp_path / "rows.json").write_text('[{"chosen": "a"}]')
    (tmp_path / "list.json").write_text('[{"chosen": "a",\n "rejected": "b"},\n {"chosen": }]')
    (tmp_path / "table.parquet").write_text("no table")
    (tmp_path / "empty").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    write(tmp_path / "only" / "test.jsonl", *dialogues(3))
    for name, message in (
        ("missing.jsonl", "cannot be read ("),
        ("pairs.csv", "not a .json, .jsonl, .json.gz, .jsonl.gz, .parquet file or a save_to_disk folder"),
        ("text.jsonl.gz", "cannot be read ("),
        ("truncated.jsonl.gz", "cannot be read ("),
        ("broken.jsonl.gz", "cannot be read"),
        ("binary.jsonl", "binary.jsonl:1: not UTF-8"),
        ("object.json", "must hold a list of rows"),
        ("rows.json", "rows.json:1 (row 1): a row must be"),
        ("list.json", "list.json:3: not JSON ("),
        ("table.parquet", "cannot be read"),
        ("empty", "has no training part (nothing that can be read); give a save_to_disk folder, or files called train"),
        ("saved", "cannot be read"),
        ("only", "has no training part (test)"),
    ):
        with pytest.raises(DataError) as error:
            load("hh", tmp_path / name, max_bad_rows=0 if name != "list.json" else 9)
        assert message in str(error.value) and str(tmp_path / name) in str(error.value), name
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["[1 2]", "[1,]", "[1, 2", "[", "[]x", '["a" "b"]', "[1}"],
)
def test_a_list_is_read_as_strictly_as_by_json(tmp_path: Path, text: str):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    with pytest.raises(DataError, match=r"a.json:1: not JSON \("):
        list(json_rows(path, "dataset.path"))


def test_a_list_is_read_in_chunks(tmp_path: Path):
    """Items that end, begin and are cut at a chunk's end, numbers among them, and one that is longer than a chunk."""
    draw = random.Random(0)
    items = ["x" * (CHUNK - 9), 12345678, *(draw.choice([draw.random(), {"a": ["b" * draw.randrange(40)]}, None, -1])
        for _ in range(60_000)), "ü" * (2 * CHUNK + 5), 7]  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert path.stat().st_size > 5 * CHUNK
    rows = list(json_rows(path, "dataset.path"))
    assert [row.value for row in rows] == items
    assert rows[0].where == f"{path}:2 (row 1)" and rows[1].where == f"{path}:3 (row 2)"
    assert rows[-1].where == f"{path}:{len(path.read_text(encoding='utf-8').splitlines()) - 1} (row {len(items)})"
    path.write_text("[]")
    assert list(json_rows(path, "dataset.path")) == []


def test_a_large_set_is_not_in_memory(tmp_path: Path):
    """20,000 pairs of 4.5 KB: reading them takes a small part of their size, and having read them next to nothing."""
    path, filler = tmp_path / "many.jsonl", "y" * 4000
    with path.open("w") as file:
        for number in range(20_000):
            row = {"prompt": f"{number % 16_000}?{filler[:500]}", "chosen": filler, "rejected": f"n{number}"}
            file.write(json.dumps(row) + "\n")
    size = path.stat().st_size
    assert size > 80e6
    load("hh", write(tmp_path / "few.jsonl", *dialogues(20)))  # what importing takes is not of interest
    tracemalloc.start()
    try:
        data = load("hh", path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(data.prompts), len(data.test_sft)) == (12_800, 3_200) and 15_500 < len(data.pairs) < 16_500
    assert peak < 0.15 * size and kept < 0.05 * size, (peak, kept, size)
    assert not isinstance(data.pairs, list | tuple) and not isinstance(data.pairs[:1000], list | tuple)
    pair = data.pairs[len(data.pairs) - 1]
    assert isinstance(pair, Preference) and pair == data.pairs[-1] == data.pairs[-10:][9]
    assert pair.chosen == filler and pair.prompt.endswith("?" + filler[:500])
    assert isinstance(data.prompts[0], Demonstration)
    with pytest.raises(IndexError):
        data.pairs[len(data.pairs)]


def loaded(path: str, cache: str, start, results) -> None:
    datasets.config.HF_DATASETS_CACHE = cache
    start.wait()
    data = load("hh", Path(path))
    results.put([pair.prompt for pair in data.pairs])


def test_processes_that_start_together_read_one_table(tmp_path: Path):
    path, cache = write(tmp_path / "a.jsonl", *dialogues(3000)), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=loaded, args=(str(path), str(cache), start, results)) for _ in range(start.parties)
    ]
    for process in processes:
        process.start()
    prompts = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert prompts[0] == prompts[1] == prompts[2] and len(prompts[0]) == 2400
    assert len(list(cache.glob("apa_rlhf/*/rows.arrow"))) == 1 and not list(cache.rglob("*.partial"))


def test_a_file_that_has_changed_is_read_again(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *dialogues(20))
    before = contents(load("hh", path))
    path.write_text(path.read_text().replace("Yes.", "Yet."))
    after = contents(load("hh", path))
    assert {pair.chosen for pair in before["pairs"]} == {" Yes."} and {pair.chosen for pair in after["pairs"]} == {
        " Yet."
    }


def test_too_few_rows_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"^dataset.num_\w+=.*: the data has none of them; .* held out; give it more rows$"
    ):
        load("hh", write(tmp_path / "a.jsonl", *dialogues(1)))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match=r"cannot be written \(.+\); set HF_DATASETS_CACHE to a folder$"):
        load("hh", write(tmp_path / "a.jsonl", *dialogues(20)))


def test_a_refused_file_leaves_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / "a.jsonl", *dialogues(20), "{")
    for _ in range(2):
        with pytest.raises(DataError, match=r"a.jsonl:21: not JSON"):
            load("hh", path)
    assert not list((tmp_path / "cache" / "apa_rlhf").glob("*/dropped.json"))
    assert load("hh", path, max_bad_rows=1).dropped.malformed == 1


def hub_stand_in(parts: dict[str, list[dict[str, str]]], asked: list[object]):
    def load_dataset(name: str, data_dir: str | None = None):
        asked.append((name, data_dir))
        return datasets.DatasetDict({part: datasets.Dataset.from_list(rows) for part, rows in parts.items()})

    return load_dataset


def test_the_hubs_test_part_is_held_out_and_leaves_the_training_part(monkeypatch: pytest.MonkeyPatch):
    def row(number: int) -> dict[str, str]:
        return {"prompt": f"\n\nHuman: {number}?\n\nAssistant:", "response": " y", "chosen": " y", "rejected": " n"}

    parts = {"train": [row(number) for number in range(10)], "test": [row(number) for number in range(8, 12)]}
    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", hub_stand_in(parts, asked))
    data = load_text_data(settings("hh", num_test_pairs=4, num_eval_prompts=4))
    assert asked == [("Dahoas/rm-static", None)]
    assert len(data.pairs) == 8 and len(data.test_pairs) == 4
    parts["train"] = parts["train"][:7]
    assert len(load_text_data(settings("hh", num_test_pairs=4)).pairs) == 7  # another fingerprint, another table


def test_folders_and_sft_texts_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    rows = [{"question": f"Why {n}?", "response_j": "a", "response_k": "b"} for n in range(20)]
    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", hub_stand_in({"train": rows}, asked))
    data = load_text_data(settings("stackexchange"))
    assert asked == [("lvwerra/stack-exchange-paired", f"data/{folder}") for folder in ("reward", "finetune")]
    assert len(data.sft) == len(data.pairs) == 16


def test_without_hub_or_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def unreachable(name: str, data_dir: str | None = None):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as error:
        load_text_data(settings("hh"))
    assert str(error.value) == (
        "dataset.hub=Dahoas/rm-static: the hub did not give it (Couldn't reach 'Dahoas/rm-static' on the Hub and more); "
        "set dataset.path to local files"
    )
    with pytest.raises(DataError, match=r"^dataset.path: neither it nor dataset.hub says where the pairs are"):
        load_text_data(settings("hh", hub=None))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else real(name))
    with pytest.raises(DataError, match=r"^dataset=hh needs the package datasets: pip install -e '.\[hub\]'$"):
        load_text_data(settings("hh"))


def test_the_default_data_needs_no_datasets():
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None\n"
        "from rlhf.data import load_text_data\n"
        "from tests.config.composed import config\n"
        "assert len(load_text_data(config().dataset).prompts) > 100\n"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
