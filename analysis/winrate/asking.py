"""Requests to an OpenAI-compatible server: each asked once, and its answer on disk before it is used.

The client of the package openai tries again what may go away (no connection, no answer in time, 408, 409, 429, 5xx),
with back-off, and as the server asks in Retry-After. An answer under way has been paid for, so whatever ends an
evaluation waits a little for those, and they are kept too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from analysis.errors import WinrateError
from analysis.run_files import whole_text
from analysis.winrate.prompt import Reply, Request
from rlhf.errors import printable

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
GRACE = 15.0
"""Seconds that an ending evaluation waits for answers under way."""
GOES_ON = "; every answer so far is kept, the same command goes on from there"
_FATAL_STATUS = frozenset({401, 402, 403, 404, 405})
_MOST_REFUSALS = 3
"""With no answer so far."""
_BETWEEN_TRIES = 9.0
"""Seconds, at most, that the client waits before it tries again where the server names no time."""
_LONGEST_MESSAGE = 200


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge, and how it is asked. Only the first four change what it answers."""

    model: str
    base_url: str  # may hold credentials; `public_url` has none
    max_tokens: int  # of one answer
    reasoning: bool  # send max_completion_tokens and no temperature, as reasoning models want it
    timeout: float  # seconds for an answer
    concurrency: int
    max_retries: int  # of a request that failed; not of an answer without verdict

    @property
    def parameters(self) -> dict[str, Any]:
        """What goes with every request beside the messages."""
        if self.reasoning:
            return {"max_completion_tokens": self.max_tokens}
        return {"temperature": 0, "max_tokens": self.max_tokens}

    @property
    def public_url(self) -> str:
        """The base URL without user name, password and query."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    @property
    def at_openai(self) -> bool:
        """However the URL is written; OpenAI's regions are names before this one."""
        host = (urlsplit(self.base_url).hostname or "").rstrip(".")
        return f".{host}".endswith(f".{urlsplit(OPENAI_URL).hostname}")

    def key(self, request: Request) -> str:
        """Two requests with one key get one answer. The URL is part of it: `default` is another model elsewhere."""
        parts = {"base_url": self.public_url, "model": self.model, "parameters": self.parameters}
        parts |= {"messages": request.messages, "attempt": request.attempt}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Replies by key, one JSON line each. Reading needs no lock; `put` works between `with` and its end.

    A line is on disk before the answer is used: a process killed at any moment loses at most the line it was writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock", timeout=0)
        self._file: IO[bytes] | None = None
        self._replies = _read_replies(path)

    def __enter__(self) -> AnswerCache:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._replies = _read_replies(self.path)  # what came since
            self._file = self.path.open("a+b", buffering=0)
            content_end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(0, content_end - 1))
            if self._file.read(1) not in (b"", b"\n"):
                self._file.write(b"\n")
        except Timeout as error:
            raise WinrateError(f"{self.path} is in use by another evaluation; wait, or give --cache FILE") from error
        except OSError as error:
            raise WinrateError(f"--cache {self.path}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        self._lock.release()

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """On disk when this returns."""
        assert self._file is not None, "the cache is open for reading only"
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        try:
            written = self._file.write(line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WinrateError(f"--cache {self.path}: cannot be written ({error.strerror}); make room") from error
        if written != len(line):
            raise WinrateError(f"--cache {self.path}: a line was cut off; make room on the disk")
        self._replies[key] = reply


def _read_replies(path: Path) -> dict[str, Reply]:
    """Lines that are no replies, such as one cut off by a kill, are passed over: they will be asked for again."""
    replies: dict[str, Reply] = {}
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise WinrateError(f"--cache {path}: cannot be read ({error.strerror})") from error
    for line in lines:
        try:
            row = json.loads(line)
            texts: list[Any] = [whole_text(row[name]) for name in ("content", "model", "finish_reason")]
            counts: list[Any] = [row[name] for name in ("prompt_tokens", "completion_tokens")]
            if isinstance(row["key"], str) and all(count is None or type(count) is int for count in counts):
                replies[row["key"]] = Reply(*texts, *counts)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            continue
    return replies


@dataclass
class Usage:
    """Sums over answers."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # answers of a server that did not say how many tokens they were

    def add(self, reply: Reply) -> None:
        self.answers += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0
        self.uncounted += reply.prompt_tokens is None or reply.completion_tokens is None


class Refused(Exception):
    """The server will not answer this one request, such as one that is too long; others may go through."""


class NotACompletion(Exception):
    """The server answered 200 with something else, such as a proxy's error page."""


@dataclass
class Asker:
    """Gives every request its reply, from the cache or the server. Used as `async with`."""

    settings: JudgeSettings
    client: AsyncOpenAI | None  # None where every answer is in the cache
    cache: AnswerCache
    say: Callable[[str], None]  # notes for the user, one line each
    usage: Usage = field(default_factory=Usage)  # what this process paid for
    _end: WinrateError | None = None
    _refusals: int = 0
    _asking: dict[str, asyncio.Task[Reply]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.settings.concurrency)

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Those that wait for a slot end as soon as they have one."""
        self._end = self._end or WinrateError("ended")
        await asyncio.sleep(0)
        under_way = [task for task in self._asking.values() if not task.done()]
        sent = min(len(under_way), self.settings.concurrency)
        if sent:
            self.say(f"waiting up to {GRACE:g} s for answers under way ({sent}); Ctrl-C leaves them")
            await asyncio.wait(under_way, timeout=GRACE)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        if self.client is not None:
            await self.client.close()

    async def reply(self, request: Request) -> Reply:
        """The reply, once it is in the cache; requests with the same key that come meanwhile wait for it.

        Raises:
            Refused: for this request there will be none.
            WinrateError: the evaluation cannot go on: this request, or another, got no answer in any of its tries.
        """
        key = self.settings.key(request)
        known = self.cache.get(key)
        if known is not None:
            return known
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._ask(key, request))
        return await asyncio.shield(self._asking[key])

    async def _ask(self, key: str, request: Request) -> Reply:
        import openai

        async with self._slots:
            if self._end is not None:
                raise self._end
            try:
                reply = await self._send(request)
            except (openai.OpenAIError, NotACompletion, TimeoutError, json.JSONDecodeError) as error:
                raise self._failure(error) from error
            self.cache.put(key, reply)
        self.usage.add(reply)
        return reply

    async def _send(self, request: Request) -> Reply:
        assert self.client is not None, "there are requests to send"
        # The client's timeout is for each piece of an answer; one that comes in drips must end too.
        async with asyncio.timeout((self.settings.max_retries + 1) * (self.settings.timeout + _BETWEEN_TRIES)):
            completion: Any = await self.client.chat.completions.create(
                model=self.settings.model,
                messages=list(request.messages),  # type: ignore[arg-type]
                **self.settings.parameters,
            )
        return reply_of(completion, self.client.api_key)

    def _failure(self, error: Exception) -> Exception:
        """What follows from an error after all tries: Refused, or the end."""
        import openai

        message = self._message(error)
        if isinstance(error, openai.APIStatusError):
            hint = ""
            if error.status_code == 400 and any(_refuses(error, name) for name in ("max_tokens", "temperature")):
                hint = "; add --reasoning-model, which sends max_completion_tokens, no temperature"
            if hint or error.status_code in _FATAL_STATUS or error.code == "insufficient_quota":
                return self._end_by(f": {message}{hint}")
            if 400 <= error.status_code < 500 and error.status_code not in (408, 409, 429):
                self._refusals += 1
                if self._refusals >= _MOST_REFUSALS and self.usage.answers == 0:
                    return self._end_by(f" refused every request: {message}")
                return Refused(message)
        return self._end_by(f": no answer in {self.settings.max_retries + 1} tries: {message}{GOES_ON}")

    def _message(self, error: Exception) -> str:
        """One line of bearable length without the key, which is struck out before the line is cut: the cut may fall
        within it."""
        import openai

        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return "none came within --timeout"
        text = str(error)
        if isinstance(error, json.JSONDecodeError):
            text = "the server's answer is no JSON"
        elif isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APIResponseValidationError):
            text = f"connection error ({error.__cause__})" if str(error.__cause__ or "") else "connection error"
        line = printable(redacted(text, self.client.api_key if self.client else ""))
        return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "\N{HORIZONTAL ELLIPSIS}"

    def _end_by(self, why: str) -> WinrateError:
        """The error that ends the evaluation; requests that wait for a slot meet it too and are not sent."""
        self._end = WinrateError(f"--model {self.settings.model} at {self.settings.public_url}{why}")
        return self._end


def _refuses(error: Any, parameter: str) -> bool:
    """Whether the server wants a request without this parameter, as newer judges want it without those of older ones.

    Some servers name it in a field, some in the message alone.
    """
    said = str(error).lower()
    named = error.param == parameter if error.param else f"'{parameter}'" in said
    return named and any(word in said for word in ("unsupported", "not supported", "max_completion_tokens"))


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
        raise NotACompletion(f"the server's answer is no chat completion: {completion}")
    usage = getattr(completion, "usage", None)
    texts = (content, getattr(completion, "model", None), getattr(choice, "finish_reason", None))
    content, model, finish_reason = (redacted(whole_text(str(text or "")), key) for text in texts)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    # The client does not check what a server sends.
    return Reply(content, model, finish_reason, *(count if type(count) is int else None for count in counts))


def redacted(text: str, key: str) -> str:
    """The text without the API key; short stand-ins for keys of local servers are no secrets."""
    return text.replace(key, "***") if len(key) >= 8 else text
