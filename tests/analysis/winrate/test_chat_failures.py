"""The whole command against a server that fails: what is tried again, what ends it, what is kept and not told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import WinrateError
from tests.analysis.winrate.judge_server import Call, Say, judging, longer
from tests.analysis.winrate.made_up import (
    FAST,
    KEY,
    REQUESTS,
    RIGHT,
    about,
    pair_rows,
    totals,
    winrate,
)


def test_what_may_go_away_is_tried_again_and_nothing_is_paid_twice(tmp_path: Path, sources: list[str]) -> None:
    """Of each question the first tries meet 500, a stall and 429, and then a paid answer without verdict; the question
    that reminds is answered at once."""

    def script(call: Call) -> Say:
        if len(call.messages) == 3:  # the reminder
            return longer(call)
        slow_down = Say("slow down", status=429, headers={"Retry-After": "0.01"})
        return [Say("oops", status=500), Say("late", delay=30.0), slow_down, Say("I think A is nice.")][call.number]

    with judging(script) as server:
        arguments = (*sources, "--base-url", server.url, "--timeout", "3", "--yes")
        assert winrate(tmp_path, *arguments, "--concurrency", "24", "--max-retries", "3") == 0
        assert totals(tmp_path) == RIGHT
        assert len(server.calls) == REQUESTS * 5
        # The question and its reminder, each billed once.
        assert len(server.answered) == 2 * REQUESTS and set(server.answered.values()) == {1}
    assert about(tmp_path)["usage_of_this_run"]["answers"] == 2 * REQUESTS
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 2 * REQUESTS


@pytest.mark.parametrize(
    "say", [Say(raw=b"<html>gateway</html>", headers={"Content-Type": "text/html"}), Say(raw=b""), Say(raw=b"{}")]
)
def test_what_is_no_completion_ends_it_in_one_line(tmp_path: Path, sources: list[str], say: Say) -> None:
    said = r"no answer in 2 tries: .*the same command goes on"
    with judging(lambda _: say) as server, pytest.raises(WinrateError, match=said) as caught:
        winrate(tmp_path, *sources, "--base-url", server.url, *FAST, "--concurrency", "1")
    assert "\n" not in str(caught.value)


def test_retry_after_is_waited_for(tmp_path: Path, sources: list[str]) -> None:
    times: list[float] = []

    def script(call: Call) -> Say:
        import time

        times.append(time.monotonic())
        return longer(call) if call.number else Say("slow", status=429, headers={"Retry-After": "1"})

    with judging(script) as server:
        arguments = (*sources, "--pairs", "sft:apa", "--limit", "1", "--base-url", server.url, *FAST)
        assert winrate(tmp_path, *arguments, "--concurrency", "1") == 0
    assert [times[1] - times[0] >= 1.0, times[3] - times[2] >= 1.0] == [True, True] and len(times) == 4


def test_an_answer_that_comes_in_drips_meets_the_timeout(
    tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own timeout is for each read; a byte in time must not keep a request alive for ever."""
    import socket
    import threading
    import time

    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    for _ in range(200):
                        connection.sendall(b" ")
                        time.sleep(0.05)
                except OSError:
                    continue

    threading.Thread(target=drip, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    start = time.monotonic()
    monkeypatch.setattr("analysis.winrate.asking._BETWEEN_TRIES", 0.2)
    arguments = (*sources, "--limit", "1", "--pairs", "sft:apa", "--base-url", url, "--timeout", "0.3")
    with pytest.raises(WinrateError, match=r"no answer in 1 tries: none came within --timeout;"):
        winrate(tmp_path, *arguments, "--max-retries", "0", "--concurrency", "1")
    assert time.monotonic() - start < 5.0
    listener.close()


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (Say(f"Incorrect API key provided: {KEY}", status=401), r"401.*Incorrect API key provided: \*\*\*"),
        (Say("not allowed", status=403), "403.*not allowed"),
        (Say("no model gpt-4", status=404), "404.*no model gpt-4"),
        (Say("quota", status=429, headers={"X-Code": "insufficient_quota"}), "429.*quota"),
        (Say("no max_tokens here", status=400), "refused every request: .*400.*no max_tokens here"),
        (
            Say("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", status=400),
            "max_completion_tokens' instead.*; add --reasoning-model",
        ),
        (Say("'temperature' does not support 0: unsupported value", status=400), "; add --reasoning-model"),
        (Say("\x1b[31mbad\u202e \x9bgateway", status=403), "403.*bad.*gateway"),
    ],
)
def test_hopeless_cases_end_at_once_in_one_line(tmp_path: Path, sources: list[str], say: Say, message: str) -> None:
    with judging(lambda _: say) as server:
        with pytest.raises(WinrateError, match=message) as caught:
            winrate(tmp_path, *sources, "--base-url", server.url, *FAST, "--concurrency", "1")
        assert len(server.calls) <= 4
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)


