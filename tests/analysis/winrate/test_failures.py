"""What follows from a failure, how long to wait, and what an evaluation costs."""

from __future__ import annotations

import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest

from analysis.winrate.asking import LONGEST_WAIT, Usage, waiting_time
from analysis.winrate.chat import needs_consent
from analysis.winrate.cost import KNOWN_PRICES, Estimate, Price, describe_usage, dollars, estimate
from analysis.winrate.errors import WinrateError
from analysis.winrate.failures import NotACompletion, failure_of, reply_of
from analysis.winrate.prompt import REMINDER, Reply, Request

KEY = "sk-0123456789abcdef"


def status_error(status: int, headers: dict[str, str] | None = None, **body: Any) -> openai.APIStatusError:
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("POST", "http://host"))
    return openai.APIStatusError(f"bad key {KEY}\nsecond line", response=response, body=body)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((status_error(status), "retry") for status in (408, 409, 429, 500, 502, 503, 529)),
        *((status_error(status), "fatal") for status in (401, 402, 403, 404)),
        (status_error(429, code="insufficient_quota"), "fatal"),
        *((status_error(status), "refused") for status in (400, 413, 422)),
        (TimeoutError(), "retry"),
        (openai.APIConnectionError(request=httpx2.Request("POST", "http://host")), "retry"),
    ],
)
def test_which_failures_are_tried_again(error: Exception, kind: str) -> None:
    failure = failure_of(error, KEY)
    assert failure is not None and failure.kind == kind
    assert "\n" not in failure.message and KEY not in failure.message


def test_the_key_is_struck_out_across_the_cut() -> None:
    for width in range(160, 210):
        text = "x" * width + KEY
        lost = openai.APIConnectionError(request=httpx2.Request("POST", "http://host"))
        lost.__cause__ = ValueError(text)
        for error in (lost, NotACompletion(text)):
            failure = failure_of(error, KEY)
            assert failure is not None and "sk-" not in failure.message
        with pytest.raises(NotACompletion) as caught:
            reply_of(text, KEY)
        assert "sk-" not in str(caught.value)


def test_a_reply_holds_no_key_no_half_surrogates_and_no_counts_that_are_none() -> None:
    choice = SimpleNamespace(message=SimpleNamespace(content=f"\ud800{KEY}"), finish_reason=KEY)
    usage = SimpleNamespace(prompt_tokens="1", completion_tokens=True)
    reply = reply_of(SimpleNamespace(choices=[choice], model=f"m-{KEY}", usage=usage), KEY)
    assert reply == Reply("?***", "m-***", "***", None, None)
    choice.message.content = ["no text"]
    with pytest.raises(NotACompletion):
        reply_of(SimpleNamespace(choices=[choice]), KEY)


def test_our_own_errors_are_no_failures_of_the_server() -> None:
    assert failure_of(WinrateError("disk full"), KEY) is None
    assert failure_of(KeyError("bug"), KEY) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    failure = failure_of(status_error(429, headers), KEY)
    assert failure is not None and failure.retry_after == seconds


def test_retry_after_as_a_date() -> None:
    failure = failure_of(status_error(503, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}), KEY)
    assert failure is not None and failure.retry_after == pytest.approx(30, abs=2)


def test_waiting_doubles_with_jitter_and_honours_the_server() -> None:
    assert [waiting_time(tried, 1.0, None, 0.0) for tried in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert waiting_time(2, 1.0, None, 0.5) == 3.0
    assert waiting_time(50, 1.0, None, 1.0) == LONGEST_WAIT
    assert waiting_time(0, 1.0, 20.0, 0.5) == 20.0
    assert waiting_time(5, 1.0, 0.1, 0.0) == 16.0


def test_cost_by_hand() -> None:
    """gpt-4: 30 and 60 USD per million. Two requests of 9 and 400 bytes: 3 + 100 tokens in; 2 x 500 out.
    103 * 30e-6 + 1000 * 60e-6 = 0.06309."""
    requests = [Request(({"role": "user", "content": text},), 0) for text in ("123456789", "x" * 400)]
    expected = estimate(requests, 5, 500, KNOWN_PRICES["gpt-4"])
    assert (expected.requests, expected.cached, expected.input_tokens, expected.output_tokens) == (2, 5, 103, 1000)
    assert expected.dollars == pytest.approx(0.06309)
    assert expected.describe() == (
        "requests: 2 to send, 5 in the cache; about 103 tokens in, at most 1,000 out; up to about 0.06 USD"
    )
    assert dollars(Price(1.0, 2.0), 3_000_000, 500_000) == 4.0


def test_parse_retries_belong_to_the_bound_and_to_the_question() -> None:
    """Two retries of one request, of which another is a first retry already: 3 more answers of 500 tokens. Each asks
    again with 100 tokens, the last answer of 500 and the reminder."""
    message = {"role": "user", "content": "x" * 400}
    reminder = -(-len(REMINDER) // 4)
    expected = estimate([Request((message,), 0), Request((message,), 1)], 0, 500, Price(0.0, 1000.0), parse_retries=2)
    assert (expected.retries, expected.retry_output_tokens) == (3, 1500)
    assert expected.retry_input_tokens == 3 * (100 + 500 + reminder)
    assert (expected.dollars, expected.worst_dollars) == (1.0, 2.5)
    assert expected.describe().endswith("1.00 USD; at worst 3 retries of answers without verdict and 2.50 USD in all")
    assert needs_consent(expected, own_server=False)


def test_unknown_price_is_said_and_asked_about_at_openai_only() -> None:
    unknown = Estimate(1, 0, 10, 10, None)
    assert unknown.dollars is None and unknown.describe().endswith("price unknown (--price-in, --price-out)")
    assert needs_consent(unknown, own_server=False) and not needs_consent(unknown, own_server=True)
    assert Estimate(0, 9, 0, 0, None).dollars == 0.0
    assert not needs_consent(Estimate(0, 9, 0, 0, None), own_server=False)
    dollar = Price(1.0, 1.0)
    assert not needs_consent(Estimate(1, 0, 0, 1_000_000, dollar), own_server=True)
    assert needs_consent(Estimate(1, 0, 1, 1_000_000, dollar), own_server=True)


def test_usage_says_what_it_does_not_know() -> None:
    usage = Usage(answers=3, prompt_tokens=2_000_000, completion_tokens=1_000_000, uncounted=1)
    assert describe_usage(usage, Price(1.0, 0.5)) == (
        "3 answers, 2,000,000 tokens in, 1,000,000 out (1 answers came without counts), 2.50 USD"
    )
