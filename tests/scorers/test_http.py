"""reward=http: what is asked, what is tried again and when, and what ends a run in one line."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import socket
import threading
import time
from typing import Any

import pytest
import torch

import rlhf.scorers.http as http
from rlhf.config import RewardConfig
from rlhf.config.build import ConfigError
from rlhf.data.examples import TextData
from rlhf.scorers.http import HttpScorer, RewardServerError
from rlhf.stages.online import EarlyScores
from rlhf.waiting import StoppedWaiting, request_stop, stopped_by_signals
from tests.config.composed import config
from tests.scorers.made_up import Server, says, scores_of, serving

LENGTH = scores_of(lambda prompt, response: len(prompt) + len(response) / 10)
PROMPTS, ANSWERS = ["a", "bb", "ccc"], [" x", "", ' "é\n']


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.02)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def scorer(server: Server, **settings: Any) -> HttpScorer:
    values: dict[str, Any] = {"batch_size": 64, "timeout_seconds": 5.0, "retries": 3, **settings}
    return HttpScorer(server.url, **values)


def test_texts_arrive_as_they_are_in_batches_and_scores_keep_their_order():
    with serving(Server(LENGTH)) as server:
        scores = scorer(server, batch_size=2).score(PROMPTS, ANSWERS)
    assert scores.tolist() == pytest.approx([1.2, 2.0, 3.4]) and str(scores.dtype) == "torch.float32"
    assert server.requests == [
        {"prompts": ["a", "bb"], "responses": [" x", ""]},
        {"prompts": ["ccc"], "responses": [' "é\n']},
    ]


def test_columns_go_with_their_rows():
    columns = {"answer": ["1", "2", "3"], "meta": [{"level": 1}, None, datetime.date(2026, 1, 2)]}
    with serving(Server(LENGTH)) as server:
        scorer(server, batch_size=2).score(PROMPTS, ANSWERS, columns)
    assert [request["columns"] for request in server.requests] == [
        {"answer": ["1", "2"], "meta": [{"level": 1}, None]},
        {"answer": ["3"], "meta": ["2026-01-02"]},
    ]


@pytest.mark.parametrize(
    "mishap",
    [says("", 500), says("down", 502), says("", 503), says("", 429), says("", 408), says("<html>"), says(b"\xff{")],
    ids=["500", "502", "503", "429", "408", "no JSON", "no text"],
)
def test_a_mishap_is_tried_again(mishap):
    with serving(Server(LENGTH, [mishap, mishap])) as server:
        assert scorer(server).score(PROMPTS, ANSWERS).tolist() == pytest.approx([1.2, 2.0, 3.4])
    assert len(server.requests) == 3 and server.requests[0] == server.requests[2]


def test_the_time_is_that_of_the_whole_answer():
    # Some twenty bytes, 0.1 s apart: no single byte is late.
    with serving(Server(LENGTH, drip=0.1)) as server:
        began = time.monotonic()
        with pytest.raises(RewardServerError, match=r"in 1 tries, at last: no whole answer within 0.5 seconds"):
            scorer(server, timeout_seconds=0.5, retries=0).score(["a"], ["b"])
        assert time.monotonic() - began < 1.2


def test_waits_double_up_to_a_limit_and_retry_after_is_honoured(monkeypatch):
    waits = []
    monkeypatch.setattr(http, "pause", lambda seconds, _: waits.append(seconds))
    monkeypatch.setattr(http, "FIRST_WAIT", 1.0)
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    script = [
        says("", 500, Retry_After="70"),  # asked for by 429 and 503 alone
        says("", 503, Retry_After="70"),
        says("", 429, Retry_After="0"),
        says("", 429, Retry_After="soon"),
        says("", 503, Retry_After=date),
        says("", 429, Retry_After="99999"),
        *[says("", 503)] * 2,
    ]
    with serving(Server(LENGTH, script)) as server:
        scorer(server, retries=8).score(["a"], ["b"])
    assert waits[:4] == [1.0, 70.0, 4.0, 8.0]
    assert 90 < waits[4] <= 100
    assert waits[5:] == [600.0, 60.0, 60.0]


@pytest.mark.parametrize("early", [False, True])
def test_a_run_that_is_asked_to_stop_waits_no_longer(early):
    with serving(Server(says("", 503, Retry_After="60"))) as server, stopped_by_signals():
        threading.Timer(0.2, request_stop, ["SIGTERM"]).start()
        began = time.monotonic()
        with pytest.raises(StoppedWaiting, match="SIGTERM"):
            if early:
                scores = EarlyScores(scorer(server), torch.device("cpu"))
                scores.ask(torch.tensor([0]), ["a"], ["b"])
                scores.take()
            else:
                scorer(server).score(["a"], ["b"])
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (says("", 404), r"answered with status 404 .*; is it a server"),
        (says('{"scores": [1, 2]}'), r"gave 2 scores for 3 responses$"),
        (says('{"scores": [1, 2, NaN]}'), r"no finite number \('NaN', response 3 of 3\)$"),
        (says('{"scores": [1, -Infinity, 2]}'), r"no finite number \('-Infinity', response 2 of 3\)$"),
        (says('{"scores": [1e39, 1, 2]}'), r"no finite number \('1e\+39', response 1 of 3\)$"),  # not in float32
        (says('{"scores": [1, null, 2]}'), r"no finite number \('null', response 2 of 3\)$"),
        (says('{"scores": [1, true, 2]}'), r"no finite number \('true'"),
        (says('{"scores": [1, "2", 2]}'), r"no finite number \('\"2\"'"),
        (says('{"score": 1}'), r'answered without \{"scores": \[...\]\} \(\'\{"score": 1\}\'\)$'),
        (says("[1, 2, 3]"), r"answered without"),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_line_at_once(reply, message):
    with serving(Server(reply)) as server:
        with pytest.raises(RewardServerError, match=message) as error:
            scorer(server).score(PROMPTS, ANSWERS)
        assert str(error.value).startswith(f"reward.url: {server.url} ") and "\n" not in str(error.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "last"),
    [
        (says("busy", 503), "status 503 Service Unavailable"),
        (says("<html>\nsorry</html>"), "an answer that is no JSON ('<html> sorry</html>')"),
    ],
)
def test_a_server_that_stays_down_is_one_line(reply, last):
    with serving(Server(reply)) as server, pytest.raises(RewardServerError) as error:
        scorer(server).score(PROMPTS, ANSWERS)
    tries = f"reward.url: {server.url} gave no scores in 4 tries, at last: {last}; "
    assert str(error.value).startswith(tries) and "\n" not in str(error.value)
    assert len(server.requests) == 4


def test_nobody_there_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server(LENGTH)
        server.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            RewardServerError, match=r"gave no scores in 3 tries, at last: no connection, or it broke; "
        ):
            scorer(server, retries=2).score(["a"], ["b"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_stands_before_this_machine(monkeypatch, host):
    """As on clusters, which set http_proxy for everything; this one would not answer."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(Server(LENGTH)) as server:
        server.url = server.url.replace("127.0.0.1", host)
        assert scorer(server, retries=0).score(["a"], ["b"]).tolist() == pytest.approx([1.1])


