"""Requests to an OpenAI-compatible server: one at a time per key, tried again with back-off, kept as soon as answered.

The client's own retries are off: what follows is the one policy. An answer under way has been paid for, so whatever
ends an evaluation waits a little for those, and they are kept too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from analysis.winrate.cache import AnswerCache
from analysis.winrate.errors import WinrateError
from analysis.winrate.failures import Failure, failure_of, reply_of
from analysis.winrate.prompt import Reply, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"

LONGEST_WAIT = 60.0
"""Seconds between two tries, where the server does not name a time."""
LONGEST_RETRY_AFTER = 300.0
"""Seconds; a server that asks for more ends the evaluation rather than seem to hang it."""
GRACE = 15.0
"""Seconds that an ending evaluation waits for answers under way."""
GOES_ON = "; every answer so far is kept, the same command goes on from there"
_REFUSALS_TO_GIVE_UP = 3
_FAILURES_TO_GIVE_UP = 3
"""Requests that failed in every try, with no answer in between."""
_SECONDS_BETWEEN_NOTES = 5.0


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge, and how it is asked. Only the first four change what it answers."""

    model: str
    base_url: str  # may hold credentials; `public_url` has none
    max_tokens: int  # of one answer
    reasoning: bool  # send max_completion_tokens and no temperature, as reasoning models want it
    timeout: float  # seconds for a whole answer
    concurrency: int
    max_retries: int  # of a request that failed; not of an answer without verdict
    backoff: float  # seconds before the first retry; doubles

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


class GivenUp(Exception):
    """This request failed in every try; others may go through, and the evaluation ends once they are done."""


class Refused(Exception):
    """The server will not answer this one request, such as one that is too long; others may go through."""


@dataclass
class Asker:
    """Gives every request its reply, from the cache or the server. Used as `async with`."""

    settings: JudgeSettings
    client: AsyncOpenAI | None  # None where every answer is in the cache
    cache: AnswerCache
    say: Callable[[str], None]  # notes for the user, one line each
    usage: Usage = field(default_factory=Usage)  # what this process paid for
    _error: WinrateError | None = None
    _refusals: int = 0
    _given_up: int = 0  # requests that failed in every try
    _in_a_row: int = 0  # of those, with no answer since
    _last_failure: str = ""
    _last_note: float = -_SECONDS_BETWEEN_NOTES
    _fetching: dict[str, asyncio.Task[Reply]] = field(default_factory=dict)
    _sending: set[asyncio.Task[Reply]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._key = self.client.api_key if self.client is not None else ""

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _cancelled(self._fetching.values())  # these wait for a slot or a retry; what is being sent goes on
        if self._sending:
            self.say(f"waiting up to {GRACE:g} s for answers under way ({len(self._sending)}); Ctrl-C leaves them")
            await asyncio.wait(self._sending, timeout=GRACE)
        await _cancelled(self._sending)
        if self.client is not None:
            await self.client.close()

    async def reply(self, request: Request) -> Reply:
        """The reply, once it is in the cache; requests with the same key that come meanwhile wait for it.

        Raises:
            Refused: for this request there will be none.
            GivenUp: for this request there is none now; `check_complete` tells.
            WinrateError: the evaluation cannot go on.
        """
        key = self.settings.key(request)
        known = self.cache.get(key)
        if known is not None:
            return known
        if key not in self._fetching:
            self._fetching[key] = asyncio.create_task(self._fetch(key, request))
        return await asyncio.shield(self._fetching[key])

    async def _fetch(self, key: str, request: Request) -> Reply:
        async with self._slots:
            if self._error is not None:
                raise self._error
            for tried in range(self.settings.max_retries + 1):
                sending = asyncio.create_task(self._send(key, request))
                self._sending.add(sending)
                sending.add_done_callback(self._sent)
                try:
                    return await asyncio.shield(sending)
                except Exception as error:
                    failure = failure_of(error, self._key)
                    if failure is None:
                        raise
                self._end_if_hopeless(failure)
                if tried < self.settings.max_retries:
                    await self._wait(failure, tried)
        self._given_up += 1
        self._in_a_row += 1
        self._last_failure = failure.message
        if self._in_a_row >= _FAILURES_TO_GIVE_UP:
            raise self._end(self._what_failed(self._in_a_row))
        raise GivenUp(failure.message)

    def check_complete(self) -> None:
        """Call when every request has been tried.

        Raises:
            WinrateError: some were given up.
        """
        if self._given_up:
            raise self._end(self._what_failed(self._given_up))

    def _what_failed(self, requests: int) -> str:
        who = "one request" if requests == 1 else f"{requests} requests"
        each = "" if requests == 1 else " each"
        return f": {who} failed {self.settings.max_retries + 1} times{each}: {self._last_failure}" + GOES_ON

    def _sent(self, sending: asyncio.Task[Reply]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled():
            sending.exception()  # seen, should nobody be waiting any more

    async def _send(self, key: str, request: Request) -> Reply:
        assert self.client is not None, "there are requests to send"
        # The client's timeout is for each piece of an answer; one that comes in drips must end too.
        async with asyncio.timeout(self.settings.timeout):
            completion: Any = await self.client.chat.completions.create(
                model=self.settings.model,
                messages=list(request.messages),  # type: ignore[arg-type]
                **self.settings.parameters,
            )
        reply = reply_of(completion, self._key)
        self.cache.put(key, reply)
        self.usage.add(reply)
        self._in_a_row = 0
        return reply

    def _end_if_hopeless(self, failure: Failure) -> None:
        if failure.kind == "fatal":
            raise self._end(f": {failure.message}")
        if failure.kind == "refused":
            self._refusals += 1
            if self._refusals >= _REFUSALS_TO_GIVE_UP and self.usage.answers == 0:
                raise self._end(f" refused every request: {failure.message}")
            raise Refused(failure.message)

    def _end(self, why: str) -> WinrateError:
        """The error that ends the evaluation; requests that wait for a slot meet it too and are not sent."""
        self._error = WinrateError(f"--model {self.settings.model} at {self.settings.public_url}{why}")
        return self._error

    async def _wait(self, failure: Failure, tried: int) -> None:
        seconds = waiting_time(tried, self.settings.backoff, failure.retry_after, random.random())
        if seconds > LONGEST_RETRY_AFTER:
            raise self._end(f": the server asks to wait {seconds:.0f} s ({failure.message})" + GOES_ON)
        now = asyncio.get_running_loop().time()
        if now - self._last_note >= _SECONDS_BETWEEN_NOTES:
            self._last_note = now
            self.say(f"judge: {failure.message}; trying again in {seconds:.1f} s (retry {tried + 1})")
        await asyncio.sleep(seconds)


def waiting_time(tried: int, backoff: float, retry_after: float | None, chance: float) -> float:
    """Seconds before the next try: half to all of backoff * 2^tried, by `chance` in [0, 1), so that what failed
    together does not come back together; not before the server's Retry-After."""
    wanted = min(backoff * 2.0**tried, LONGEST_WAIT) * (0.5 + chance / 2.0)
    return max(wanted, retry_after or 0.0)


async def _cancelled(tasks: Iterable[asyncio.Task[Reply]]) -> None:
    """End tasks and wait until they have; what they raise was told before, or follows from the cancelling."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
