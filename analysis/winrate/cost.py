"""What an evaluation will cost at most, and whether to ask before it is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.winrate.asking import Usage
from analysis.winrate.prompt import Message, Request

ASK_ABOVE = 1.0
"""US dollars."""
BYTES_PER_TOKEN = 4
"""Of English text. tiktoken would be exact for OpenAI's models alone, and downloads its vocabulary at first use."""


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float


KNOWN_PRICES = {"gpt-4": Price(30.0, 60.0)}


@dataclass(frozen=True)
class Estimate:
    """Of the requests still to be sent. Output is counted at --max-tokens each; retries are not counted."""

    requests: int
    cached: int  # answers that need not be asked for again
    input_tokens: int
    output_tokens: int
    price: Price | None  # None: unknown

    @property
    def dollars(self) -> float | None:
        if self.requests == 0:
            return 0.0
        return None if self.price is None else dollars(self.price, self.input_tokens, self.output_tokens)

    def describe(self) -> str:
        """One line for the user."""
        tokens = f"about {self.input_tokens:,} tokens in, at most {self.output_tokens:,} out"
        cost = (
            "price unknown (--price-in, --price-out)" if self.dollars is None else f"up to about {self.dollars:.2f} USD"
        )
        return f"requests: {self.requests:,} to send, {self.cached:,} in the cache; {tokens}; {cost}"


def estimate(requests: Sequence[Request], cached: int, max_tokens: int, price: Price | None) -> Estimate:
    """Input tokens by the length of the texts, output tokens by what the judge may write."""
    input_tokens = sum(_tokens(message) for request in requests for message in request.messages)
    return Estimate(len(requests), cached, input_tokens, len(requests) * max_tokens, price)


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
