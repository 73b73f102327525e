"""The file of paid answers outlives kills, bad lines and second evaluations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from analysis.errors import WinrateError
from analysis.winrate.asking import AnswerCache, JudgeSettings
from analysis.winrate.prompt import Reply, Request

REPLY = Reply("é [[A]]", "judge", "stop", 3, None)
SETTINGS = JudgeSettings(
    model="m",
    base_url="http://u:secret@host/v1/?k=secret",
    max_tokens=9,
    reasoning=False,
    timeout=1.0,
    concurrency=1,
    max_retries=1,
)


def test_a_line_cut_off_costs_that_answer_alone(tmp_path: Path) -> None:
    file = tmp_path / "cache.jsonl"
    with AnswerCache(file) as cache:
        cache.put("first", REPLY)
        cache.put("second", REPLY)
    file.write_bytes(b'[1]\n{"key": "x"}\n' + file.read_bytes()[:-20])
    with AnswerCache(file) as cache:
        assert cache.get("first") == REPLY and cache.get("second") is None and cache.get("x") is None
        cache.put("third", REPLY)
    assert AnswerCache(file).get("third") == REPLY


@pytest.mark.parametrize(
    "change",
    [{"content": None}, {"prompt_tokens": "1"}, {"completion_tokens": True}, {"model": 3}, {"key": ["x"]}],
)
def test_a_row_of_a_wrong_type_costs_that_answer_alone(tmp_path: Path, change: dict) -> None:
    file = tmp_path / "cache.jsonl"
    good = {"key": "good", **dataclasses.asdict(REPLY)}
    deep = "[" * 100_000
    file.write_text("\n".join([json.dumps(good | {"key": "bad"} | change), deep, json.dumps(good)]))
    cache = AnswerCache(file)
    assert cache.get("good") == REPLY and cache.get("bad") is None


def test_half_surrogates_kept_by_an_earlier_version_are_mended(tmp_path: Path) -> None:
    file = tmp_path / "cache.jsonl"
    file.write_text(json.dumps({"key": "k", **dataclasses.asdict(REPLY), "content": "\ud800 [[A]]"}))
    reply = AnswerCache(file).get("k")
    assert reply is not None and reply.content == "? [[A]]"


def test_openai_is_known_however_its_url_is_written() -> None:
    def at(url: str) -> bool:
        return dataclasses.replace(SETTINGS, base_url=url).at_openai

    hosts = ("https://api.openai.com/v1/", "https://API.openai.com:443/v1", "https://eu.api.openai.com/v1")
    assert all(at(url) for url in hosts)
    assert not any(at(url) for url in ("http://localhost:8000/v1", "https://notapi.openai.com.evil/v1"))


def test_second_evaluation_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    file = tmp_path / "cache.jsonl"
    with AnswerCache(file), pytest.raises(WinrateError, match="is in use by another evaluation"), AnswerCache(file):
        pass
    with AnswerCache(file):
        pass


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WinrateError, match=r"--cache .*cannot be"), AnswerCache(tmp_path / "file" / "cache.jsonl"):
        pass


def test_key_holds_all_that_changes_an_answer_and_no_credentials() -> None:
    request = Request(({"role": "user", "content": "?"},), 0)
    key = SETTINGS.key(request)
    changes = [{"model": "n"}, {"base_url": "http://other/v1"}, {"max_tokens": 8}, {"reasoning": True}]
    assert len({key, *(dataclasses.replace(SETTINGS, **change).key(request) for change in changes)}) == 5
    assert key != SETTINGS.key(Request(request.messages, 1))
    same = dataclasses.replace(SETTINGS, timeout=5.0, concurrency=8, base_url="http://host/v1")
    assert same.key(request) == key
    assert SETTINGS.public_url == "http://host/v1"
