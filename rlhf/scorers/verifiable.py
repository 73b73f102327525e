"""reward=verifiable: 1 for a right response, 0 for a wrong one.

A data set of tasks says itself what is right (`TextData.verify`). Elsewhere the response's final answer is compared
with the column `reward.answer`. Final is what stands in the last \\boxed{}, else behind the last "####" or "answer is"
(or "answer:"), else the last number, or the last single letter where the right answer is one.

`reward.compare=math_verify`: that package reads and compares both, as 1/2 and 0.5 or two forms of an expression.
`plain`: equal numbers ("1,000", "$1000" and "1000.0" are), else equal texts but for case and blanks.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.config.packages import MATH_VERIFY
from rlhf.data.examples import NO_COLUMNS, Columns, DataError, TextData, Verifier, columns_of
from rlhf.distributed import rank
from rlhf.errors import one_line
from rlhf.terminal import say
from rlhf.waiting import LateError, within

MATH_SECONDS = 5.0
"""Longest comparison by math-verify."""
CHOICE = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_BOXED = re.compile(r"\\boxed\s*\{")
_SAID = re.compile(r"(?:####|\banswer(?:\s+is|\s*:)(?:\s*:)?)\s*([^\n]*)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?%?")
_LETTER = re.compile(r"(?<![A-Za-z0-9'])\(?([A-Z])\)?(?![A-Za-z0-9'])")


@dataclass(frozen=True)
class VerifyingScorer:
    verify: Verifier

    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        """(B,) float32 on the CPU, 0 or 1 each; DataError: a row has no right answer to compare with."""
        return torch.tensor(self.verify(prompts, answers, columns), dtype=torch.float32)


def compared(prompts: Sequence[str], answers: Sequence[str], columns: Columns, *, column: str, how: str) -> list[float]:
    """1 where a response's final answer is that of the column, else 0."""
    rights = columns.get(column)
    scores = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        right = None if rights is None else rights[i]
        if right is None or not str(right).strip():
            row = (
                f"the row of the prompt {str(prompt)[:60]!r} has nothing there" if rights else "there is no such column"
            )
            raise DataError(f"reward.answer={column}: {row}; the data has {', '.join(columns) or 'no columns'}")
        right = str(right).strip()
        if how == "math_verify" and not CHOICE.fullmatch(right):
            scores.append(float(_same_mathematics(right, str(answer))))
        else:
            scores.append(float(same_plainly(right, str(answer))))
    return scores


def same_plainly(right: str, answer: str) -> bool:
    """Whether the final answer in `answer` is `right`: equal numbers, the same letter of a choice, or the same text."""
    letter = CHOICE.fullmatch(right)
    final = final_answer(answer, choice=letter is not None)
    if letter is not None:
        said = CHOICE.match(final.strip())
        return said is not None and said.group(1).upper() == letter.group(1).upper()
    wanted = final_answer(right) if _BOXED.search(right) or "####" in right else right
    numbers = _number(wanted), _number(final)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return "".join(wanted.lower().split()) == "".join(final.lower().split())


def final_answer(text: str, choice: bool = False) -> str:
    """What the text says at last; all of it where nothing marks an answer."""
    if (boxed := _last_boxed(text)) is not None:
        return boxed
    said = _SAID.findall(text)
    if said and said[-1].strip():
        part = said[-1].strip().rstrip(".")
        return part if choice else next(iter(_NUMBER.findall(part)), part)
    if choice:
        if CHOICE.fullmatch(text.strip()):
            return text.strip()
        return next(reversed(_LETTER.findall(text)), "")
    return next(reversed(_NUMBER.findall(text)), text.strip())


def _last_boxed(text: str) -> str | None:
    found = list(_BOXED.finditer(text))
    if not found:
        return None
    start, depth = found[-1].end(), 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]


def _number(text: str) -> Fraction | None:
    bare = re.sub(r"[\s,$]", "", text)
    percent = bare.endswith("%")
    try:
        value = Fraction(bare.rstrip("%").rstrip("."))
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value


def _same_mathematics(right: str, answer: str) -> bool:
    """By math-verify, whose reading of a model's text may raise anything, or take for ever: that is a wrong answer."""
    math_verify = importlib.import_module(MATH_VERIFY.module)  # by name: the package is an optional extra

    right = right if "\\" in right or "$" in right else f"${right}$"
    try:
        with within(MATH_SECONDS):
            # Its own time-outs are signals too and would take the place of this one.
            wanted, said = (math_verify.parse(text, parsing_timeout=None) for text in (right, answer))
            return bool(math_verify.verify(wanted, said, timeout_seconds=None))
    except (Exception, LateError) as error:
        if rank() == 0:
            say(f"reward.compare=math_verify: a response counts as wrong ({one_line(error)})")
        return False


CHECKED_ROWS = 2_000
"""Prompts whose right answers are looked at before anything is trained: a moment's reading."""


def check_answers(config: RunConfig, data: TextData) -> None:
    """
    Raises:
        DataError: the data's prompts have no right answers in the column reward.answer.
    """
    if data.verify is None:
        prompts = data.prompts[:CHECKED_ROWS]
        texts, columns = [example.prompt for example in prompts], columns_of(prompts)
        compared(texts, [""] * len(texts), columns, column=config.reward.answer, how="plain")


def load_verifiable(config: RunConfig, _trained: Path | None, _device: torch.device, data: TextData) -> VerifyingScorer:
    reward = config.reward
    if data.verify is not None:
        return VerifyingScorer(data.verify)
    if reward.compare == "math_verify" and (problem := MATH_VERIFY.missing_for("math_verify")):
        raise DataError(problem)
    if rank() == 0:
        by = {"math_verify": "the package math-verify", "plain": "plainly (math-verify is not installed or not wanted)"}
        say(f"reward: final answers are compared with the column {reward.answer} by {by[reward.compare]}")
    return VerifyingScorer(partial(compared, column=reward.answer, how=reward.compare))
