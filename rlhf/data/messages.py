"""Conversations as lists of messages: how data sets write them, and the plain text that a base model reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf.data.examples import MalformedRow
from rlhf.errors import printable

Message = dict[str, Any]
"""{"role": "system", "user" or "assistant", "content": its text}, and whatever else a template reads."""

ANSWER_TURN = "\n\nAssistant:"
_TURNS = {"user": "\n\nHuman:", "assistant": ANSWER_TURN}
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
"""What roles are called where messages are {"from", "value"}, and by some in any form."""


def messages_in(value: Any) -> list[Message] | None:
    """A list of messages, or a single one, in either form; None where `value` is something else.

    Raises:
        MalformedRow: a message whose content is no text.
    """
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, Sequence) or isinstance(items, str | bytes) or not all(map(_is_message, items)):
        return None
    return [_message(item) for item in items]


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys())


def _message(item: Mapping[str, Any]) -> Message:
    """Without what is null: parquet gives every message the keys of all."""
    role, content = ("role", "content") if "role" in item else ("from", "value")
    name = str(item[role]).lower()
    more = {key: value for key, value in item.items() if key not in (role, content) and value is not None}
    return {"role": _ROLES.get(name, name), "content": _text(item[content]), **more}


def _text(content: Any) -> str:
    """Of a message: a text, nothing beside a tool call, or parts {"type": "text", "text"}."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [text for part in parts if isinstance(part, Mapping) and isinstance(text := part.get("text"), str)]
    if len(texts) < len(parts):
        raise MalformedRow("a message has content that is no text")
    return "".join(texts)


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation up to the place of its answer, as in Anthropic's dialogues, a system text first: what models
    without a chat template read. "" where nobody says anything."""
    if not any(message["content"].strip() for message in messages):
        return ""
    turns = []
    for message in messages:
        turn = _TURNS.get(message["role"], f"\n\n{message['role'].capitalize()}:")
        turns.append(message["content"] if message["role"] == "system" else f"{turn} {message['content']}")
    return "".join(turns) + ANSWER_TURN


def before_last_answer(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """(prompt, answer); the answer is "" where the last turn is not the assistant's."""
    if messages and messages[-1]["role"] == "assistant":
        return list(messages[:-1]), messages[-1]["content"]
    return list(messages), ""


def where_they_part(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages two conversations have in common before an answer of each; 0: none.

    Two equal conversations part at their last answer.
    """
    pairs = zip(first, second, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    places = range(min(common, len(first) - 1, len(second) - 1), 0, -1)
    return next((at for at in places if first[at]["role"] == second[at]["role"] == "assistant"), 0)


def has_columns(row: Mapping[str, Any]) -> str:
    """For messages: which columns a row has, each with what it holds."""
    return f"the row has {listed(row, row)}"


def listed(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """Columns of a row, each with what it holds."""
    return ", ".join(f"{printable(str(name))} ({kind_of(row.get(name))})" for name in names) or "no column"


def kind_of(value: Any) -> str:
    if isinstance(value, list) and value and messages_in(value) is not None:
        return "messages"
    kinds = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}
    return "nothing" if value is None else kinds.get(type(value), type(value).__name__)
