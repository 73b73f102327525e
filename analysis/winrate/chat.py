"""`--judge chat`: what it would cost, whether to go on, and the evaluation itself."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.errors import WinrateError
from analysis.winrate.asking import OPENAI_URL, AnswerCache, Asker, JudgeSettings, Refused, Usage
from analysis.winrate.matching import Comparison
from analysis.winrate.output import prepare_folder
from analysis.winrate.prompt import (
    REMINDER,
    Message,
    Reply,
    Request,
    next_request,
    parse_verdict,
    read_template,
    render,
)
from analysis.winrate.results import Asked, Judgement
from rlhf.terminal import console as made_console
from rlhf.terminal import say, tell

DECLINED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells tell it."""
ASK_ABOVE = 1.0
"""US dollars."""
_BYTES_PER_TOKEN = 4
"""Of English text. tiktoken would be exact for OpenAI's models alone, and downloads its vocabulary at first use."""
KNOWN_PRICES = {"gpt-4.1": (2.0, 8.0), "gpt-4.1-mini": (0.4, 1.6), "gpt-4": (30.0, 60.0)}
"""US dollars per million tokens, in and out."""

Price = tuple[float, float]


class Stopped(Exception):
    """The evaluation ends as the user wished; the message is one line, `status` the process's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Estimate:
    """Of the requests still to be sent, each answer counted at --max-tokens: as it will be if every answer has a
    verdict, and at worst, if none has and all parse retries are spent. Failed requests are taken to cost nothing."""

    requests: int
    input_tokens: int
    output_tokens: int
    price: Price | None  # None: unknown
    retries: int  # of answers without verdict, at most, and what they add
    retry_input_tokens: int
    retry_output_tokens: int

    @property
    def dollars(self) -> float | None:
        return None if self.price is None else dollars(self.price, self.input_tokens, self.output_tokens)

    @property
    def worst_dollars(self) -> float | None:
        if self.price is None:
            return None
        more = (self.input_tokens + self.retry_input_tokens, self.output_tokens + self.retry_output_tokens)
        return dollars(self.price, *more)

    @property
    def cost(self) -> str:
        if not self.requests:
            return "nothing to pay"
        if self.dollars is None:
            return "price unknown (--price-in, --price-out)"
        return f"up to about {self.dollars:.2f} USD"

    def describe(self, cached: int) -> str:
        """One line for the user."""
        tokens = f"about {self.input_tokens:,} tokens in, at most {self.output_tokens:,} out"
        said = f"requests: {self.requests:,} to send, {cached:,} in the cache; {tokens}; {self.cost}"
        if not self.retries:
            return said
        more = "" if self.worst_dollars is None else f" and {self.worst_dollars:.2f} USD in all"
        return f"{said}; at worst {self.retries:,} retries of answers without verdict{more}"


def estimate(requests: Sequence[Request], max_tokens: int, price: Price | None, parse_retries: int) -> Estimate:
    """Input tokens by the length of the texts, output tokens by what the judge may write. A retry sends the question
    again, with the last answer and a reminder."""

    def tokens(message: Message) -> int:
        return -(-len(message["content"].encode()) // _BYTES_PER_TOKEN)

    retries = [max(0, parse_retries - request.attempt) for request in requests]
    again = [tokens(request.messages[0]) + max_tokens + tokens({"content": REMINDER}) for request in requests]
    return Estimate(
        requests=len(requests),
        input_tokens=sum(tokens(message) for request in requests for message in request.messages),
        output_tokens=len(requests) * max_tokens,
        price=price,
        retries=sum(retries),
        retry_input_tokens=sum(more * one for more, one in zip(retries, again, strict=True)),
        retry_output_tokens=sum(retries) * max_tokens,
    )


def dollars(price: Price, input_tokens: int, output_tokens: int) -> float:
    return (price[0] * input_tokens + price[1] * output_tokens) / 1e6


def needs_consent(expected: Estimate, *, own_server: bool) -> bool:
    """At worst more than a dollar; a price that nobody knows counts as that at OpenAI, and as nothing elsewhere."""
    if expected.worst_dollars is None:
        return bool(expected.requests) and not own_server
    return expected.worst_dollars > ASK_ABOVE


def judge_by_chat(
    options: argparse.Namespace, comparisons: Sequence[Comparison], folder: Path
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judgements, and what to say of the judge.

    Raises:
        Stopped: by --dry-run, a No to the cost, Ctrl-C or SIGTERM; every answer that came is in the cache.
        WinrateError: the judge cannot be asked.
    """
    settings, price = _settings(options), _price(options)
    template = read_template(options.template)
    cache = AnswerCache(options.cache)
    plan = _Plan(template, settings, cache, options.parse_retries)
    known, missing = plan.follow(comparisons)
    expected = estimate(list(missing.values()), settings.max_tokens, price, options.parse_retries)
    say(f"{expected.describe(len(known))}; judge {settings.model} at {settings.public_url}")
    say(f"cache of paid answers: {cache.path.resolve()}")
    if options.dry_run:
        say("one of the requests:\n\n" + render(template, comparisons[0], swapped=False))
        raise Stopped(0, "dry run: nothing was sent")
    if needs_consent(expected, own_server=not settings.at_openai) and not options.yes:
        _ask_consent(expected)
    client = _client(settings) if expected.requests else None
    prepare_folder(folder)
    with cache:
        judgements, paid = _evaluate(client, plan, comparisons)
    total = Usage()
    for reply in plan.follow(comparisons)[0].values():
        total.add(reply)
    say(f"paid in this run: {_describe_usage(paid, price)}")
    say(f"all answers used: {_describe_usage(total, price)}")
    asked = [asked for judgement in judgements for asked in (judgement.forward, judgement.backward)]
    cut_off = sum(reply.finish_reason == "length" for one in asked for reply in one.replies)
    if cut_off:
        say(f"{cut_off:,} answers were cut off at --max-tokens {settings.max_tokens}; such an answer has no verdict")
    # For winrate.json; nothing here has seen the API key.
    return judgements, {
        "model_requested": settings.model,
        "models_answering": sorted({reply.model for one in asked for reply in one.replies}),
        "base_url": settings.public_url,
        "parameters": settings.parameters | {"parse_retries": options.parse_retries, "timeout": settings.timeout},
        "template": {
            "file": options.template.name,
            "sha256": hashlib.sha256(template.encode()).hexdigest(),
            "text": template,
        },
        "cache": str(options.cache),
        "price_per_million_tokens": price and {"input": price[0], "output": price[1]},
        "usage_of_this_run": _usage_row(paid, price),
        "usage_of_all_answers": _usage_row(total, price),
        "refused": sum(bool(one.refusal) for one in asked),
        "cut_off": cut_off,
    }


