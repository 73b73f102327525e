"""dataset=reasoning_gym: the tasks of the package reasoning-gym, by `dataset.task`.

A response's answer is what stands in the last <answer>...</answer>, all of it where there is none. The package's
scorer is taken for a stranger's code: where it raises, takes too long or gives no number the response is wrong, and a
line says why. Scores between 0 and 1 stay what they are. SFT texts are the right answers.
"""

from __future__ import annotations

import difflib
import importlib
import math
import random
import re
from collections.abc import Collection, Sequence
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.config.packages import REASONING_GYM
from rlhf.data.examples import PARTS, Columns, DataError, TextData
from rlhf.data.tasks import Task, made_parts
from rlhf.errors import one_line
from rlhf.terminal import say
from rlhf.waiting import LateError, within

LONGEST_SECONDS = 5.0
"""For a task to be made, or a response to be scored."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ENTRIES = 2**31 - 1
MOST_REPORTED = 3
"""Lines on failures of the package's scorer in one call."""


def load_reasoning_gym(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    """The columns are `question`, `answer` and `metadata`, as the package has them.

    Raises:
        DataError: not installed, no such task, or a task that cannot be made.
    """
    if problem := REASONING_GYM.missing_for("reasoning_gym"):
        raise DataError(problem)
    reasoning_gym = importlib.import_module(REASONING_GYM.module)  # by name: the package is an optional extra
    known = importlib.import_module(f"{REASONING_GYM.module}.factory").DATASETS

    name = str(config.task)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known)[:5])} and others"
        raise DataError(f"dataset.task: reasoning-gym has no task {name}; {hint}")
    with_what = f"dataset.task={name}: reasoning-gym cannot make it"
    try:
        tasks: Any = reasoning_gym.create_dataset(name, seed=config.seed, size=_ENTRIES)
    except Exception as error:
        raise DataError(f"{with_what} ({one_line(error)}); use another task") from error

    def draw(random_: random.Random) -> Task:
        try:
            with within(LONGEST_SECONDS):
                entry = tasks[random_.randrange(_ENTRIES)]
            right, wrong = f" {entry['answer']}", f" {tasks[random_.randrange(_ENTRIES)]['answer']}"
        except (Exception, LateError) as error:
            raise DataError(f"{with_what} ({one_line(error)}); use another task") from error
        return Task(str(entry["question"]), right, right, wrong, dict(entry))

    def verify(prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[float]:
        return scored(tasks, name, responses, columns)

    return TextData(**made_parts(config, parts, draw), verify=verify)


def scored(tasks: Any, name: str, responses: Sequence[str], columns: Columns) -> list[float]:
    """What the package's scorer gives each response, 0 where it fails.

    Args:
        tasks: a data set of the package.
        name: of the task.
    """
    scores, problems = [], []
    for i, response in enumerate(responses):
        entry = {column: entries[i] for column, entries in columns.items()}
        said = _ANSWER.findall(response)
        try:
            with within(LONGEST_SECONDS):
                score = float(tasks.score_answer(answer=(said[-1] if said else response).strip(), entry=entry))
            if not math.isfinite(score):
                raise ValueError(f"the score {score}")
        except (Exception, LateError) as error:
            problems.append(f"row {i + 1} of {len(responses)}: {one_line(error)}")
            score = 0.0
        scores.append(score)
    for problem in problems[:MOST_REPORTED]:
        say(f"dataset.task={name}: reasoning-gym's scorer failed, so that the response counts as wrong ({problem})")
    return scores
