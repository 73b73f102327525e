"""What an evaluation will cost at most, and whether to ask before it is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.winrate.asking import Usage
from analysis.winrate.prompt import REMINDER, Message, Request

ASK_ABOVE = 1.0
"""US dollars."""
BYTES_PER_TOKEN = 4
"""Of English text. tiktoken would be exact for OpenAI's models alone, and downloads its vocabulary at first use."""


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float


KNOWN_PRICES = {"gpt-4.1": Price(2.0, 8.0), "gpt-4.1-mini": Price(0.4, 1.6), "gpt-4": Price(30.0, 60.0)}


@dataclass(frozen=True)
class Estimate:
    """Of the requests still to be sent, each answer counted at --max-tokens: as it will be if every answer has a
    verdict, and at worst, if none has and all parse retries are spent. Failed requests are taken to cost nothing."""

    requests: int
    cached: int  # answers that need not be asked for again
    input_tokens: int
    output_tokens: int
    price: Price | None  # None: unknown
    retries: int = 0
    """Parse retries, at most, and what they add."""
    retry_input_tokens: int = 0
    retry_output_tokens: int = 0

    @property
    def dollars(self) -> float | None:
        return self._dollars(self.input_tokens, self.output_tokens)

    @property
    def worst_dollars(self) -> float | None:
        return self._dollars(self.input_tokens + self.retry_input_tokens, self.output_tokens + self.retry_output_tokens)

    def _dollars(self, input_tokens: int, output_tokens: int) -> float | None:
        if self.requests == 0:
            return 0.0
        return None if self.price is None else dollars(self.price, input_tokens, output_tokens)

    def describe(self) -> str:
        """One line for the user."""
        tokens = f"about {self.input_tokens:,} tokens in, at most {self.output_tokens:,} out"
        said = f"requests: {self.requests:,} to send, {self.cached:,} in the cache; {tokens}; {self._cost()}"
        if not self.retries:
            return said
        more = "" if self.worst_dollars is None else f" and {self.worst_dollars:.2f} USD in all"
        return f"{said}; at worst {self.retries:,} retries of answers without verdict{more}"

    def _cost(self) -> str:
        if self.dollars is None:
            return "price unknown (--price-in, --price-out)"
        return f"up to about {self.dollars:.2f} USD"


def estimate(
    requests: Sequence[Request], cached: int, max_tokens: int, price: Price | None, parse_retries: int = 0
) -> Estimate:
    """Input tokens by the length of the texts, output tokens by what the judge may write. A retry sends the question
    again, with the last answer and a reminder."""
    tokens = [sum(_tokens(message) for message in request.messages) for request in requests]
    retries = [max(0, parse_retries - request.attempt) for request in requests]
    again = [_tokens(request.messages[0]) + max_tokens + _tokens({"content": REMINDER}) for request in requests]
    return Estimate(
        requests=len(requests),
        cached=cached,
        input_tokens=sum(tokens),
        output_tokens=len(requests) * max_tokens,
        price=price,
        retries=sum(retries),
        retry_input_tokens=sum(more * one for more, one in zip(retries, again, strict=True)),
        retry_output_tokens=sum(retries) * max_tokens,
    )


def dollars(price: Price, input_tokens: int, output_tokens: int) -> float:
    return (price.input * input_tokens + price.output * output_tokens) / 1e6


def describe_usage(usage: Usage, price: Price | None) -> str:
    """What answers took, as a part of a line."""
    text = f"{usage.answers:,} answers, {usage.prompt_tokens:,} tokens in, {usage.completion_tokens:,} out"
    if usage.uncounted:
        text += f" ({usage.uncounted:,} answers came without counts)"
    if price is not None:
        text += f", {dollars(price, usage.prompt_tokens, usage.completion_tokens):.2f} USD"
    return text


def _tokens(message: Message) -> int:
    return -(-len(message["content"].encode()) // BYTES_PER_TOKEN)