@dataclass(frozen=True)
class _Plan:
    """How a judge is asked about comparisons."""

    template: str
    settings: JudgeSettings
    cache: AnswerCache
    parse_retries: int

    def follow(self, comparisons: Sequence[Comparison]) -> tuple[dict[str, Reply], dict[str, Request]]:
        """By key: the answers in the cache that count, and of each conversation the first request that is not there;
        an answer without verdict will add a retry to it."""
        known: dict[str, Reply] = {}
        missing: dict[str, Request] = {}
        orders = [(comparison, swapped) for comparison in comparisons for swapped in (False, True)]
        for comparison, swapped in orders:
            message = "" if comparison.identical else render(self.template, comparison, swapped=swapped)
            replies: list[Reply] = []
            while message and (request := next_request(message, replies, self.parse_retries)) is not None:
                key = self.settings.key(request)
                reply = self.cache.get(key)
                if reply is None:
                    missing[key] = request
                    break
                known[key] = reply
                replies.append(reply)
        return known, missing

    async def judge(self, comparison: Comparison, asker: Asker) -> Judgement:
        """In both orders."""
        if comparison.identical:
            return Judgement(comparison, Asked("TIE"), Asked("TIE"))
        messages = [render(self.template, comparison, swapped=swapped) for swapped in (False, True)]
        return Judgement(comparison, *await asyncio.gather(*(self._ask(message, asker) for message in messages)))

    async def _ask(self, message: str, asker: Asker) -> Asked:
        replies: list[Reply] = []
        try:
            while (request := next_request(message, replies, self.parse_retries)) is not None:
                replies.append(await asker.reply(request))
        except Refused as refusal:
            return Asked(None, tuple(replies), str(refusal))
        return Asked(parse_verdict(replies[-1]), tuple(replies))


