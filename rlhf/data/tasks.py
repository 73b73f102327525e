"""Tasks that code makes and checks: what `sums`, `countdown` and `reasoning_gym` share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import PARTS, DataError, Demonstration, Preference

HELD_OUT = ("test_sft", "test_pairs", "eval_prompts")
ONE_IN = 5
"""Of so many prompts one is held out, by its hash: which one depends on nothing but itself and dataset.seed."""
MOST_PROMPTS = 10_000
"""RL prompts where dataset.num_prompts is null; the data itself may have no end."""
MOST_MISSES = 2_000
"""Draws that gave no new prompt after which there are no more."""
NUM_TEST_SFT = 400


@dataclass(frozen=True)
class Task:
    prompt: str
    answer: str
    """A right response, its leading blank included."""
    attempt: str
    """What an SFT text says: at times right, at times wrong."""
    wrong: str
    """A wrong response, for pairs."""
    columns: dict[str, Any]


def made_parts(config: DatasetConfig, parts: Collection[str], draw: Callable[[random.Random], Task]) -> dict[str, Any]:
    """The wanted parts of a `TextData`, each with random numbers of its own; no RL prompt comes twice.

    Raises:
        DataError: there are not so many prompts.
    """
    made: dict[str, Any] = {}
    for part in parts:
        option = PARTS[part]
        count = NUM_TEST_SFT if option is None else getattr(config, option)
        tasks = _tasks(config, part, draw)
        if part in ("prompts", "eval_prompts"):
            made[part] = [
                Demonstration(task.prompt, task.answer, task.columns) for task in _distinct(tasks, config, part)
            ]
            continue
        some = [next(tasks) for _ in range(MOST_PROMPTS if count is None else count)]
        if part in ("pairs", "test_pairs"):
            made[part] = [Preference(task.prompt, task.answer, task.wrong, task.columns) for task in some]
        else:
            made[part] = [Demonstration(task.prompt, task.attempt, task.columns) for task in some]
    return made


def _tasks(config: DatasetConfig, part: str, draw: Callable[[random.Random], Task]) -> Iterator[Task]:
    """Without end, on the part's side of the split; those of `prompts` and `eval_prompts` may come twice."""
    random_ = random.Random(f"{config.seed} {config.name} {part}")
    misses = 0
    while misses < MOST_MISSES:
        task = draw(random_)
        digest = hashlib.sha256(f"{config.seed} {task.prompt}".encode()).digest()
        if (int.from_bytes(digest[:4], "big") % ONE_IN == 0) == (part in HELD_OUT):
            misses = 0
            yield task
        misses += 1
    side = "held out" if part in HELD_OUT else "trained on"
    raise DataError(f"dataset.seed={config.seed}: none of the few prompts there are is {side}; use a larger difficulty")


def _distinct(tasks: Iterator[Task], config: DatasetConfig, part: str) -> list[Task]:
    option = PARTS[part]
    asked = getattr(config, str(option))
    found: dict[str, Task] = {}
    misses = 0
    while len(found) < (asked or MOST_PROMPTS) and misses < MOST_MISSES:
        task = next(tasks)
        misses = misses + 1 if task.prompt in found else 0
        found.setdefault(task.prompt, task)
    if asked is not None and len(found) < asked:
        even = len(found) - len(found) % 2
        raise DataError(
            f"dataset.{option}={asked}: dataset={config.name} has {len(found)} of them at this difficulty; "
            f"type dataset.{option}={even if option == 'num_eval_prompts' else len(found)}, or make it harder"
        )
    return list(found.values())


def check_length(config: DatasetConfig, prompt: int, response: int) -> None:
    """Refuse limits that cut the tasks' prompts or their right answers.

    Args:
        prompt, response: words of the longest ones, with EOS.
    """
    if config.max_new_tokens < response:
        raise DataError(f"dataset.max_new_tokens: right answers have {response} tokens at this difficulty; type that")
    if config.max_prompt_tokens < prompt:
        needed = prompt + config.max_new_tokens
        raise DataError(f"dataset.max_total_length: prompts have {prompt} tokens at this difficulty; type {needed}")
