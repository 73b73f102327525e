"""The options of `python -m analysis winrate`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from analysis.winrate.cost import KNOWN_PRICES
from analysis.winrate.prompt import DEFAULT_TEMPLATE

DEFAULT_CACHE = Path("cache/winrate/answers.jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option with its default and unit."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="NAME=SOURCE",
        help="two or more; SOURCE is a run folder (its last evaluation; FOLDER@first: the first, of the SFT policy) or "
        "a JSONL file with prompt, response and optionally reference and scores; seeds of one model: "
        "NAME=SOURCE1,SOURCE2, or a pattern, NAME=runs/default/apa-*; runs of one model are of one setting and "
        "meet the other model's by seed",
    )
    parser.add_argument(
        "--include-unfinished",
        action="store_true",
        help="take in runs that failed or have not ended, whose last evaluation is not their result",
    )
    parser.add_argument("--pairs", metavar="A:B,C:D", help="which models to compare (default: all pairs)")
    parser.add_argument("--references", type=Path, metavar="FILE", help="JSONL with prompt and reference")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N shared prompts")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: winrate/<judge>-<models>/ beside the runs"
    )
    parser.add_argument(
        "--judge",
        default="chat",
        metavar="JUDGE",
        help="chat: ask an OpenAI-compatible server (default); scores[:FIELD]: the number stored with each response "
        "(default field: reward); reward_model: score with --reward-path",
    )
    parser.add_argument(
        "--reward-path", metavar="PATH", help="folder or hub name of a reward model (--judge reward_model)"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that the model at --reward-path brings, with your rights (default: refuse it)",
    )
    _add_chat_arguments(parser.add_argument_group("--judge chat"))
    _add_cost_arguments(parser.add_argument_group("cost of --judge chat"))


def _add_chat_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", default="gpt-4.1", help="the judge (default: %(default)s; the paper's was gpt-4)")
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="of a server, such as http://localhost:8000/v1 (default: OPENAI_BASE_URL, OpenAI)",
    )
    group.add_argument("--timeout", type=_positive, default=60.0, metavar="SECONDS", help="per answer (%(default)g)")
    group.add_argument("--max-tokens", type=_count, default=512, metavar="N", help="of an answer (%(default)s)")
    group.add_argument("--concurrency", type=_count, default=4, metavar="N", help="requests at a time (%(default)s)")
    group.add_argument("--max-retries", type=_natural, default=5, metavar="N", help="of a failed request (%(default)s)")
    group.add_argument(
        "--backoff",
        type=_positive,
        default=1.0,
        metavar="SECONDS",
        help="before the first retry; doubles (%(default)g)",
    )
    group.add_argument(
        "--parse-retries", type=_natural, default=2, metavar="N", help="of an answer without verdict (%(default)s)"
    )
    group.add_argument(
        "--reasoning-model",
        action="store_true",
        help="send max_completion_tokens and no temperature, as o- and gpt-5 need",
    )
    group.add_argument(
        "--template", type=Path, default=DEFAULT_TEMPLATE, metavar="FILE", help="the judge's instructions"
    )
    group.add_argument("--cache", type=Path, default=DEFAULT_CACHE, metavar="FILE", help="paid answers (%(default)s)")


def _add_cost_arguments(group: argparse._ArgumentGroup) -> None:
    known = ", ".join(KNOWN_PRICES)
    group.add_argument("--price-in", type=_price, metavar="USD", help=f"per million tokens in (known: {known})")
    group.add_argument("--price-out", type=_price, metavar="USD", help="per million tokens out")
    group.add_argument("--dry-run", action="store_true", help="show the cost and one request; send and write nothing")
    group.add_argument("--yes", action="store_true", help="do not ask before what may cost more than 1 USD")


def _natural(text: str) -> int:
    return _whole(text, least=0)


def _count(text: str) -> int:
    return _whole(text, least=1)


def _whole(text: str, least: int) -> int:
    value = int(text) if text.strip().isdecimal() else -1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return value


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0.0 <= value < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def _positive(text: str) -> float:
    if _price(text) == 0.0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return _price(text)