def _evaluate(client: Any, plan: _Plan, comparisons: Sequence[Comparison]) -> tuple[list[Judgement], Usage]:
    """All judgements and what was paid for them; Ctrl-C and SIGTERM wait for the answers under way."""
    done = 0

    async def evaluate(advance: Callable[[int], None], note: Callable[[str], None]) -> tuple[list[Judgement], Usage]:
        async def judge(comparison: Comparison) -> Judgement:
            nonlocal done
            judgement = await plan.judge(comparison, asker)
            done += 1
            advance(done)
            return judgement

        async with Asker(plan.settings, client, plan.cache, note) as asker:
            tasks = [asyncio.create_task(judge(comparison)) for comparison in comparisons]
            try:
                return await asyncio.gather(*tasks), asker.usage
            finally:  # of the first that failed, or when all of this is cancelled
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    before = signal.signal(signal.SIGTERM, _like_ctrl_c)
    try:
        with _progress(len(comparisons)) as (advance, note):
            return asyncio.run(evaluate(advance, note))
    except KeyboardInterrupt:
        raise Stopped(
            INTERRUPTED,
            f"interrupted: {done} of {len(comparisons)} comparisons are done and every answer is kept; "
            "the same command goes on from there",
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _like_ctrl_c(number: int, frame: Any) -> None:
    """For SIGTERM, as schedulers send it before they kill."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    if not callable(ctrl_c):  # ignored, as for background jobs of a script
        raise KeyboardInterrupt
    ctrl_c(number, frame)


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on stderr where that is a terminal, else a line at every tenth: functions to say how many are done, and to
    print a line above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = made_console(stderr=True)
    columns = (TextColumn("judged", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("judged", total=total)

        def advance(done: int) -> None:
            progress.update(task, completed=done)
            if not console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
                tell(console, f"judged {done:,} of {total:,}")

        yield advance, lambda line: tell(console, line)


def _ask_consent(expected: Estimate) -> None:
    """Returns if the user says yes."""
    cost = "a price unknown" if expected.worst_dollars is None else f"up to about {expected.worst_dollars:.2f} USD"
    if sys.stdin is None or not sys.stdin.isatty():
        raise WinrateError(f"this would cost {cost} and nobody can be asked; add --yes to go on, or --limit N for less")
    try:
        answer = input(f"Send {expected.requests:,} requests and their retries for {cost}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Stopped(DECLINED, "nothing was sent")


def _settings(options: argparse.Namespace) -> JudgeSettings:
    url = options.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    try:
        parts = urlsplit(url)
        is_web_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # such as half an IPv6 address
        is_web_address = False
    if not is_web_address:
        raise WinrateError(f"--base-url {url}: give a URL such as http://localhost:8000/v1")
    return JudgeSettings(
        model=options.model,
        base_url=url,
        max_tokens=options.max_tokens,
        reasoning=options.reasoning_model,
        timeout=options.timeout,
        concurrency=options.concurrency,
        max_retries=options.max_retries,
    )


def _price(options: argparse.Namespace) -> Price | None:
    if (options.price_in is None) != (options.price_out is None):
        raise WinrateError("--price-in and --price-out go together; give both")
    return KNOWN_PRICES.get(options.model) if options.price_in is None else (options.price_in, options.price_out)


def _client(settings: JudgeSettings) -> Any:
    try:
        import openai
    except ImportError as error:
        raise WinrateError("--judge chat needs the package openai: pip install 'apa-rlhf[winrate]'") from error
    key = os.environ.get("OPENAI_API_KEY")
    if not key and settings.at_openai:
        raise WinrateError("OPENAI_API_KEY is not set; export it, or give --base-url URL of a server of your own")
    options = {"max_retries": settings.max_retries, "timeout": settings.timeout}
    return openai.AsyncOpenAI(api_key=key or "none", base_url=settings.base_url, **options)


def _describe_usage(usage: Usage, price: Price | None) -> str:
    text = f"{usage.answers:,} answers, {usage.prompt_tokens:,} tokens in, {usage.completion_tokens:,} out"
    if usage.uncounted:
        text += f" ({usage.uncounted:,} answers came without counts)"
    if price is not None:
        text += f", {dollars(price, usage.prompt_tokens, usage.completion_tokens):.2f} USD"
    return text


def _usage_row(usage: Usage, price: Price | None) -> dict[str, Any]:
    cost = None if price is None else dollars(price, usage.prompt_tokens, usage.completion_tokens)
    return asdict(usage) | {"usd": cost}
