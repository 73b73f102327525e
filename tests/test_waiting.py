"""Whoever waits for another process stops when asked, and a file system without locks is named."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import filelock
import pytest
from filelock import FileLock, SoftFileLock

import rlhf.waiting
from rlhf.data.examples import Preference
from rlhf.data.rows import Row
from rlhf.data.sources import Part
from rlhf.data.tables import BadRows, _cache_folder, table_of
from rlhf.errors import FileError
from rlhf.waiting import StoppedWaiting, locked, request_stop, stopped_by_signals


@pytest.fixture
def asked_soon():
    with stopped_by_signals():
        threading.Timer(0.3, request_stop, ["SIGTERM"]).start()
        yield


def test_a_free_lock_is_held_and_given_back(tmp_path: Path):
    with locked(tmp_path / "a.lock", "works"):
        assert not rlhf.waiting.acquired(FileLock(tmp_path / "a.lock"), 0)
    assert rlhf.waiting.acquired(FileLock(tmp_path / "a.lock"), 0)


def test_waiting_ends_when_asked(tmp_path: Path, asked_soon):
    began, path = time.monotonic(), tmp_path / "a.lock"
    line = "SIGTERM while another process works"
    with FileLock(path), pytest.raises(StoppedWaiting, match=line), locked(path, "works"):
        pytest.fail("two hold it")
    assert time.monotonic() - began < 10


def test_a_file_that_a_machine_with_locks_has_left_is_named(tmp_path: Path, asked_soon, monkeypatch, capsys):
    """Where flock is missing, filelock takes the file itself for the lock: it waits for what nobody deletes."""
    monkeypatch.setattr(rlhf.waiting, "FileLock", SoftFileLock)
    monkeypatch.setattr(rlhf.waiting, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(rlhf.waiting, "SAY_AFTER_SECONDS", 0.1)
    (tmp_path / "a.lock").touch()
    with pytest.raises(StoppedWaiting), locked(tmp_path / "a.lock", "works"):
        pytest.fail("two hold it")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"delete {tmp_path / 'a.lock'}" in said


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch):
    def none(self, *_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.UnixFileLock, "_acquire", none)
    with pytest.raises(FileError) as error, locked(tmp_path / "a.lock", "works"):
        pytest.fail("held")
    text = str(error.value)
    assert str(tmp_path / "a.lock") in text and "No locks available" in text and "another one" in text


def test_a_conversion_by_another_run_is_waited_for_until_asked_to_stop(asked_soon):
    part = Part("train", "made up for this test", lambda: iter([Row({"x": 1}, "pairs.jsonl:1")]))
    folder = _cache_folder(part, Preference, "form")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), pytest.raises(StoppedWaiting):
        table_of(part, Preference, lambda _: [], form="form", bad_rows=BadRows(0))
