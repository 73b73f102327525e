"""Reference answers of data sets too large to list."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

from rlhf.data.examples import Demonstration, TextData
from rlhf.random import endless_order
from rlhf.scorers import NUM_REFERENCES, reference_answers


class Many(Sequence[Demonstration]):
    """Every other example has an answer; none is kept."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Demonstration:
        return Demonstration(str(place), "an answer" if place % 2 else "")


def data(prompts: Sequence[Demonstration]) -> TextData:
    return TextData(prompts, (), (), (), prompts, ())


def test_a_million_prompts_are_not_listed():
    prompts = Many(1_000_000)
    tracemalloc.start()
    try:
        found = reference_answers(data(prompts), 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20  # a list of a million places is above 8 MiB
    order = endless_order(3, "references", 0, len(prompts), len(prompts))[: 4 * NUM_REFERENCES].tolist()
    assert [int(one.prompt) for one in found] == [place for place in order if place % 2][:NUM_REFERENCES]


def test_few_prompts_are_all_taken():
    assert {one.prompt for one in reference_answers(data(Many(300)), 0)} == {str(i) for i in range(1, 300, 2)}
