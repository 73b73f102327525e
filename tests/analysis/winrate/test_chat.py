"""The whole command against a scripted server: totals, what is paid for, what is kept when it fails, and not told."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import WinrateError
from tests.analysis.winrate.judge_server import IN, OUT, Call, JudgeServer, Say, judging, longer
from tests.analysis.winrate.made_up import FAST, KEY, REQUESTS, RIGHT, about, answers, pair_rows, totals, winrate


def test_totals_by_hand_and_what_is_written(tmp_path: Path, sources: list[str], fair: JudgeServer, capsys: Any) -> None:
    assert winrate(tmp_path, *sources, "--base-url", fair.url, *FAST) == 0
    assert totals(tmp_path) == RIGHT and len(fair.calls) == REQUESTS
    made = about(tmp_path)
    assert made["model_requested"] == "gpt-4.1" and made["models_answering"] == ["judge-0613"]
    assert made["base_url"] == fair.url and made["parameters"]["temperature"] == 0
    assert made["usage_of_this_run"] == made["usage_of_all_answers"]
    assert made["usage_of_this_run"]["prompt_tokens"] == REQUESTS * IN
    assert made["usage_of_this_run"]["usd"] == pytest.approx(REQUESTS * (IN * 2e-6 + OUT * 8e-6))
    assert made["position_bias"]["value"] == 0.5 and made["agreement"]["value"] == 1.0
    assert "{response_a}" in made["template"]["text"] and len(made["template"]["sha256"]) == 64
    judgements = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert len(judgements) == 12 and judgements[0]["a_first"] == {
        "verdict": "A",
        "answers": ["Some words.\n\n[[A]]\n"],
        "finish_reasons": ["stop"],
        "refusal": None,
    }
    files = {"winrates.csv", "judgements.jsonl", "figure_1.png", "figure_1.svg", "winrate.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == files
    out = capsys.readouterr().out
    assert "4 shared by all models" in out and "20 to send, 0 in the cache" in out and "ppo vs apa" in out


def test_second_time_nothing_is_sent_and_no_key_is_needed(
    tmp_path: Path, sources: list[str], fair: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a line of the cache that was cut off, or is none, costs that answer alone."""
    arguments = (*sources, "--base-url", fair.url, *FAST)
    assert winrate(tmp_path, *arguments) == 0
    first = about(tmp_path)
    with monkeypatch.context() as patched:
        patched.delenv("OPENAI_API_KEY")
        patched.setitem(sys.modules, "openai", None)  # nor the package
        assert winrate(tmp_path, *arguments) == 0
    assert totals(tmp_path) == RIGHT and len(fair.calls) == REQUESTS
    assert about(tmp_path)["usage_of_this_run"]["answers"] == 0
    assert about(tmp_path)["usage_of_all_answers"] == first["usage_of_all_answers"]
    cache = tmp_path / "cache.jsonl"
    of_wrong_type = cache.read_bytes().splitlines()[0].replace(b'"stop"', b"3")
    cache.write_bytes(
        b'[1]\n{"key": "x"}\n' + of_wrong_type + b"\n" + b"".join(cache.read_bytes().splitlines(True)[1:])[:-9]
    )
    for sent in (2, 0):
        assert winrate(tmp_path, *arguments) == 0
        assert about(tmp_path)["usage_of_this_run"]["answers"] == sent


def test_what_changes_an_answer_is_asked_again(tmp_path: Path, sources: list[str], fair: JudgeServer) -> None:
    arguments = (*sources, "--pairs", "sft:apa", "--limit", "1", "--base-url", fair.url, *FAST)
    for more in ((), ("--model", "o3"), ("--max-tokens", "9"), ("--reasoning-model",)):
        assert winrate(tmp_path, *arguments, *more) == 0
        assert about(tmp_path)["usage_of_this_run"]["answers"] == 2
    assert winrate(tmp_path, *arguments, "--timeout", "9", "--concurrency", "1") == 0
    assert len(fair.calls) == 8
    assert fair.calls[-1].body["max_completion_tokens"] == 512 and "temperature" not in fair.calls[-1].body


def test_new_results_take_the_place_of_old_ones_all_at_once(
    tmp_path: Path, sources: list[str], fair: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*sources, "--base-url", fair.url, *FAST)
    assert winrate(tmp_path, *arguments) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analysis.winrate.output.save_win_rates", full)
    with pytest.raises(OSError, match=r"out: .*No space left on device.*free space"):
        winrate(tmp_path, *arguments, "--limit", "1")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_judge_that_always_says_a(tmp_path: Path, sources: list[str], capsys: Any) -> None:
    with judging(lambda _: Say("[[A]]")) as server:
        assert winrate(tmp_path, *sources, "--base-url", server.url, *FAST) == 0
    assert about(tmp_path)["position_bias"]["value"] == 1.0 and about(tmp_path)["agreement"]["value"] == 0.0
    assert "The response shown first was preferred in 100% [" in capsys.readouterr().out
    assert [row[2:] for row in totals(tmp_path)] == [
        ("0", "0", "0", "4", "0", "0.5"),
        ("0", "0", "0", "4", "0", "0.5"),
        ("0", "1", "0", "3", "0", "0.5"),
    ]


