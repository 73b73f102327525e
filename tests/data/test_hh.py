"""dataset=hh: both forms of a row, what is refused and how, the split, the hub behind a stand-in."""

import gzip
import importlib
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import DataError, Preference
from rlhf.data.hh import load_hh, parse_row, read_pairs, split_by_prompt
from tests.config.composed import composed

SETTINGS = composed("dataset=hh", "model=smollm2_135m")["dataset"]
ASK = "\n\nHuman: hello\n\nAssistant:"
TWO_TURNS = ASK + " Hi.\n\nHuman: Assistant: who?\n\nAssistant:"


def config(**changes) -> DatasetConfig:
    return DatasetConfig(**(SETTINGS | changes))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dialogues(count: int) -> list[dict[str, str]]:
    asks = [f"\n\nHuman: {number}?\n\nAssistant:" for number in range(count)]
    return [{"chosen": f"{ask} Yes.", "rejected": f"{ask} No."} for ask in asks]


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"chosen": ASK + " Hi there.", "rejected": ASK + " Hi you."}, (ASK, " Hi there.", " Hi you.")),
        ({"chosen": TWO_TURNS + " Me", "rejected": TWO_TURNS + "I "}, (TWO_TURNS, " Me", " I")),
        # The dialogues part in the first answer: the prompt ends there, and the answers at the next turn.
        ({"chosen": TWO_TURNS + " Me", "rejected": ASK + " Go."}, (ASK, " Hi.", " Go.")),
        ({"chosen": ASK + " A\n\nAssistant: B", "rejected": ASK + " C"}, (ASK, " A", " C")),
        ({"chosen": ASK + " ", "rejected": ASK + " C"}, (ASK, "", " C")),
        ({"prompt": ASK, "response": "x", "chosen": " A\n\nB ", "rejected": "C"}, (ASK, " A\n\nB", " C")),
    ],
)
def test_rows_of_both_forms(row, pair):
    assert parse_row(row, "here") == Preference(*pair)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"chosen": "a"}', "a row must be an object with the texts chosen and rejected; mend or drop it"),
        ('["chosen", "rejected"]', "a row must be an object with the texts chosen and rejected; mend or drop it"),
        (
            '{"chosen": "a", "rejected": 3}',
            "a row must be an object with the texts chosen and rejected; mend or drop it",
        ),
        (
            '{"chosen": "a", "rejected": "a b"}',
            "chosen and rejected do not begin with one dialogue up to an Assistant ",
        ),
        ('{"prompt": 3, "chosen": "a", "rejected": "b"}', "prompt must be a text that is not empty; mend or drop it"),
        ('{"chosen": "a",', "not JSON ("),
    ],
)
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path: Path, line: str, message: str):
    path = write(tmp_path / "pairs.jsonl", *dialogues(2))
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(DataError) as error:
        read_pairs(path)
    assert str(error.value).startswith(f"{path}:4: {message}")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path):
    (tmp_path / "text.jsonl.gz").write_text("not packed")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(random.Random(0).randbytes(500))[:200])
    write(tmp_path / "rows.json", *[[{"chosen": "a"}]])
    for name, message in (
        ("missing.jsonl", "No such file or directory"),
        ("pairs.csv", "not a .json, .jsonl or .jsonl.gz file"),
        ("text.jsonl.gz", "Not a gzipped file"),
        ("half.jsonl.gz", "cannot be read"),
        ("binary.jsonl", "codec can't decode"),
        ("object.json", "must hold a list of rows"),
        ("rows.json", "rows.json, row 1: a row must be"),
    ):
        with pytest.raises(DataError) as error:
            load_hh(config(path=str(tmp_path / name)))
        assert message in str(error.value) and str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_the_three_kinds_of_file_hold_the_same(tmp_path: Path):
    rows = dialogues(3)
    lines = write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    expected = [Preference(f"\n\nHuman: {number}?\n\nAssistant:", " Yes.", " No.") for number in range(3)]
    for name in ("a.jsonl", "a.jsonl.gz", "a.json"):
        assert read_pairs(tmp_path / name) == expected


