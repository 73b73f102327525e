"""reward=http: what is asked, what is tried again and when, and what ends a run in one line."""

from __future__ import annotations

import email.utils
import socket
import time
from types import SimpleNamespace

import pytest

import rlhf.scorers.http as http
from rlhf.scorers.http import HttpScorer, RewardServerError
from tests.scorers.made_up import Server, says, scores_of, serving, stalls

LENGTH = scores_of(lambda prompt, response: len(prompt) + len(response) / 10)
PROMPTS, ANSWERS = ["a", "bb", "ccc"], [" x", "", ' "é\n']


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.02)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def scorer(server: Server, **settings: float) -> HttpScorer:
    values = {"batch_size": 64, "timeout_seconds": 5.0, "retries": 3, **settings}
    return HttpScorer(server.url, **values)  # type: ignore[arg-type]


def test_texts_arrive_as_they_are_in_batches_and_scores_keep_their_order():
    with serving(Server(LENGTH)) as server:
        scores = scorer(server, batch_size=2).score(PROMPTS, ANSWERS)
    assert scores.tolist() == pytest.approx([1.2, 2.0, 3.4]) and str(scores.dtype) == "torch.float32"
    assert server.requests == [
        {"prompts": ["a", "bb"], "responses": [" x", ""]},
        {"prompts": ["ccc"], "responses": [' "é\n']},
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


def test_a_stalled_try_does_not_lose_the_run():
    with serving(Server(LENGTH, [stalls(3.0)])) as server:
        began = time.monotonic()
        assert scorer(server, timeout_seconds=0.3).score(["a"], ["b"]).tolist() == pytest.approx([1.1])
        assert 0.3 <= time.monotonic() - began < 2.0


def test_the_time_is_that_of_the_whole_answer():
    # Some twenty bytes, 0.1 s apart: no single byte is late.
    with serving(Server(LENGTH, drip=0.1)) as server:
        began = time.monotonic()
        with pytest.raises(RewardServerError, match=r"in 1 tries, at last: no whole answer within 0.5 seconds"):
            scorer(server, timeout_seconds=0.5, retries=0).score(["a"], ["b"])
        assert time.monotonic() - began < 1.2


def test_waits_double_up_to_a_limit_and_retry_after_is_honoured(monkeypatch):
    waits = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(http, "time", clock)  # the server keeps its own
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
