"""Texts that remember which of their characters spell a control token."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[int, int]
"""First character and the one after the last."""


class MarkedText(str):
    """A text some places of which are control tokens, spelled out; what looks like one elsewhere is plain text."""

    control: tuple[Span, ...]

    def __new__(cls, text: str, control: Iterable[Span] = ()) -> MarkedText:
        made = super().__new__(cls, text)
        made.control = tuple(control)
        return made

    def __getnewargs__(self) -> tuple[str, tuple[Span, ...]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(self), self.control


def control_spans(text: str) -> tuple[Span, ...]:
    return text.control if isinstance(text, MarkedText) else ()


def joined(*texts: str) -> str:
    """Texts one behind the other, each with its control tokens."""
    spans, length = [], 0
    for text in texts:
        spans += [(first + length, end + length) for first, end in control_spans(text)]
        length += len(text)
    whole = "".join(texts)
    return MarkedText(whole, spans) if spans else whole


def part(text: str, first: int, end: int | None = None) -> str:
    """text[first:end] with its control tokens."""
    plain = str(text)[first:end]
    spans = [(a - first, b - first) for a, b in control_spans(text) if a >= first and b - first <= len(plain)]
    return MarkedText(plain, spans) if spans else plain
