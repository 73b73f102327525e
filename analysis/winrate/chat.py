"""`--judge chat`: what it would cost, whether to go on, and the evaluation itself."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from analysis.winrate.asking import OPENAI_URL, Asker, JudgeSettings, Usage
from analysis.winrate.cache import AnswerCache
from analysis.winrate.cost import ASK_ABOVE, KNOWN_PRICES, Estimate, Price, describe_usage, dollars, estimate
from analysis.winrate.errors import Stopped, WinrateError
from analysis.winrate.judgements import Judgement
from analysis.winrate.judging import judge_comparisons, plan_requests
from analysis.winrate.matching import Comparison
from analysis.winrate.output import prepare_folder
from analysis.winrate.prompt import Template, read_template, render
from rlhf.terminal import console as made_console
from rlhf.terminal import say, tell

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DECLINED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells tell it."""


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
    plan = plan_requests(comparisons, template, settings, cache, options.parse_retries)
    missing = list(plan.missing.values())
    expected = estimate(missing, len(plan.known), settings.max_tokens, price, options.parse_retries)
    say(f"{expected.describe()}; judge {settings.model} at {settings.public_url}")
    say(f"cache of paid answers: {cache.path.resolve()}")
    if options.dry_run:
        say("one of the requests:\n\n" + render(template, comparisons[0], swapped=False))
        raise Stopped(0, "dry run: nothing was sent")
    if needs_consent(expected, own_server=not settings.at_openai) and not options.yes:
        _ask_consent(expected)
    client = _client(settings) if expected.requests else None
    prepare_folder(folder)
    with cache:
        judgements, paid = _evaluate(client, settings, template, cache, comparisons, options.parse_retries)
    total = Usage()
    for reply in plan_requests(comparisons, template, settings, cache, options.parse_retries).known.values():
        total.add(reply)
    say(f"paid in this run: {describe_usage(paid, price)}")
    say(f"all answers used: {describe_usage(total, price)}")
    return judgements, _about(settings, template, options, price, paid, total, judgements)


def needs_consent(expected: Estimate, *, own_server: bool) -> bool:
    """At worst more than a dollar; a price that nobody knows counts as that at OpenAI, and as nothing elsewhere."""
    if expected.worst_dollars is None:
        return not own_server
    return expected.worst_dollars > ASK_ABOVE


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
    if not _is_web_address(url):
        raise WinrateError(f"--base-url {url}: give a URL such as http://localhost:8000/v1")
    return JudgeSettings(
        model=options.model,
        base_url=url,
        max_tokens=options.max_tokens,
        reasoning=options.reasoning_model,
        timeout=options.timeout,
        concurrency=options.concurrency,
        max_retries=options.max_retries,
        backoff=options.backoff,
    )


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # such as half an IPv6 address
        return False


def _price(options: argparse.Namespace) -> Price | None:
    given = (options.price_in, options.price_out)
    if None not in given:
        return Price(*given)
    if given != (None, None):
        raise WinrateError("--price-in and --price-out go together; give both")
    return KNOWN_PRICES.get(options.model)


def _client(settings: JudgeSettings) -> AsyncOpenAI:
    try:
        import openai
    except ImportError as error:
        raise WinrateError("--judge chat needs the package openai: pip install 'apa-rlhf[winrate]'") from error
    key = os.environ.get("OPENAI_API_KEY")
    if not key and settings.at_openai:
        raise WinrateError("OPENAI_API_KEY is not set; export it, or give --base-url URL of a server of your own")
    return openai.AsyncOpenAI(
        api_key=key or "none", base_url=settings.base_url, max_retries=0, timeout=settings.timeout
    )


def _evaluate(
    client: AsyncOpenAI | None,
    settings: JudgeSettings,
    template: Template,
    cache: AnswerCache,
    comparisons: Sequence[Comparison],
    retries: int,
) -> tuple[list[Judgement], Usage]:
    """All judgements and what was paid for them; Ctrl-C and SIGTERM wait for the answers under way."""
    done = 0

    async def evaluate(advance: Callable[[], None], note: Callable[[str], None]) -> tuple[list[Judgement], Usage]:
        def judged() -> None:
            nonlocal done
            done += 1
            advance()

        async with Asker(settings, client, cache, note) as asker:
            return await judge_comparisons(comparisons, template, asker, retries, judged), asker.usage

    try:
        with _terminated_like_interrupted(), _progress(len(comparisons)) as (advance, note):
            return asyncio.run(evaluate(advance, note))
    except KeyboardInterrupt:
        raise Stopped(
            INTERRUPTED,
            f"interrupted: {done} of {len(comparisons)} comparisons are done and every answer is kept; "
            "the same command goes on from there",
        ) from None


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, as schedulers send it before they kill, does what Ctrl-C does."""

    def interrupt(_: int, frame: Any) -> None:
        ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(ctrl_c):  # ignored, as for background jobs of a script
            raise KeyboardInterrupt
        ctrl_c(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():  # elsewhere signals cannot be set
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar on stderr where that is a terminal, else a line at every tenth: functions to advance it, and to print a
    line above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = made_console(stderr=True)
    columns = (TextColumn("judged", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("judged", total=total)
        done = 0

        def note(line: str) -> None:
            tell(console, line)

        def advance() -> None:
            nonlocal done
            done += 1
            progress.advance(task)
            if not console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
                note(f"judged {done:,} of {total:,}")

        yield advance, note


def _about(
    settings: JudgeSettings,
    template: Template,
    options: argparse.Namespace,
    price: Price | None,
    paid: Usage,
    total: Usage,
    judgements: Sequence[Judgement],
) -> dict[str, Any]:
    """For winrate.json; nothing here has seen the API key."""
    asked = [asked for judgement in judgements for asked in (judgement.forward, judgement.backward)]
    answered_as = sorted({reply.model for one in asked for reply in one.replies})
    cut_off = sum(reply.finish_reason == "length" for one in asked for reply in one.replies)
    if cut_off:
        say(f"{cut_off:,} answers were cut off at --max-tokens {settings.max_tokens}; such an answer has no verdict")
    return {
        "model_requested": settings.model,
        "models_answering": answered_as,
        "base_url": settings.public_url,
        "parameters": settings.parameters | {"parse_retries": options.parse_retries, "timeout": settings.timeout},
        "template": {"file": template.path.name, "sha256": template.hash, "text": template.text},
        "cache": str(options.cache),
        "price_per_million_tokens": price and asdict(price),
        "usage_of_this_run": _usage_row(paid, price),
        "usage_of_all_answers": _usage_row(total, price),
        "refused": sum(bool(one.refusal) for one in asked),
        "cut_off": cut_off,
    }


def _usage_row(usage: Usage, price: Price | None) -> dict[str, Any]:
    cost = None if price is None else dollars(price, usage.prompt_tokens, usage.completion_tokens)
    return asdict(usage) | {"usd": cost}
