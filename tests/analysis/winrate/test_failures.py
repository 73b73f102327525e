"""What a reply holds, and what an evaluation costs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from analysis.winrate.asking import NotACompletion, reply_of
from analysis.winrate.chat import KNOWN_PRICES, estimate, needs_consent
from analysis.winrate.prompt import REMINDER, Reply, Request

KEY = "sk-0123456789abcdef"


def request(text: str, attempt: int = 0) -> Request:
    return Request(({"role": "user", "content": text},), attempt)


def test_a_reply_holds_no_key_no_half_surrogates_and_no_counts_that_are_none() -> None:
    choice = SimpleNamespace(message=SimpleNamespace(content=f"\ud800{KEY}"), finish_reason=KEY)
    usage = SimpleNamespace(prompt_tokens="1", completion_tokens=True)
    reply = reply_of(SimpleNamespace(choices=[choice], model=f"m-{KEY}", usage=usage), KEY)
    assert reply == Reply("?***", "m-***", "***", None, None)
    choice.message.content = ["no text"]
    with pytest.raises(NotACompletion):
        reply_of(SimpleNamespace(choices=[choice]), KEY)


def test_cost_by_hand() -> None:
    """gpt-4: 30 and 60 USD per million. Two requests of 9 and 400 bytes: 3 + 100 tokens in; 2 x 500 out.
    103 * 30e-6 + 1000 * 60e-6 = 0.06309."""
    expected = estimate([request("123456789"), request("x" * 400)], 500, KNOWN_PRICES["gpt-4"], 0)
    assert (expected.requests, expected.input_tokens, expected.output_tokens) == (2, 103, 1000)
    assert expected.dollars == pytest.approx(0.06309)
    assert expected.describe(5) == (
        "requests: 2 to send, 5 in the cache; about 103 tokens in, at most 1,000 out; up to about 0.06 USD"
    )


def test_parse_retries_belong_to_the_bound_and_to_the_question() -> None:
    """Two retries of one request, of which another is a first retry already: 3 more answers of 500 tokens. Each asks
    again with 100 tokens, the last answer of 500 and the reminder."""
    reminder = -(-len(REMINDER) // 4)
    expected = estimate([request("x" * 400), request("x" * 400, 1)], 500, (0.0, 1000.0), 2)
    assert (expected.retries, expected.retry_output_tokens) == (3, 1500)
    assert expected.retry_input_tokens == 3 * (100 + 500 + reminder)
    assert (expected.dollars, expected.worst_dollars) == (1.0, 2.5)
    assert expected.describe(0).endswith("1.00 USD; at worst 3 retries of answers without verdict and 2.50 USD in all")
    assert needs_consent(expected, own_server=False)


def test_unknown_price_is_said_and_asked_about_at_openai_only() -> None:
    unknown = estimate([request("x")], 10, None, 0)
    assert unknown.dollars is None and unknown.describe(0).endswith("price unknown (--price-in, --price-out)")
    assert needs_consent(unknown, own_server=False) and not needs_consent(unknown, own_server=True)
    assert not needs_consent(estimate([], 10, None, 0), own_server=False)
    # One token in, and a million out for a dollar: a dollar is not asked about, more is.
    assert not needs_consent(estimate([request("x")], 1_000_000, (0.0, 1.0), 0), own_server=True)
    assert needs_consent(estimate([request("x")], 1_000_000, (1.0, 1.0), 0), own_server=True)
