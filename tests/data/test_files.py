"""Collected data from every kind of file, folder and hub: the same examples, malformed rows, what stays in memory."""

import csv
import gzip
import importlib.util
import json
import multiprocessing
import sys
import tracemalloc
from pathlib import Path

import pytest

from rlhf.data import load_text_data
from rlhf.data.examples import DataError, Demonstration, Preference
from rlhf.data.rows import text_rows
from tests.data.collected import contents, dialogues, load, settings, write

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
MALFORMED = [
    ('{"chosen": ' + "9" * 5000 + "}", "not a row ("),
    ('{"chosen": "a"}', "the row has chosen (text); "),
    ('{"chosen": "a", "rejected": "a b"}', "the row has chosen (text), rejected (text); "),
    ('{"chosen": "a", "rejec', "not JSON (Unterminated string starting at character 17 of the line)"),
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
    (folder / "lines.json").write_bytes(lines)
    (folder / "nested.json").write_text(json.dumps({"version": 1, "data": rows}))
    (folder / "utf16.jsonl").write_bytes(lines.decode().encode("utf-16"))
    (folder / "utf16.json").write_bytes(json.dumps(rows).encode("utf-16"))
    (folder / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    for name, delimiter, encoding in (("a.csv", ",", "utf-8-sig"), ("b.csv", ";", "utf-16"), ("a.tsv", "\t", "utf-8")):
        with (folder / name).open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    (folder / "a.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes()))
    arrow = pyarrow.Table.from_pylist(rows)
    for name, new in (("stream.arrow", pyarrow.ipc.new_stream), ("file.arrow", pyarrow.ipc.new_file)):
        with new(str(folder / name), arrow.schema) as writer:
            writer.write_table(arrow)
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "saved_train")
    halves = len(rows) // 2
    for number, part in enumerate((rows[:halves], rows[halves:])):
        write(folder / "shards" / "data" / f"train-0000{number}-of-00002.jsonl", *part)
    return [path for path in folder.iterdir() if path.name != "a.jsonl"]


def test_every_form_holds_the_same_in_the_same_split(tmp_path: Path):
    rows = [{name: text + '\u2028\U0001f980, "a";\n\tb\x00' for name, text in row.items()} for row in dialogues(30)]
    paths = in_every_form(tmp_path, rows)
    assert len(paths) == 18
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
        with pytest.raises(DataError, match=rf"^{file}:16: .*dataset.max_bad_rows=5 \(6 malformed rows so far\)$"):
            load("hh", file, max_bad_rows=5)
        data = load("hh", file, max_bad_rows=6)
        assert len(data.pairs) + len(data.test_sft) == 20 and data.dropped.malformed == 6
        assert [named.split(": ")[0] for named in data.dropped.named] == [f"{file}:{line}" for line in range(11, 17)]
        with pytest.raises(DataError, match=rf"^{file}:11: .*dataset.max_bad_rows=0 \(6 malformed rows so far\)$"):
            load("hh", file)  # though the table is there by now
    rows = [json.loads(line) for line in lines[1:3]]
    listed = tmp_path / "pairs.json"
    listed.write_text(json.dumps([*dialogues(10), *rows], indent=0))
    data = load("hh", listed, max_bad_rows=2)
    # A row of two texts takes four lines: {, chosen, rejected, }.
    assert [named.split(": ")[0] for named in data.dropped.named] == [f"{listed}:42 (row 11)", f"{listed}:45 (row 12)"]
    datasets.Dataset.from_list([*dialogues(10), *rows]).to_parquet(tmp_path / "pairs.parquet")
    data = load("hh", tmp_path / "pairs.parquet", max_bad_rows=2)
    places = [f"{tmp_path / 'pairs.parquet'}, row 11", f"{tmp_path / 'pairs.parquet'}, row 12"]
    assert [named.split(": ")[0] for named in data.dropped.named] == places


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
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfa")
    (tmp_path / "object.json").write_text("{}")
    whole = gzip.compress(write(tmp_path / "many.jsonl", *dialogues(3000)).read_bytes())
    (tmp_path / "truncated.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.jsonl.gz").write_bytes(whole[:100] + bytes(100) + whole[200:])
    (tmp_path / "rows.json").write_text('[{"chosen": "a"}]')
    (tmp_path / "list.json").write_text('[{"prompt": "p", "chosen": "a",\n "rejected": "b"},\n {"chosen": }]')
    (tmp_path / "table.parquet").write_text("no table")
    (tmp_path / "table.arrow").write_text("no table")
    (tmp_path / "unnamed.csv").write_text("prompt,,chosen\n1,2,3\n")
    (tmp_path / "quote.csv").write_text('prompt,chosen,rejected\n"1,2,3\n')
    (tmp_path / "two.json").write_text('{"train": [{"a": 1}], "test": [{"a": 2}]}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    write(tmp_path / "only" / "test.jsonl", *dialogues(3))
    for name, message in (
        ("missing.jsonl", "cannot be read ("),
        ("pairs.txt", "not a .json, "),
        ("unnamed.csv", "its first line must name the columns"),
        ("quote.csv", "cannot be read ("),
        ("two.json", "holds lists of rows called train, test"),
        ("table.arrow", "cannot be read"),
        ("text.jsonl.gz", "cannot be read ("),
        ("truncated.jsonl.gz", "cannot be read ("),
        ("broken.jsonl.gz", "cannot be read"),
        ("binary.jsonl", "binary.jsonl:1: not UTF-8"),
        ("object.json", "holds no list of rows"),
        ("rows.json", "rows.json:1 (row 1): the row has chosen (text); "),
        ("list.json", "list.json:3: not JSON ("),
        ("table.parquet", "cannot be read"),
        ("empty", "holds no rows; give a file, a save_to_disk folder, or a folder with files called train and test"),
        ("saved", "cannot be read"),
        ("only", "has no split train, but test; name one as dataset.split"),
    ):
        with pytest.raises(DataError) as error:
            load("hh", tmp_path / name, max_bad_rows=0 if name != "list.json" else 9)
        assert message in str(error.value) and str(tmp_path / name) in str(error.value), name
        assert "\n" not in str(error.value)


def test_the_items_of_a_list_have_their_lines(tmp_path: Path):
    items = [12345678, {"a": ["b"]}, None, "ü\n", -1]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = list(text_rows(path, "dataset.path"))
    assert [row.value for row in rows] == items
    places = [(2, 1), (3, 2), (8, 3), (9, 4), (10, 5)]
    assert [row.where for row in rows] == [f"{path}:{line} (row {number})" for line, number in places]
    path.write_text("[]")
    assert list(text_rows(path, "dataset.path")) == []


def test_a_table_has_its_lines_and_a_row_of_another_length_is_named(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,answer\n"1\n+ 1",2\n\n3\n4,,\n5,\n', encoding="utf-8")
    rows = list(text_rows(path, "dataset.path"))
    assert [row.value for row in rows] == [
        {"prompt": "1\n+ 1", "answer": "2"},
        None,
        None,
        {"prompt": "5", "answer": ""},
    ]
    assert [row.where for row in rows] == [f"{path}:{line}" for line in (3, 5, 6, 7)]
    assert rows[1].problem and rows[2].problem and not rows[3].problem


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


def test_small_sets_are_taken_whole_and_what_is_less_than_asked_for_is_said(tmp_path: Path):
    with pytest.raises(DataError, match=r"^dataset"):
        load("hh", write(tmp_path / "a.jsonl", *dialogues(1)))
    small = load("hh", write(tmp_path / "five.jsonl", *dialogues(5)))
    assert len(small.eval_prompts) == len(small.test_pairs) == 2 and len(small.pairs) == 3 and len(small.sources) == 1
    path = write(tmp_path / "b.jsonl", *dialogues(35))
    data = load("hh", path, num_test_pairs=256, num_eval_prompts=128, num_sft=33)
    assert (len(data.test_pairs), len(data.eval_prompts), len(data.sft), len(data.pairs)) == (7, 6, 28, 28)
    (line,) = data.sources[1:]
    for part in ("dataset.num_sft=28", "dataset.num_test_pairs=7", "dataset.num_eval_prompts=6", "a fifth of"):
        assert part in line


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
    def load_dataset(name: str, configuration: str | None = None, data_dir: str | None = None):
        asked.append((name, configuration, data_dir))
        return datasets.DatasetDict({part: datasets.Dataset.from_list(rows) for part, rows in parts.items()})

    return load_dataset


def test_the_hubs_test_part_is_held_out_and_leaves_the_training_part(monkeypatch: pytest.MonkeyPatch):
    def row(number: int) -> dict[str, str]:
        return {"prompt": f"\n\nHuman: {number}?\n\nAssistant:", "response": " y", "chosen": " y", "rejected": " n"}

    parts = {"train": [row(number) for number in range(10)], "test": [row(number) for number in range(8, 12)]}
    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", hub_stand_in(parts, asked))
    data = load_text_data(settings("hh", num_test_pairs=4, num_eval_prompts=4))
    assert asked == [("Dahoas/rm-static", None, None)]
    assert len(data.pairs) == 8 and len(data.test_pairs) == 4
    parts["train"] = parts["train"][:7]
    assert len(load_text_data(settings("hh", num_test_pairs=4)).pairs) == 7  # another fingerprint, another table


def test_without_hub_or_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def unreachable(name: str, configuration: str | None = None, data_dir: str | None = None):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as error:
        load_text_data(settings("hh"))
    assert str(error.value) == (
        "dataset.hub=Dahoas/rm-static: the hub did not give it (Couldn't reach 'Dahoas/rm-static' on the Hub and "
        "more); set dataset.hub_config to one of its configurations, dataset.path to local files, or HF_TOKEN where "
        "access must be granted"
    )
    with pytest.raises(DataError, match=r"^dataset.path: neither it nor dataset.hub says where the data is"):
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


@pytest.mark.parametrize("form", ["saved", "files", "hub"])
def test_splits_are_chosen_by_name_and_never_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    """The same of a saved folder, of files and of the hub: what is read is named, and what is not."""
    parts = {
        "train_prefs": dialogues(10),
        "test_prefs": dialogues(range(20, 24)),
        "train_sft": dialogues(range(30, 70)),
    }
    asked: list[object] = []
    place = {"hub": "owner/name"} if form == "hub" else {"path": str(tmp_path / form)}
    option = "dataset.hub=owner/name" if form == "hub" else f"dataset.path={tmp_path / form}"
    if form == "saved":
        saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
        saved.save_to_disk(tmp_path / "saved")
    for name, rows in parts.items():
        half = len(rows) // 2
        write(tmp_path / "files" / "data" / f"{name}-00000-of-00002.jsonl", *rows[:half])
        datasets.Dataset.from_list(rows[half:]).to_parquet(
            tmp_path / "files" / "data" / f"{name}-00001-of-00002.parquet"
        )
    monkeypatch.setattr(datasets, "load_dataset", hub_stand_in(parts, asked))

    def loaded(**options: str):
        return load_text_data(settings("hh", **place, **options))

    data = loaded(split="train_prefs", test_split="test_prefs")
    assert len(data.pairs) == 10 and len(data.test_sft) == 4
    (line,) = data.sources
    assert line.startswith(f"data: {option}: train_prefs 10 rows") and "held out: test_prefs 4 rows" in line
    assert line.endswith("; not read: train_sft")
    (line,) = loaded(split="train_sft").sources
    assert (
        "train_sft 40 rows" in line and "a fifth of the prompts held out (8); not read: test_prefs, train_prefs" in line
    )
    for options, problem in (
        ({}, f"{option}: has no split train, but "),
        ({"split": "train_prefs", "test_split": "test"}, f"{option}: has no split test, but "),
        (
            {"split": "train_prefs", "test_split": "train_prefs"},
            "dataset.test_split=train_prefs: is what is trained on",
        ),
    ):
        with pytest.raises(DataError) as error:
            loaded(**options)
        assert str(error.value).startswith(problem)
        if "has no split" in problem:
            named = "dataset.test_split" if "test_split" in options else "dataset.split"
            assert all(name in str(error.value) for name in (*parts, named))


def test_a_configuration_of_the_hub_is_chosen_and_all_are_listed(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []
    given = hub_stand_in({"train": dialogues(20)}, asked)
    names = [f"subject_{number}" for number in range(60)]

    def load_dataset(name: str, configuration: str | None = None, data_dir: str | None = None):
        if configuration is None:
            raise ValueError("Config name is missing.\nPlease pick one among ...")
        return given(name, configuration, data_dir)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: names)
    with pytest.raises(DataError) as error:
        load_text_data(settings("hh"))
    assert "dataset.hub_config" in str(error.value) and all(name in str(error.value) for name in names)
    assert len(load_text_data(settings("hh", hub_config="subject_3")).pairs) == 16
    assert asked == [("Dahoas/rm-static", "subject_3", None)]


def test_a_path_is_a_path_and_no_pattern(tmp_path: Path):
    """With brackets, stars and what a URL would be made of."""
    folder = tmp_path / "a[v2]*::b {c}"
    folder.mkdir()
    datasets.Dataset.from_list(dialogues(20)).to_parquet(tmp_path / "pairs.parquet")
    (tmp_path / "pairs.parquet").rename(folder / "pairs?.parquet")
    datasets.Dataset.from_list(dialogues(20)).save_to_disk(tmp_path / "saved [v2]* {c}")
    expected = contents(load("hh", write(tmp_path / "plain.jsonl", *dialogues(20))))
    for path in (folder / "pairs?.parquet", tmp_path / "saved [v2]* {c}", write(folder / "a[1].jsonl", *dialogues(20))):
        assert contents(load("hh", path)) == expected