def test_answers_without_verdict_are_asked_again_then_left_out(tmp_path: Path, sources: list[str], capsys: Any) -> None:
    """Whatever is asked about sft's response is never answered with a verdict: 1 + 2 tries of 14 requests. The first
    answers to the others end in what looks like one, but were cut off."""

    def script(call: Call) -> Say:
        if "ss" in call.responses:
            return Say("hm")
        return longer(call) if len(call.messages) == 3 else Say("One of\n[[A]]", finish_reason="length")

    with judging(script) as server:
        for _ in range(2):
            assert winrate(tmp_path, *sources, "--base-url", server.url, *FAST) == 0
            # The second and third try of a question differ by their number alone, and are two requests.
            assert sum(server.answered.values()) == 14 * 3 + 6 * 2
    assert [row[2:] for row in totals(tmp_path)] == [("0", "0", "0", "0", "4", "")] * 2 + [RIGHT[2][2:]]
    assert about(tmp_path)["cut_off"] == 6 and "6 answers were cut off at --max-tokens" in capsys.readouterr().out


def test_a_judge_without_any_verdict_is_warned_of(tmp_path: Path, sources: list[str], capsys: Any) -> None:
    """Of a judge with a strange name; ppo and apa have one text in common, a tie."""
    arguments = (*sources, "--model", r"a$\frac$b$", "--parse-retries", "0")
    with judging(lambda _: Say("hm")) as server:
        assert winrate(tmp_path, *arguments, "--base-url", server.url, *FAST) == 2
    error = capsys.readouterr().err
    assert r"warning: no verdict of a$\frac$b$ could be read (11 comparisons); these results say nothing" in error
    assert [line for line in error.splitlines() if line.startswith("judged")][-1] == "judged 20 of 20"


