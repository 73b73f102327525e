"""Killed or interrupted in the middle, and typed again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from analysis.errors import WinrateError
from tests.analysis.winrate.judge_server import Call, JudgeServer, Say, judging, longer
from tests.analysis.winrate.made_up import (
    COMMAND,
    FAST,
    REQUESTS,
    RIGHT,
    ROOT,
    answers,
    pair_rows,
    totals,
    winrate,
)

PROMPTS = 15
NEEDED = 2 * PROMPTS
CONCURRENCY = 3


def slow(call: Call) -> Say:
    return Say(longer(call).text, delay=0.08)


def start(folder: Path, server: JudgeServer) -> subprocess.Popen[str]:
    a = answers(folder / "a.jsonl", {f"p{i}": "long" for i in range(PROMPTS)})
    b = answers(folder / "b.jsonl", {f"p{i}": "lo" for i in range(PROMPTS)})
    places = ["--output", str(folder / "out"), "--cache", str(folder / "cache.jsonl")]
    arguments = [f"a={a}", f"b={b}", "--base-url", server.url, "--concurrency", str(CONCURRENCY), "--yes", *places]
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=os.environ | {"OPENAI_API_KEY": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(server: JudgeServer, answered: int) -> None:
    end = time.monotonic() + 60
    while sum(server.answered.values()) < answered:
        assert time.monotonic() < end, "the command sent too little"
        time.sleep(0.005)


def test_kill_9_repeats_at_most_what_was_under_way(tmp_path: Path) -> None:
    with judging(slow) as server:
        first = start(tmp_path, server)
        wait_for(server, 10)
        first.kill()
        first.communicate()
        time.sleep(0.3)  # the server finishes what it was answering, unheard
        kept = (tmp_path / "cache.jsonl").read_bytes().count(b"\n")
        before = sum(server.answered.values())
        assert before - CONCURRENCY <= kept <= before < NEEDED
        second = start(tmp_path, server)
        out, error = second.communicate(timeout=60)
        assert second.returncode == 0, error
        assert f"{NEEDED - kept} to send, {kept} in the cache" in out
        assert sum(server.answered.values()) == before + NEEDED - kept
        assert NEEDED <= sum(server.answered.values()) <= NEEDED + CONCURRENCY
    (row,) = pair_rows(tmp_path)
    assert (row["wins"], row["comparisons"], row["win_rate"]) == (str(PROMPTS), str(PROMPTS), "1.0")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_keep_what_is_under_way_and_say_so(tmp_path: Path, sent: signal.Signals) -> None:
    with judging(slow) as server:
        first = start(tmp_path, server)
        wait_for(server, 8)
        first.send_signal(sent)
        _, error = first.communicate(timeout=20)
        assert first.returncode == 130
        assert "Traceback" not in error
        last = error.strip().splitlines()[-1]
        assert last.startswith("interrupted: ") and last.endswith(
            f"of {PROMPTS} comparisons are done and every answer is kept; the same command goes on from there"
        )
        kept = (tmp_path / "cache.jsonl").read_bytes().count(b"\n")
        assert kept == sum(server.answered.values()) < NEEDED
        second = start(tmp_path, server)
        second.communicate(timeout=60)
        assert second.returncode == 0
        assert sum(server.answered.values()) == NEEDED and set(server.answered.values()) == {1}


def test_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with judging(lambda _: Say("[[A]]", delay=40.0)) as server:
        command = start(tmp_path, server)
        end = time.monotonic() + 60
        while len(server.calls) < CONCURRENCY and time.monotonic() < end:
            time.sleep(0.01)
        command.send_signal(signal.SIGINT)
        assert (
            command.stderr is not None and "waiting up to 15 s for answers under way (3)" in command.stderr.readline()
        )
        command.send_signal(signal.SIGINT)
        _, error = command.communicate(timeout=10)
    assert command.returncode == 130 and "interrupted: 0 of 15" in error, error


@pytest.mark.parametrize("way", ["silence", "errors"])
def test_an_evaluation_whose_judge_died_pays_for_no_answer_twice(tmp_path: Path, sources: list[str], way: str) -> None:
    dead = threading.Event()
    dead.set()

    def mortal(call: Call) -> Say:
        if dead.is_set() and call.total >= 7:
            if way == "silence":
                raise OSError("gone")
            return Say("overloaded", status=503)
        return longer(call)

    with judging(mortal) as server:
        typed = [*sources, "--base-url", server.url, *FAST, "--max-retries", "1", "--concurrency", "2"]
        with contextlib.suppress(WinrateError):
            assert winrate(tmp_path, *typed) != 0
        paid = sum(server.answered.values())
        assert paid == 7 and (tmp_path / "cache.jsonl").read_bytes().count(b"\n") == 7
        dead.clear()
        assert winrate(tmp_path, *typed) == 0
        assert sum(server.answered.values()) == REQUESTS and set(server.answered.values()) == {1}
    assert totals(tmp_path) == RIGHT