def test_empty_and_equal_answers_are_left_out(tmp_path: Path):
    empty = {"chosen": ASK + " ", "rejected": ASK + " C"}
    equal = {"chosen": ASK + " C", "rejected": ASK + " C "}
    assert len(read_pairs(write(tmp_path / "a.jsonl", empty, *dialogues(1), equal))) == 1


def test_a_local_file_is_split_by_prompt_and_by_seed(tmp_path: Path):
    rows = [*dialogues(50), *dialogues(50)]  # each prompt twice
    path = write(tmp_path / "a.jsonl", *rows)
    data = load_hh(config(path=str(path), num_test_pairs=20, num_eval_prompts=10))
    sizes = [len(part) for part in (data.sft, data.test_sft, data.pairs, data.test_pairs, data.prompts)]
    assert sizes == [40, 10, 80, 20, 40]
    trained = {one.prompt for one in [*data.sft, *data.pairs, *data.prompts]}
    held_out = {one.prompt for one in [*data.test_sft, *data.test_pairs, *data.eval_prompts]}
    assert trained.isdisjoint(held_out) and len(trained | held_out) == 50
    assert data.gold is None and {one.response for one in data.eval_prompts} == {" Yes."}
    pairs = read_pairs(path)
    assert split_by_prompt(pairs, 0) == split_by_prompt(pairs, 0) != split_by_prompt(pairs, 1)
    with pytest.raises(DataError, match=r"^dataset.num_test_pairs=21: the data has 20 of them; "):
        load_hh(config(path=str(path), num_test_pairs=21, num_eval_prompts=10))


def stand_in_for_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset) -> None:
    package = SimpleNamespace(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=RuntimeError))
    monkeypatch.setattr(importlib, "import_module", {"datasets": package}.__getitem__)


def test_the_hubs_test_part_is_held_out_and_leaves_the_training_part(monkeypatch: pytest.MonkeyPatch):
    def row(number: int) -> dict[str, str]:
        return {"prompt": f"\n\nHuman: {number}?\n\nAssistant:", "response": " y", "chosen": " y", "rejected": " n"}

    parts = {"train": [row(number) for number in range(10)], "test": [row(number) for number in range(8, 12)]}
    asked = []
    stand_in_for_datasets(monkeypatch, lambda name: asked.append(name) or parts)
    data = load_hh(config(num_test_pairs=4, num_eval_prompts=4))
    assert asked == ["Dahoas/rm-static"]
    assert len(data.pairs) == 8 and len(data.test_pairs) == 4


def test_without_hub_or_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def unreachable(name: str):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand more")

    stand_in_for_datasets(monkeypatch, unreachable)
    with pytest.raises(DataError) as error:
        load_hh(config())
    assert str(error.value) == (
        "dataset=hh: the hub did not give Dahoas/rm-static (Couldn't reach 'Dahoas/rm-static' on the Hub); "
        "set dataset.path to a local .jsonl or .jsonl.gz"
    )

    def absent(name: str):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(DataError, match=r"pip install -e '.\[hub\]'.*set dataset.path$"):
        load_hh(config())


def test_real_dialogues():
    """The 1,800 pairs beside the repository, where they are: 4 preferred answers are empty, 2 prompts come twice."""
    path = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless-pairs.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    data = load_hh(config(path=str(path)))
    pairs = read_pairs(path)
    assert len(pairs) == 1796
    assert (len(data.pairs), len(data.sft), len(data.test_sft)) == (1436, 1435, 359)
    for pair in pairs:
        assert pair.prompt.startswith("\n\nHuman:") and pair.prompt.endswith("\n\nAssistant:")
        assert "\n\nAssistant:" not in pair.chosen + pair.rejected and pair.chosen[0] == pair.rejected[0] == " "
