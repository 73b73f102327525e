"""`--judge chat`: what it would cost, whether to go on, and the evaluation itself."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.errors import WinrateError
from analysis.winrate.asking import OPENAI_URL, Cache, Judge, ask
from analysis.winrate.matching import Comparison
from analysis.winrate.output import prepare_folder
from analysis.winrate.prompt import REMINDER, Asked, Reply, read_template, render
from analysis.winrate.results import Judgement
from rlhf.files import file_errors
from rlhf.terminal import say
from rlhf.waiting import locked

ASK_ABOVE = 1.0
"""US dollars."""
KNOWN_PRICES = {"gpt-4.1": (2.0, 8.0), "gpt-4.1-mini": (0.4, 1.6), "gpt-4": (30.0, 60.0)}
"""US dollars per million tokens, in and out."""
_BYTES_PER_TOKEN = 4
"""Of English text. tiktoken would be exact for OpenAI's models alone, and downloads its vocabulary at first use."""

Price = tuple[float, float]


class Stopped(Exception):
    """Nothing is to be judged, as the user wished; the message is one line, `status` the process's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def judge_by_chat(
    options: argparse.Namespace, comparisons: Sequence[Comparison], folder: Path
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judgements, and what to say of the judge.

    Raises:
        Stopped: by --dry-run, or a No to the cost.
        Interrupted: by Ctrl-C or SIGTERM; every answer that came is in the cache.
        WinrateError: the judge cannot be asked.
    """
    judge, price, template = _judge(options), _price(options), read_template(options.template)
    shown = [
        ()
        if comparison.identical
        else tuple(render(template, comparison, swapped=swapped) for swapped in (False, True))
        for comparison in comparisons
    ]
    questions = {text: Asked() for texts in shown for text in texts}
    with contextlib.nullcontext() if options.dry_run else _held(options.cache):
        cache = Cache(options.cache)
        for text, asked in questions.items():
            while not asked.settled(judge.parse_retries):
                reply = cache.replies.get(judge.key(text, asked.replies))
                if reply is None:
                    break
                asked.add(reply)
        waiting = {text: asked for text, asked in questions.items() if not asked.settled(judge.parse_retries)}
        known = sum(len(asked.replies) for asked in questions.values())
        line, worst = expected_cost(judge, price, waiting, known)
        say(f"{line}; judge {judge.model} at {judge.public_url}\ncache of paid answers: {options.cache.resolve()}")
        if options.dry_run:
            say("one of the requests:\n\n" + render(template, comparisons[0], swapped=False))
            raise Stopped(0, "dry run: nothing was sent")
        unknown_at_openai = worst is None and judge.at_openai
        if waiting and not options.yes and (unknown_at_openai or (worst or 0.0) > ASK_ABOVE):
            _ask_consent(len(waiting), "a price unknown" if worst is None else f"up to about {worst:.2f} USD")
        prepare_folder(folder)  # before anything is paid for
        paid = ask(judge, cache, waiting) if waiting else []
    tie = Asked("TIE")
    judgements = [
        Judgement(comparison, *(questions[text] for text in texts) if texts else (tie, tie))
        for comparison, texts in zip(comparisons, shown, strict=True)
    ]
    replies = [reply for asked in questions.values() for reply in asked.replies]
    cut_off = sum(reply.finish_reason == "length" for reply in replies)
    of_run, of_all = _usage(paid, price), _usage(replies, price)
    say(f"paid in this run: {_described(of_run)}\nall answers used: {_described(of_all)}")
    if cut_off:
        say(f"{cut_off:,} answers were cut off at --max-tokens {judge.max_tokens}; such an answer has no verdict")
    # For winrate.json; nothing here has seen the API key.
    sha256 = hashlib.sha256(template.encode()).hexdigest()
    return judgements, {
        "model_requested": judge.model,
        "models_answering": sorted({reply.model for reply in replies}),
        "base_url": judge.public_url,
        "parameters": judge.parameters | {"parse_retries": judge.parse_retries, "timeout": judge.timeout},
        "template": {"file": options.template.name, "sha256": sha256, "text": template},
        "cache": str(options.cache),
        "price_per_million_tokens": price and {"input": price[0], "output": price[1]},
        "usage_of_this_run": of_run,
        "usage_of_all_answers": of_all,
        "refused": sum(bool(asked.refusal) for asked in questions.values()),
        "cut_off": cut_off,
    }


