"""Comparisons -> judgements, by a judge that answers requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from analysis.winrate.asking import Asker, GivenUp, JudgeSettings, Refused
from analysis.winrate.cache import AnswerCache
from analysis.winrate.judgements import Asked, Judgement
from analysis.winrate.matching import Comparison
from analysis.winrate.prompt import Reply, Request, Template, next_request, parse_verdict, render


@dataclass(frozen=True)
class Plan:
    """What an evaluation has still to send, as far as the cache tells: an answer without verdict adds a retry to it."""

    missing: dict[str, Request] = field(default_factory=dict)  # by key
    known: dict[str, Reply] = field(default_factory=dict)  # answers in the cache that count, by key


def plan_requests(
    comparisons: Sequence[Comparison], template: Template, settings: JudgeSettings, cache: AnswerCache, retries: int
) -> Plan:
    """Follow each conversation up to the first answer that is not in the cache."""
    plan = Plan()
    for comparison in comparisons:
        if comparison.identical:
            continue
        for swapped in (False, True):
            message = render(template, comparison, swapped=swapped)
            replies: list[Reply] = []
            while (request := next_request(message, replies, retries)) is not None:
                key = settings.key(request)
                reply = cache.get(key)
                if reply is None:
                    plan.missing[key] = request
                    break
                plan.known[key] = reply
                replies.append(reply)
    return plan


async def judge_comparisons(
    comparisons: Sequence[Comparison],
    template: Template,
    asker: Asker,
    retries: int,
    judged: Callable[[], None],
) -> list[Judgement]:
    """Every comparison in both orders, in the given order; `judged` is called as each is done.

    Raises:
        WinrateError: the evaluation could not go on, or a request was given up after all others were answered.
    """

    async def judge(comparison: Comparison) -> Judgement | None:
        judgement = await _judge(comparison, template, asker, retries)
        if judgement is not None:
            judged()
        return judgement

    tasks = [asyncio.create_task(judge(comparison)) for comparison in comparisons]
    try:
        judgements = await asyncio.gather(*tasks)
        asker.check_complete()
        return [judgement for judgement in judgements if judgement is not None]
    finally:  # of the first that failed, or when all of this is cancelled
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _judge(comparison: Comparison, template: Template, asker: Asker, retries: int) -> Judgement | None:
    """None where a request was given up."""
    if comparison.identical:
        return Judgement(comparison, Asked("TIE"), Asked("TIE"))
    messages = [render(template, comparison, swapped=swapped) for swapped in (False, True)]
    forward, backward = await asyncio.gather(*(_ask(message, asker, retries) for message in messages))
    return None if forward is None or backward is None else Judgement(comparison, forward, backward)


async def _ask(message: str, asker: Asker, retries: int) -> Asked | None:
    replies: list[Reply] = []
    try:
        while (request := next_request(message, replies, retries)) is not None:
            replies.append(await asker.reply(request))
    except Refused as refusal:
        return Asked(None, tuple(replies), str(refusal))
    except GivenUp:
        return None
    return Asked(parse_verdict(replies[-1]), tuple(replies))
