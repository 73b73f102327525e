"""What came back from a server: a reply, or a failure and what follows from it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from analysis.plain import whole_text
from analysis.winrate.prompt import Reply
from rlhf.errors import printable

_RETRIED_STATUS = frozenset({408, 409, 425, 429})
_FATAL_STATUS = frozenset({401, 402, 403, 404, 405})
_LONGEST_MESSAGE = 200


class NotACompletion(Exception):
    """The server answered 200 with something else, such as a proxy's error page."""


@dataclass(frozen=True)
class Failure:
    """Why there is no reply.

    `retry`: may go away. `fatal`: no request will go through. `refused`: this request will not.
    """

    kind: Literal["retry", "fatal", "refused"]
    message: str  # part of a line
    retry_after: float | None = None  # seconds that the server asks to wait


def reply_of(completion: Any, key: str) -> Reply:
    """The first choice of a chat completion; an empty text where the judge said nothing. The key, should the server
    send it back, is struck out.

    Raises:
        NotACompletion: it is none.
    """
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    content = getattr(message, "content", None)
    if message is None or not isinstance(content, str | None):
        raise NotACompletion(f"the server's answer is no chat completion: {_line(str(completion), key)}")
    usage = getattr(completion, "usage", None)
    texts = (content, getattr(completion, "model", None), getattr(choice, "finish_reason", None))
    content, model, finish_reason = (redacted(whole_text(str(text or "")), key) for text in texts)
    return Reply(
        content=content,
        model=model,
        finish_reason=finish_reason,
        prompt_tokens=_token_count(getattr(usage, "prompt_tokens", None)),
        completion_tokens=_token_count(getattr(usage, "completion_tokens", None)),
    )


def failure_of(error: Exception, key: str) -> Failure | None:
    """What an exception of a request means; None where it is no failure of the server's."""
    import openai

    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Failure("retry", "no answer within --timeout")
    message = _line(str(error), key)
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error, message)
    if isinstance(error, openai.APIConnectionError):
        reason = _line(str(error.__cause__ or ""), key)
        return Failure("retry", f"connection error ({reason})" if reason else "connection error")
    if isinstance(error, json.JSONDecodeError):
        return Failure("retry", "the server's answer is no JSON")
    if isinstance(error, NotACompletion | openai.APIError):
        return Failure("retry", message)
    return None


def redacted(text: str, key: str) -> str:
    """The text without the API key; short stand-ins for keys of local servers are no secrets."""
    return text.replace(key, "***") if len(key) >= 8 else text


def _status_failure(error: Any, message: str) -> Failure:
    status = error.status_code
    if status == 400 and (_refuses(error, "max_tokens") or _refuses(error, "temperature")):
        return Failure("fatal", f"{message}; add --reasoning-model, which sends max_completion_tokens, no temperature")
    out_of_money = error.code == "insufficient_quota"  # a 429 that waiting does not cure
    if status in _FATAL_STATUS or out_of_money:
        return Failure("fatal", message)
    if status >= 500 or status in _RETRIED_STATUS:
        return Failure("retry", message, _retry_after(error.response.headers))
    return Failure("refused", message)


def _refuses(error: Any, parameter: str) -> bool:
    """Whether the server wants a request without this parameter, as newer judges want it without those of older ones.

    Some servers name it in a field, some in the message alone.
    """
    said, field = str(error).lower(), getattr(error, "param", None)
    named = field == parameter if field else f"'{parameter}'" in said
    return named and any(word in said for word in ("unsupported", "not supported", "max_completion_tokens"))


def _retry_after(headers: Any) -> float | None:
    """Seconds, from `retry-after-ms` or from Retry-After in either of its forms (RFC 9110, 10.2.3)."""
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000.0
        text = headers.get("retry-after")
        if text is None:
            return None
        return float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return None


def _token_count(value: Any) -> int | None:
    """The client does not check what a server sends."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _line(text: str, key: str) -> str:
    """One line of bearable length without the key, which is struck out before the line is cut: the cut may fall within
    it."""
    line = printable(redacted(text, key))
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "\N{HORIZONTAL ELLIPSIS}"
