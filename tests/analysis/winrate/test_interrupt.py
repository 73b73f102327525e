"""Killed, interrupted or left by its judge in the middle, and typed again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import WinrateError
from tests.analysis.winrate.judge_server import Call, JudgeServer, Say, judging, longer
from tests.analysis.winrate.made_up import FAST, REQUESTS, RIGHT, answers, pair_rows, totals, winrate

PROMPTS = 15
NEEDED = 2 * PROMPTS
CONCURRENCY = 3


def slow(call: Call) -> Say:
    return Say(longer(call).text, delay=0.08)


def typed(folder: Path, server: JudgeServer) -> list[str]:
    files = [answers(folder / f"{n}.jsonl", {f"p{i}": n for i in range(PROMPTS)}) for n in ("long", "lo")]
    models = [f"a={files[0]}", f"b={files[1]}"]
    return [*models, "--base-url", server.url, "--yes", "--concurrency", str(CONCURRENCY)]


def start(folder: Path, server: JudgeServer) -> subprocess.Popen[str]:
    places = ["--output", str(folder / "out"), "--cache", str(folder / "cache.jsonl")]
    command = [sys.executable, "-m", "analysis", "winrate", *typed(folder, server), *places]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=pipe, stderr=pipe, text=True)


def wait_for(server: JudgeServer, calls: int) -> None:
    end = time.monotonic() + 60
    while len(server.calls) < calls:
        assert time.monotonic() < end, "the command sent too little"
        time.sleep(0.005)


def kept(folder: Path) -> int:
    return (folder / "cache.jsonl").read_bytes().count(b"\n")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_typed_again_it_goes_on_and_pays_for_nothing_twice(tmp_path: Path, sent: signal.Signals, capsys: Any) -> None:
    """Killed it repeats at most what was under way; asked to stop it waits for that, and says so."""
    with judging(slow) as server:
        first = start(tmp_path, server)
        wait_for(server, 12)
        first.send_signal(sent)
        _, error = first.communicate(timeout=20)
        time.sleep(0.3)  # the server finishes what it was answering, unheard
        before, there = sum(server.answered.values()), kept(tmp_path)
        assert there <= before < NEEDED
        if sent == signal.SIGKILL:
            assert before - CONCURRENCY <= there
        else:
            assert there == before and first.returncode == 130 and "Traceback" not in error
            assert error.strip().splitlines()[-1] == (
                f"interrupted: {there} of {NEEDED} questions are answered and every answer is kept; "
                "the same command goes on from there"
            )
        assert winrate(tmp_path, *typed(tmp_path, server)) == 0
        assert f"{NEEDED - there} to send, {there} in the cache" in capsys.readouterr().out
        assert sum(server.answered.values()) == before + NEEDED - there
    (row,) = pair_rows(tmp_path)
    assert (row["wins"], row["comparisons"], row["win_rate"]) == (str(PROMPTS), str(PROMPTS), "1.0")


def test_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with judging(lambda _: Say("[[A]]", delay=40.0)) as server:
        command = start(tmp_path, server)
        wait_for(server, CONCURRENCY)
        command.send_signal(signal.SIGINT)
        assert command.stderr is not None and "answers under way (3)" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        _, error = command.communicate(timeout=10)
    assert command.returncode == 130 and "interrupted" in error and "Traceback" not in error, error


@pytest.mark.parametrize("way", ["silence", "errors"])
def test_an_evaluation_whose_judge_died_goes_on_from_there(tmp_path: Path, sources: list[str], way: str) -> None:
    def mortal(call: Call) -> Say:
        if call.total < 7:
            return longer(call)
        if way == "silence":
            raise OSError("gone")
        return Say("overloaded", status=503)

    with judging(mortal) as server:
        arguments = [*sources, "--base-url", server.url, *FAST, "--concurrency", "2"]
        with pytest.raises(WinrateError, match=r"no answer in 2 tries: .*the same command goes on"):
            winrate(tmp_path, *arguments)
        assert sum(server.answered.values()) == 7 == kept(tmp_path) and not (tmp_path / "out" / "winrate.json").exists()
        server.script = longer
        assert winrate(tmp_path, *arguments) == 0
        assert sum(server.answered.values()) == REQUESTS and set(server.answered.values()) == {1}
    assert totals(tmp_path) == RIGHT
