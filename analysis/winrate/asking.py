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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.progress import track

from analysis.errors import WinrateError
from analysis.run_files import json_lines, whole_text
from analysis.winrate.prompt import Asked, Reply, messages
from rlhf.errors import reason
from rlhf.files import file_errors
from rlhf.terminal import complain, console
from rlhf.urls import address
from rlhf.waiting import Interrupted, stop_requested, stopped_by_signals

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
GRACE = 15.0
"""Seconds that an ending evaluation waits for answers under way."""
_LOOK = 0.2
"""Seconds between looks at whether the evaluation is to end."""
_BETWEEN_TRIES = 9.0
"""Seconds, at most, that the client waits before it tries again where the server names no time."""
_MOST_REFUSALS = 3
"""With no answer so far."""
_HOPELESS = {
    401: "export another OPENAI_API_KEY",
    402: "the account has no credit",
    403: "export an OPENAI_API_KEY that may use it",
    404: "give another --model or --base-url",
    405: "give another --base-url",
}
"""Status of an answer that every request would get: what to do."""
_COUNT = (int, NoneType)
_REPLY_TYPES = {"content": (str,), "model": (str,), "finish_reason": (str,)}
_REPLY_TYPES |= {"prompt_tokens": _COUNT, "completion_tokens": _COUNT}


