"""dataset=countdown: reach a number with some others, each used once. Made by code, so that it needs no download.

    2 3 7 make 13 :
     2 * 3 + 7

`dataset.difficulty` is how many numbers there are, each from 1 to 9; targets go from 1 to 99 and are reached with the
numbers in their order. A response may put them in another one, and add, subtract, multiply and divide, with the usual
precedence and parentheses. SFT texts are of mixed quality: some reach the target, the others have signs at random.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import PARTS, Columns, TextData
from rlhf.data.tasks import Task, check_length, made_parts

RIGHT_SHARE = 0.3
"""Of the SFT texts, beside those that are right by chance."""
LARGEST_NUMBER, LARGEST_TARGET = 9, 99
SIGNS = ("+", "-", "*")
LONGEST_EXPRESSION = 200
_EXPRESSION = re.compile(r"[\d +*/()-]*")
_OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def load_countdown(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    """The data set of `config.seed` and `config.difficulty`; the columns `numbers` and `target` have the task."""
    count = config.difficulty
    check_length(config, prompt=count + 3, response=2 * count)

    def draw(random_: random.Random) -> Task:
        while True:
            numbers = [random_.randint(1, LARGEST_NUMBER) for _ in range(count)]
            right = _expression(random_, numbers)
            wrong = _expression(random_, numbers)
            target = _whole(right)
            if target is not None and 1 <= target <= LARGEST_TARGET and _whole(wrong) != target:
                break
        attempt = right if random_.random() < RIGHT_SHARE else _expression(random_, numbers)
        prompt = f"{' '.join(map(str, numbers))} make {target} :"
        return Task(prompt, f" {right}", f" {attempt}", f" {wrong}", {"numbers": numbers, "target": target})

    words = ["make", ":", *SIGNS, *map(str, range(1, LARGEST_TARGET + 1))]
    return TextData(**made_parts(config, parts, draw), verify=verify, words=words)


def _expression(random_: random.Random, numbers: Sequence[int]) -> str:
    """The numbers in their order with random signs between them."""
    first, *others = numbers
    return " ".join([str(first), *(f"{random_.choice(SIGNS)} {number}" for number in others)])


def _whole(expression: str) -> int | None:
    found = evaluated(expression)
    return None if found is None or found[0].denominator != 1 else int(found[0])


def verify(prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[float]:
    """1 where the response uses each number once and reaches the target."""
    rows = zip(responses, columns["numbers"], columns["target"], strict=True)
    return [float(is_right(response, numbers, target)) for response, numbers, target in rows]


def is_right(expression: str, numbers: Sequence[int], target: int) -> bool:
    found = evaluated(expression)
    return found is not None and found[0] == target and sorted(found[1]) == sorted(numbers)


def evaluated(expression: str) -> tuple[Fraction, list[int]] | None:
    """The exact value and the numbers used; None where it is nothing of numbers and the four operations."""
    used: list[int] = []

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        raise ValueError

    if len(expression) > LONGEST_EXPRESSION or not _EXPRESSION.fullmatch(expression):
        return None
    try:
        return value(ast.parse(expression.strip(), mode="eval").body), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
