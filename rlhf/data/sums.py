"""dataset=sums: some numbers to add. Made by code, so that it needs no download.

    3 + 4 + 9 =
     16

`dataset.difficulty` is how many numbers there are, each from 1 to 9. SFT texts are of mixed quality: half of them miss
the sum by 1 to 3, so that a policy that imitates them knows more than it says.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import PARTS, Columns, TextData
from rlhf.data.tasks import Task, check_length, made_parts

RIGHT_SHARE = 0.5
"""Of the SFT texts."""
LARGEST_NUMBER, LARGEST_MISS = 9, 3


def load_sums(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    """The data set of `config.seed` and `config.difficulty`; the column `answer` has the sum."""
    count = config.difficulty
    check_length(config, prompt=2 * count, response=2)

    def draw(random_: random.Random) -> Task:
        numbers = [random_.randint(1, LARGEST_NUMBER) for _ in range(count)]
        right = sum(numbers)
        near = range(max(0, right - LARGEST_MISS), right + LARGEST_MISS + 1)
        wrong = random_.choice([number for number in near if number != right])
        attempt = right if random_.random() < RIGHT_SHARE else wrong
        prompt = f"{' + '.join(map(str, numbers))} ="
        return Task(prompt, f" {right}", f" {attempt}", f" {wrong}", {"answer": str(right)})

    words = ["+", "=", *map(str, range(count * LARGEST_NUMBER + LARGEST_MISS + 1))]
    return TextData(**made_parts(config, parts, draw), verify=verify, words=words)


def verify(prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[float]:
    """1 where the response is the sum and nothing else."""
    return [float(response.strip() == answer) for response, answer in zip(responses, columns["answer"], strict=True)]