@dataclass(frozen=True)
class Judge:
    """Which judge, and how it is asked. Only the first four change what it answers."""

    model: str
    base_url: str  # may hold credentials; `public_url` has none
    max_tokens: int  # of one answer
    reasoning_model: bool  # send max_completion_tokens and no temperature
    timeout: float  # seconds for an answer
    concurrency: int
    max_retries: int  # of a request that failed
    parse_retries: int  # of an answer without verdict

    @property
    def parameters(self) -> dict[str, Any]:
        """What goes with every request beside the messages."""
        if self.reasoning_model:
            return {"max_completion_tokens": self.max_tokens}
        return {"temperature": 0, "max_tokens": self.max_tokens}

    @property
    def public_url(self) -> str:
        return address(self.base_url).rstrip("/")

    @property
    def at_openai(self) -> bool:
        """However the URL is written; OpenAI's regions are names before this one."""
        host = (urlsplit(self.base_url).hostname or "").rstrip(".")
        return f".{host}".endswith(f".{urlsplit(OPENAI_URL).hostname}")

    def key(self, text: str, replies: Sequence[Reply]) -> str:
        """Of the request after these replies: two with one key get one answer. The URL is part of it: `default` is
        another model elsewhere."""
        parts = {"base_url": self.public_url, "model": self.model, "parameters": self.parameters}
        parts |= {"messages": messages(text, replies), "attempt": len(replies)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """Replies by key, one JSON line each, on disk before they are used: a process killed at any moment loses at most
    the line it was writing. Lines that are no replies are passed over: they will be asked for again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, Reply] = {}
        with file_errors(path, "read it"):
            self._cut_off = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
            rows = json_lines(path)[0] if path.exists() else []
        for row in rows:
            if type(row.get("key")) is str and all(
                type(row.get(name)) in kinds for name, kinds in _REPLY_TYPES.items()
            ):
                self.replies[row["key"]] = Reply(**{name: row[name] for name in _REPLY_TYPES})

    def put(self, key: str, reply: Reply) -> None:
        line = "\n" * self._cut_off + json.dumps({"key": key, **asdict(reply)}) + "\n"
        with file_errors(self.path, "write it"), self.path.open("ab") as file:
            self._cut_off = True  # until it is not
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._cut_off = False
        self.replies[key] = reply


def ask(judge: Judge, cache: Cache, questions: Mapping[str, Asked]) -> list[Reply]:
    """Ask until every question is settled; what each is answered goes to its `Asked`. Returns what was paid for.

    Raises:
        WinrateError: the judge cannot be asked, or gave no answer in all tries.
        Interrupted: by Ctrl-C or SIGTERM, after a wait for answers under way; every answer that came is in the cache.
    """
    try:
        import openai
    except ImportError as error:
        raise WinrateError("--judge chat needs the package openai: pip install 'apa-rlhf[winrate]'") from error
    key = os.environ.get("OPENAI_API_KEY")
    if not key and judge.at_openai:
        raise WinrateError("OPENAI_API_KEY is not set; export it, or give --base-url URL of a server of your own")
    limits = {"max_retries": judge.max_retries, "timeout": judge.timeout}
    asking = _Asking(judge, cache, openai.AsyncOpenAI(api_key=key or "none", base_url=judge.base_url, **limits))
    with stopped_by_signals():
        asyncio.run(asking.all(questions))
        if asking.end is not None:
            raise asking.end
        if stop_requested() and asking.done < len(questions):
            raise Interrupted(
                f"interrupted: {asking.done:,} of {len(questions):,} questions are answered and every answer is kept; "
                "the same command goes on from there"
            )
    return asking.paid


@dataclass
class _Asking:
    judge: Judge
    cache: Cache
    client: AsyncOpenAI
    paid: list[Reply] = field(default_factory=list)
    done: int = 0
    refusals: int = 0
    end: Exception | None = None  # what the evaluation cannot go on after

    @property
    def ending(self) -> bool:
        return self.end is not None or stop_requested() is not None

    async def all(self, questions: Mapping[str, Asked]) -> None:
        stderr, total = console(stderr=True), len(questions)
        tracked = track(questions.items(), "judged", total, console=stderr, disable=not stderr.is_terminal)
        queue = iter(tracked)
        workers = [asyncio.create_task(self._work(queue, total)) for _ in range(self.judge.concurrency)]
        pending = set(workers)
        try:
            while pending and not self.ending:
                _, pending = await asyncio.wait(pending, timeout=_LOOK)
            if pending := {worker for worker in pending if not worker.done()}:
                complain(f"waiting up to {GRACE:g} s for answers under way ({len(pending)}); Ctrl-C leaves them")
                await asyncio.wait(pending, timeout=GRACE)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self.client.close()

    async def _work(self, queue: Iterator[tuple[str, Asked]], total: int) -> None:
        """One question after another, until none is left or the evaluation ends."""
        try:
            for text, asked in queue:
                while not asked.settled(self.judge.parse_retries):
                    if self.ending:
                        return
                    await self._ask(text, asked)
                self.done += 1
                if self.done * 10 // total > (self.done - 1) * 10 // total:
                    complain(f"judged {self.done:,} of {total:,}")
        except Exception as error:
            self.end = self.end or error

    async def _ask(self, text: str, asked: Asked) -> None:
        import openai

        judge, sent = self.judge, messages(text, asked.replies)
        try:
            # The client's timeout is for each piece of an answer; one that comes in drips must end too.
            async with asyncio.timeout((judge.max_retries + 1) * (judge.timeout + _BETWEEN_TRIES)):
                completion: Any = await self.client.chat.completions.create(
                    model=judge.model,
                    messages=sent,  # type: ignore[arg-type]
                    **judge.parameters,
                )
            reply = reply_of(completion, self.client.api_key)
        except (openai.OpenAIError, TimeoutError, ValueError) as error:
            asked.refusal = self._refusal(error)
        else:
            self.cache.put(judge.key(text, asked.replies), reply)
            asked.add(reply)
            self.paid.append(reply)

    def _refusal(self, error: Exception) -> str:
        """Why the server will not answer this one request, such as one that is too long; others may go through.

        Raises:
            WinrateError: the evaluation cannot go on.
        """
        said = self._line(error)
        where = f"--model {self.judge.model} at {self.judge.public_url}"
        status = getattr(error, "status_code", 0)
        remedy = _HOPELESS.get(402 if getattr(error, "code", None) == "insufficient_quota" else status)
        if (
            status == 400
            and "support" in str(error)
            and any(name in str(error) for name in ("max_tokens", "temperature"))
        ):
            remedy = "add --reasoning-model, which sends max_completion_tokens, no temperature"
        if remedy:
            raise WinrateError(f"{where}: {said}; {remedy}")
        if not 400 <= status < 500 or status in (408, 409, 429):
            tries = f"no answer in {self.judge.max_retries + 1} tries: {said}"
            raise WinrateError(f"{where}: {tries}; every answer so far is kept, the same command goes on from there")
        self.refusals += 1
        if self.refusals >= _MOST_REFUSALS and not self.paid:
            raise WinrateError(f"{where} refused every request: {said}")
        return said

    def _line(self, error: Exception) -> str:
        """Without the key, which is struck out before the line is cut: the cut may fall within it."""
        import openai

        text = str(error)
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            text = "none came within --timeout"
        elif isinstance(error, json.JSONDecodeError):
            text = "the server's answer is no JSON"
        elif isinstance(error, openai.APIConnectionError) and str(error.__cause__ or ""):
            text = f"connection error ({error.__cause__})"
        return reason(ValueError(redacted(text, self.client.api_key)))


def reply_of(completion: Any, key: str) -> Reply:
    """The first choice of a chat completion; an empty text where the judge said nothing. The client does not check what
    a server sends. The key, should the server send it back, is struck out.

    Raises:
        ValueError: it is none.
    """
    try:
        choice, usage = completion.choices[0], getattr(completion, "usage", None)
        texts = [choice.message.content, getattr(completion, "model", None), getattr(choice, "finish_reason", None)]
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"the server's answer is no chat completion: {completion}") from error
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    struck: list[Any] = [redacted(whole_text(str(text or "")), key) for text in texts]
    return Reply(*struck, *(count if type(count) is int else None for count in counts))


def redacted(text: str, key: str) -> str:
    """The text without the API key; short stand-ins for keys of local servers are no secrets."""
    return text.replace(key, "***") if len(key) >= 8 else text