def test_a_proxy_that_stands_between_is_said_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:canary@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = Server(LENGTH)
    server.url = "http://reward.example/score"
    with pytest.raises(RewardServerError) as error:
        scorer(server, retries=0).score(["a"], ["b"])
    text = str(error.value)
    assert "through the proxy 127.0.0.1:9" in text and "no_proxy=reward.example" in text
    assert "canary" not in text and "\n" not in text


@pytest.mark.parametrize("reply", [says("\x1b[31mred\x07\x1b]0;title\x07", 404), says("\x1b[2J{", 200)])
def test_what_a_server_says_is_no_command_to_the_terminal(reply):
    with serving(Server(reply)) as server, pytest.raises(RewardServerError) as error:
        scorer(server, retries=0).score(["a"], ["b"])
    assert str(error.value).isprintable()


TOKEN = "canary-0123456789-abcdef"


def test_a_token_that_a_server_says_back_is_struck_out_across_the_cut():
    for width in range(50, 90, 3):
        with serving(Server(says("x" * width + TOKEN, 200))) as server, pytest.raises(RewardServerError) as error:
            scorer(server, retries=0, token=TOKEN).score(["a"], ["b"])
        assert "canary" not in str(error.value)


def test_a_token_is_sent_and_missed(monkeypatch):
    monkeypatch.setenv("NETRC", "/dev/null")
    with serving(Server(LENGTH)) as server:
        scorer(server, token=TOKEN).score(["a"], ["b"])
        scorer(server).score(["a"], ["b"])
    assert [headers.get("Authorization") for headers in server.headers] == [f"Bearer {TOKEN}", None]
    with serving(Server(says("", 401))) as server, pytest.raises(RewardServerError, match=r"reward.token_env="):
        scorer(server, retries=0).score(["a"], ["b"])


def test_headers_come_from_the_environment_and_are_struck_out(monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {TOKEN}\n")
    reward = config("reward=http", "reward.url=http://localhost/score", "reward.headers_env=[X-Api-Key=MY_KEY]").reward
    with serving(Server(says(f"no {TOKEN}", 200))) as server:
        asking = dataclasses.replace(load_http_of(reward), url=server.url, retries=0)
        with pytest.raises(RewardServerError) as error:
            asking.score(["a"], ["b"])
        assert server.headers[0]["X-Api-Key"] == TOKEN
    assert "canary" not in str(error.value) + repr(asking)
    monkeypatch.setenv("MY_KEY", "")
    with pytest.raises(RewardServerError, match=r"^reward\.headers_env: X-Api-Key=MY_KEY: .*export MY_KEY="):
        load_http_of(reward)


def load_http_of(reward: RewardConfig) -> HttpScorer:
    run = dataclasses.replace(config("reward=http", "reward.url=http://localhost/score"), reward=reward)
    return http.load_http(run, None, torch.device("cpu"), TextData())


def test_a_value_in_the_place_of_a_variable_is_refused_and_not_shown():
    for entry in (f"X-Api-Key={TOKEN}", "X-Api-Key", "X Api=KEY", "=KEY"):
        with pytest.raises(ConfigError) as error:
            config("reward=http", "reward.url=http://localhost/score", f"reward.headers_env=['{entry}']")
        assert "canary" not in str(error.value) and str(error.value).startswith("reward.headers_env: ")
