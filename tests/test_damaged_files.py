"""Files that hold something else than they should are named in one line; nothing ends in a traceback."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from rlhf.config.identity import run_folder
from rlhf.errors import FileError
from rlhf.run import execute
from rlhf.runs.mirror import SENT, rows_sent
from rlhf.runs.state import finished, read_rows, read_summary, times_emptied
from sweeps.runs import read_json, read_records
from tests.config.composed import config

JUNK = ["", "[]", "null", "{", "\0\0\0", "\xff", "[" * 100_000]


def write(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode("latin-1"))
    return file


def one_line(error: pytest.ExceptionInfo[BaseException], file: Path) -> None:
    assert "\n" not in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("content", [*JUNK, "{}", '{"status": null}'])
def test_a_summary_of_junk_is_named_wherever_it_is_read(tmp_path: Path, content: str):
    run = config(f"output_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "tracking=none")
    file = write(run_folder(run) / "summary.json", content)
    for read in (lambda: read_summary(run_folder(run)), lambda: finished(run), lambda: execute(run)):
        with pytest.raises(FileError) as error:
            read()
        one_line(error, file)
    assert [path.name for path in run_folder(run).iterdir()] == ["summary.json"]


@pytest.mark.parametrize("content", [*JUNK, "{}", '{"count": "x"}', '{"count": -1}'])
def test_a_count_of_junk_is_named(tmp_path: Path, content: str):
    file = write(tmp_path / "overwrites.json", content)
    with pytest.raises(FileError) as error:
        times_emptied(tmp_path)
    one_line(error, file)


@pytest.mark.parametrize("content", [line for line in JUNK if line] + ['{"step": 1}\n[1]\n', '{"step": 1}\n{"st'])
def test_metrics_of_junk_are_named_with_their_line(tmp_path: Path, content: str):
    file = write(tmp_path / "metrics.jsonl", content)
    with pytest.raises(FileError, match=r"line [12] holds no JSON object") as error:
        read_rows(tmp_path)
    one_line(error, file)


@pytest.mark.parametrize("content", [*JUNK, "{}", '{"rows": "x"}', '{"rows": -2}'])
def test_a_junk_count_of_rows_sent_is_named(tmp_path: Path, content: str):
    file = write(tmp_path / SENT, content)
    with pytest.raises(FileError) as error:
        rows_sent(tmp_path)
    one_line(error, file)


@pytest.mark.parametrize("content", JUNK)
def test_a_record_of_junk_is_none(tmp_path: Path, content: str):
    assert read_json(write(tmp_path / "jobs" / "a.json", content)) == {}


def test_a_record_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")  # which root never meets

    file = write(tmp_path / "jobs" / "a.json", "{}")
    monkeypatch.setattr(Path, "read_bytes", refused)
    for read in (lambda: read_json(file), lambda: read_records(tmp_path)):
        with pytest.raises(FileError, match="cannot read it") as error:
            read()
        assert str(file) in str(error.value)


def test_rows_come_back_as_they_were(tmp_path: Path):
    rows = [{"step": 1, "text": "a\u2028b\u0085c"}, {"step": 2}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert read_rows(tmp_path) == rows