def test_dry_run_sends_and_writes_nothing(tmp_path: Path, sources: list[str], fair: JudgeServer, capsys: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = (*sources, "--base-url", fair.url, "--dry-run")
    assert winrate(tmp_path, *arguments) == 0
    assert fair.calls == [] and sorted(tmp_path.rglob("*")) == before
    output = capsys.readouterr()
    assert "20 to send" in output.out and "BEGIN RESPONSE A" in output.out and "up to about 0.09 USD" in output.out
    assert output.err == "dry run: nothing was sent\n"
    assert winrate(tmp_path, *arguments, "--price-in", "0", "--price-out", "100") == 0
    # 20 x 512 tokens out at 100 USD a million; with two retries each three times as much.
    assert (
        "up to about 1.02 USD; at worst 40 retries of answers without verdict and 3.07 USD" in capsys.readouterr().out
    )


def test_dear_evaluations_are_asked_about(
    tmp_path: Path, sources: list[str], fair: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = (*sources, "--base-url", fair.url, "--price-in", "10000", "--price-out", "0")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    unknown = (*sources, "--base-url", "https://eu.api.OpenAI.com:443/v1/", "--model", "gpt-9")
    for arguments, cost in ((dear, r"up to about \d+\.\d\d USD"), (unknown, "a price unknown")):
        with pytest.raises(WinrateError, match=f"would cost {cost} and nobody can be asked; add --yes"):
            winrate(tmp_path, *arguments)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert winrate(tmp_path, *dear) == 1
    assert fair.calls == [] and not (tmp_path / "out").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert winrate(tmp_path, *dear) == 0
    assert totals(tmp_path) == RIGHT


def test_same_question_is_sent_once_and_no_more_at_a_time_than_asked(tmp_path: Path) -> None:
    """Both seeds of apa gave the same response to the prompt p."""
    seeds = ",".join(str(answers(tmp_path / f"{seed}.jsonl", {"p": "aaa", "q": "a" * seed})) for seed in (5, 6))
    sft = answers(tmp_path / "sft.jsonl", {"p": "s", "q": "s"})
    with judging(lambda call: Say(longer(call).text, delay=0.1)) as server:
        arguments = (f"sft={sft}", f"apa={seeds}", "--base-url", server.url, *FAST, "--concurrency", "3")
        assert winrate(tmp_path, *arguments) == 0
        assert len(server.calls) == 2 + 4 and server.most_at_a_time == 3
    (row,) = pair_rows(tmp_path)
    assert (row["comparisons"], row["prompts"], row["losses"]) == ("4", "2", "4")


def test_missing_key_package_and_bad_options(
    tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch, fair: JudgeServer, capsys: Any
) -> None:
    refused = [(("--base-url", url), "--base-url") for url in ("localhost:1", "http://[::1", "http://")]
    refused += [
        (("--price-in", "3"), "--price-in"),
        (("--judge", "score"), r"--judge score: give chat, scores\[:FIELD"),
    ]
    for arguments, message in refused:
        with pytest.raises(WinrateError, match=message):
            winrate(tmp_path, *sources, *arguments)
    for limit in ("0", "-3", "1.5"):
        with pytest.raises(SystemExit):
            winrate(tmp_path, *sources, "--limit", limit)
        assert f"argument --limit: '{limit}' is not a whole number from 1 on" in capsys.readouterr().err
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(WinrateError, match="OPENAI_API_KEY is not set; export it, or give --base-url"):
        winrate(tmp_path, *sources, "--yes", "--base-url", "https://api.openai.com/v1/")
    assert winrate(tmp_path, *sources, "--base-url", fair.url, *FAST) == 0  # a server of one's own needs none
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(WinrateError, match=r"needs the package openai: pip install 'apa-rlhf\[winrate\]'"):
        winrate(tmp_path, *sources, "--yes", "--model", "other", "--base-url", fair.url)


def test_a_template_of_ones_own(tmp_path: Path, sources: list[str], fair: JudgeServer) -> None:
    template = tmp_path / "t.txt"
    template.write_text("Mine! {prompt}\n{reference}\n{response_a}\n{response_b}\n[[A]] [[B]] [[TIE]]")
    arguments = (*sources, "--limit", "1", "--base-url", fair.url, *FAST, "--template", str(template))
    assert winrate(tmp_path, *arguments) == 0
    assert all(call.messages[0]["content"].startswith("Mine! BEGIN PROMPT") for call in fair.calls)
    assert about(tmp_path)["template"]["file"] == "t.txt"


def test_what_may_go_away_is_tried_again_and_nothing_is_paid_twice(tmp_path: Path, sources: list[str]) -> None:
    """Of each request the first try: too many, an error, or no answer in time. The server asks for a second's wait."""
    ways = (Say("busy", status=429, headers={"Retry-After": "1"}), Say("no", status=503), Say(raw=b"{}", delay=2.0))
    with judging(lambda call: longer(call) if call.number else ways[call.total % 3]) as server:
        start = time.monotonic()
        arguments = (
            *sources,
            "--limit",
            "2",
            "--base-url",
            server.url,
            "--max-retries",
            "3",
            "--timeout",
            "1",
            "--yes",
        )
        assert winrate(tmp_path, *arguments) == 0
        assert time.monotonic() - start >= 1.0
        assert set(server.answered.values()) == {1} and len(server.calls) == 2 * len(server.answered)


def test_an_answer_that_comes_in_drips_meets_the_timeout(
    tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own timeout is for each read; a byte in time must not keep a request alive for ever."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(200):
                    connection.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                return

    threading.Thread(target=drip, daemon=True).start()
    monkeypatch.setattr("analysis.winrate.asking._BETWEEN_TRIES", 0.2)
    arguments = (*sources, "--limit", "1", "--base-url", f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    with listener, pytest.raises(WinrateError, match=r"no answer in 1 tries: none came within --timeout;"):
        winrate(tmp_path, *arguments, "--timeout", "0.3", "--max-retries", "0", "--concurrency", "1")


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (
            Say(f"Incorrect API key provided: {KEY}", status=401),
            r"401.*provided: \*\*\*.*; export another OPENAI_API_KEY",
        ),
        (Say("\x1b[31mnot\u202e \x9ballowed", status=403), "403.*not.*allowed"),
        (Say("no model gpt-4", status=404), "404.*no model gpt-4.*; give another --model or --base-url"),
        (Say("quota", status=429, headers={"X-Code": "insufficient_quota"}), "429.*quota"),
        (Say("no max_tokens here", status=400), "refused every request: .*400.*no max_tokens here"),
        (Say("Unsupported parameter: 'max_tokens'.", status=400), "; add --reasoning-model"),
        (Say("'temperature' does not support 0", status=400), "; add --reasoning-model"),
        (Say("down", status=503), "no answer in 2 tries: .*503.*the same command goes on"),
        (Say(raw=b"<html>", headers={"Content-Type": "text/html"}), "no chat completion: <html>"),
        (Say(raw=b"{"), "no JSON"),
        (Say(raw=b"{}"), "no chat completion"),
    ],
)
def test_hopeless_cases_end_at_once_in_one_line(tmp_path: Path, sources: list[str], say: Say, message: str) -> None:
    with judging(lambda _: say) as server:
        with pytest.raises(WinrateError, match=message) as caught:
            winrate(tmp_path, *sources, "--base-url", server.url, *FAST, "--concurrency", "1")
        assert len(server.calls) <= 4
    assert str(caught.value).isprintable() and KEY not in str(caught.value)


def test_one_refused_request_does_not_end_the_others(tmp_path: Path, sources: list[str]) -> None:
    """Too long a one; others are answered with half a character."""
    raw = json.dumps({"choices": [{"message": {"content": "\ud800 [[A]]\n[[A]]"}, "finish_reason": "stop"}]}).encode()
    with judging(lambda call: Say("too long", status=400) if "ppppp" in call.responses else Say(raw=raw)) as server:
        assert winrate(tmp_path, *sources, "--base-url", server.url, *FAST) == 0
    assert [row["unparsed"] for row in pair_rows(tmp_path)] == ["1", "0", "1"]
    assert about(tmp_path)["refused"] == 4 and about(tmp_path)["usage_of_this_run"]["uncounted"] == 16
    kept = (tmp_path / "out" / "judgements.jsonl").read_text()
    assert "too long" in kept and "? [[A]]" in kept


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