def test_a_server_that_stays_down_ends_it_and_keeps_what_came(tmp_path: Path, sources: list[str]) -> None:
    def script(call: Call) -> Say:
        return Say("down", status=503) if call.total >= 10 else longer(call)

    with judging(script) as server:
        arguments = (*sources, "--base-url", server.url, *FAST, "--concurrency", "2")
        with pytest.raises(WinrateError, match=r"no answer in 2 tries: .*503.*the same command goes on"):
            winrate(tmp_path, *arguments)
        assert sum(server.answered.values()) == 10 and not (tmp_path / "out" / "winrate.json").exists()
        server.script = longer
        assert winrate(tmp_path, *arguments) == 0
        assert totals(tmp_path) == RIGHT and set(server.answered.values()) == {1}


def test_one_refused_request_does_not_end_the_others(tmp_path: Path, sources: list[str]) -> None:
    def script(call: Call) -> Say:
        return Say("too long", status=400) if "ppppp" in call.responses else longer(call)

    with judging(script) as server:
        assert winrate(tmp_path, *sources, "--base-url", server.url, *FAST) == 0
    assert [row["unparsed"] for row in pair_rows(tmp_path)] == ["1", "0", "1"]
    assert about(tmp_path)["refused"] == 4
    assert "too long" in (tmp_path / "out" / "judgements.jsonl").read_text()


def test_half_surrogates_in_an_answer_are_written(tmp_path: Path, sources: list[str]) -> None:
    raw = json.dumps({"choices": [{"message": {"content": "\ud800 [[A]]\n[[A]]"}, "finish_reason": "stop"}]})
    page = {"Content-Type": "application/json"}
    with judging(lambda _: Say(raw=raw.encode(), headers=page)) as server:
        assert winrate(tmp_path, *sources, "--base-url", server.url, *FAST) == 0
    assert "? [[A]]" in (tmp_path / "out" / "judgements.jsonl").read_text()


def test_the_key_is_sent_and_nowhere_written(tmp_path: Path, sources: list[str], capsys: Any) -> None:
    """Not even where the server says it back."""

    def script(call: Call) -> Say:
        return Say(f"Hello {call.authorization}\n[[A]]") if call.number else Say(f"busy, {KEY}", status=500)

    with judging(script) as server:
        assert winrate(tmp_path / "plain", *sources, "--base-url", server.url, *FAST) == 0
        assert {call.authorization for call in server.calls} == {f"Bearer {KEY}"}
        server.script = longer
        url = server.url.replace("http://", "http://user:password-9@")
        assert winrate(tmp_path / "named", *sources, "--base-url", url, *FAST) == 0
    output = capsys.readouterr()
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert any(b"Hello Bearer ***" in content for content in written)
    for secret in (KEY, "password-9"):
        assert not any(secret.encode() in content for content in written)
        assert secret not in output.out + output.err
