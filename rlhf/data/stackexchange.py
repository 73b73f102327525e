"""dataset=stackexchange: questions with ranked answers, from the hub or from local files.

Two forms of a row are read. {question, response_j, response_k} as in lvwerra/stack-exchange-paired is a pair whose
first answer scored higher, in Markdown. {question, answers} is a question as StackExchange has it, in HTML: an answer
is {text, upvotes, accepted}, or {text, pm_score, selected} as in HuggingFaceH4/stack-exchange-preferences, where
`pm_score` is the score already. A title may stand beside the question, or "body" in place of "question" and "text".

A question teaches the pairs (higher, lower) of its answers whose scores differ; where there are more than ten, ten of
them drawn by dataset.seed. HTML becomes Markdown. A prompt is "Question: ...\\n\\nAnswer: ", with its blank.
"""

from __future__ import annotations

import importlib
import math
import random
import re
from collections.abc import Collection
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

from rlhf.config.dataset import DatasetConfig
from rlhf.config.packages import MARKDOWNIFY
from rlhf.data.examples import PARTS, DataError, Demonstration, MalformedRow, Preference, TextData
from rlhf.data.form import Form, load_form, texts

MAX_PAIRS = 10
"""Of one question."""

_TAG = re.compile(
    r"</?(?:p|a|b|i|br|hr|em|h[1-6]|li|ol|ul|dl|dt|dd|pre|code|div|img|kbd|sub|sup|del|span|strong|table|blockquote)"
    r"(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)


_MARGIN = re.compile(r"\A(?:[^\S\n]*\n)*(?: (?=\S))?")


class Answer(NamedTuple):
    html: str
    score: int


def load_stackexchange(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    pairs = partial(preferences, seed=config.seed)
    name = f"stackexchange {config.seed}"
    form = Form(name, pairs, demonstration, max_pairs_per_prompt=MAX_PAIRS)
    return load_form(config, parts, form)


def answer_score(upvotes: int, accepted: bool) -> int:
    """round(log2(1 + upvotes)), and 1 more if the answer was accepted; -1 if upvotes is negative.

    An answer that was voted down scores -1 even if it was accepted: the rule of Askell et al. (2021) gives the whole
    score there, not a part of it.
    """
    return -1 if upvotes < 0 else round(math.log2(1 + upvotes)) + accepted


def preferences(row: Any, seed: int) -> list[Preference]:
    """The pairs of a row in either form, ten at most."""
    if _is_pair(row):
        question, better, worse = texts(row, "question", "response_j", "response_k")
        return [Preference(_prompt(question), _without_margins(better), _without_margins(worse))]
    question, answers = _question(row), _answers(row)
    ranked = sorted(answers, key=lambda answer: -answer.score)
    pairs = [(high, low) for high, low in combinations(ranked, 2) if high.score > low.score]
    if len(pairs) > MAX_PAIRS:
        pairs = random.Random(f"{seed} {question}").sample(pairs, MAX_PAIRS)
    prompt = _prompt(question)
    return [Preference(prompt, to_markdown(high.html), to_markdown(low.html)) for high, low in pairs]


def demonstration(row: Any) -> Demonstration:
    """The better answer of a pair, or a question's best one."""
    if _is_pair(row):
        question, better = texts(row, "question", "response_j")
        return Demonstration(_prompt(question), _without_margins(better))
    answers = _answers(row)
    best = max(answers, key=lambda answer: answer.score).html if answers else ""
    return Demonstration(_prompt(_question(row)), to_markdown(best))


def to_markdown(text: str) -> str:
    """HTML as Markdown; text without a tag as it is."""
    if _TAG.search(text) is None:
        return _without_margins(text)
    if problem := MARKDOWNIFY.missing_for("stackexchange"):
        raise DataError(problem)
    markdownify = importlib.import_module(MARKDOWNIFY.module)  # by name: the package is an optional extra
    return _without_margins(markdownify.markdownify(text, heading_style="ATX"))


def _without_margins(text: str) -> str:
    """`text` without blank lines and a single blank before it, nor blanks behind it; code stays indented."""
    return _MARGIN.sub("", text, count=1).rstrip()


def _prompt(question: str) -> str:
    return f"Question: {question.strip()}\n\nAnswer: " if question.strip() else ""


def _is_pair(row: Any) -> bool:
    return isinstance(row, dict) and row.get("response_j") is not None


def _question(row: Any) -> str:
    """In Markdown, under its title if it has one."""
    (body,) = texts(row, "body" if isinstance(row, dict) and row.get("question") is None else "question")
    if row.get("title") is None:
        return to_markdown(body)
    (title,) = texts(row, "title")
    return f"{title.strip()}\n\n{to_markdown(body)}"


def _answers(row: Any) -> list[Answer]:
    listed = row.get("answers") if isinstance(row, dict) else None
    if not isinstance(listed, list):
        raise MalformedRow("a row must be an object with response_j and response_k, or with a list of answers")
    return [_answer(answer) for answer in listed]


def _answer(row: Any) -> Answer:
    (text,) = texts(row, "body" if isinstance(row, dict) and row.get("text") is None else "text")
    if row.get("pm_score") is not None:
        return Answer(text, _whole(row, "pm_score"))
    accepted = next((row[name] for name in ("accepted", "selected") if row.get(name) is not None), False)
    if accepted not in (True, False):
        raise MalformedRow(f"an answer's accepted must be true or false, not {accepted!r}")
    return Answer(text, answer_score(_whole(row, "upvotes"), bool(accepted)))


def _whole(row: dict[str, Any], name: str) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise MalformedRow(f"an answer must have a whole number of {name}, not {value!r}")
    return int(value)