@contextlib.contextmanager
def _held(cache: Path) -> Iterator[None]:
    """One evaluation at a time pays for the answers of a cache; another one waits and finds them there."""
    with file_errors(cache, "write it"):
        cache.parent.mkdir(parents=True, exist_ok=True)
    with locked(Path(f"{cache}.lock"), "asks a judge"):
        yield


def expected_cost(
    judge: Judge, price: Price | None, waiting: Mapping[str, Asked], known: int
) -> tuple[str, float | None]:
    """A line on the requests to be sent, each answer counted at --max-tokens, and what they cost at worst in US
    dollars, if no answer has a verdict and all parse retries are spent; None where the price is unknown.

    Failed requests are taken to cost nothing. A retry sends the question again, with the last answer and a reminder.
    """

    def tokens(text: str) -> int:
        return -(-len(text.encode()) // _BYTES_PER_TOKEN)

    again = judge.max_tokens + tokens(REMINDER)
    sizes = [(tokens(text), len(asked.replies)) for text, asked in waiting.items()]
    tokens_in = sum(size + again * bool(tried) for size, tried in sizes)
    tokens_out = len(waiting) * judge.max_tokens
    retries = sum(judge.parse_retries - tried for _, tried in sizes)
    retries_in = sum((judge.parse_retries - tried) * (size + again) for size, tried in sizes)
    usual = price and dollars(price, tokens_in, tokens_out)
    worst = price and dollars(price, tokens_in + retries_in, tokens_out + retries * judge.max_tokens)
    cost = "price unknown (--price-in, --price-out)" if usual is None else f"up to about {usual:.2f} USD"
    line = f"requests: {len(waiting):,} to send, {known:,} in the cache; "
    line += f"about {tokens_in:,} tokens in, at most {tokens_out:,} out; {cost if waiting else 'nothing to pay'}"
    if retries:
        in_all = "" if worst is None else f" and {worst:.2f} USD in all"
        line += f"; at worst {retries:,} retries of answers without verdict{in_all}"
    return line, worst


def dollars(price: Price, tokens_in: int, tokens_out: int) -> float:
    return (price[0] * tokens_in + price[1] * tokens_out) / 1e6


def _ask_consent(requests: int, cost: str) -> None:
    """Returns if the user says yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise WinrateError(f"this would cost {cost} and nobody can be asked; add --yes to go on, or --limit N for less")
    try:
        answer = input(f"Send {requests:,} requests and their retries for {cost}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Stopped(1, "nothing was sent")


def _judge(options: argparse.Namespace) -> Judge:
    url = options.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    try:
        is_web_address = urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)
    except ValueError:  # such as half an IPv6 address
        is_web_address = False
    if not is_web_address:
        raise WinrateError(f"--base-url {url}: give a URL such as http://localhost:8000/v1")
    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in dataclasses.fields(Judge)}
    given["base_url"] = url
    return Judge(**given)


def _price(options: argparse.Namespace) -> Price | None:
    if (options.price_in is None) != (options.price_out is None):
        raise WinrateError("--price-in and --price-out go together; give both")
    return KNOWN_PRICES.get(options.model) if options.price_in is None else (options.price_in, options.price_out)


def _usage(replies: Sequence[Reply], price: Price | None) -> dict[str, Any]:
    """Sums over answers; `uncounted` are those of a server that did not say how many tokens they were."""
    counts = [(reply.prompt_tokens, reply.completion_tokens) for reply in replies]
    tokens_in, tokens_out = (sum(count[part] or 0 for count in counts) for part in (0, 1))
    usage = {"answers": len(replies), "prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    usage |= {"uncounted": sum(None in count for count in counts)}
    return usage | {"usd": price and dollars(price, tokens_in, tokens_out)}


def _described(usage: Mapping[str, Any]) -> str:
    text = "{answers:,} answers, {prompt_tokens:,} tokens in, {completion_tokens:,} out".format(**usage)
    text += f" ({usage['uncounted']:,} answers came without counts)" if usage["uncounted"] else ""
    return text if usage["usd"] is None else f"{text}, {usage['usd']:.2f} USD"
