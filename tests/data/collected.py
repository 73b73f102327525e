"""Files of collected data, and the data set that is read from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rlhf.config.build import build_group
from rlhf.config.dataset import DatasetConfig
from rlhf.data import load_text_data
from rlhf.data.examples import DataError, Demonstration, Preference, TextData
from tests.config.composed import composed

PARTS = ("sft", "test_sft", "pairs", "test_pairs", "prompts", "eval_prompts")
SMALL = {"num_test_pairs": 2, "num_eval_prompts": 2}


def settings(name: str, **changes: Any) -> DatasetConfig:
    """Of a data set; `columns` names some of its columns."""
    given = composed(f"dataset={name}", "model=smollm2_135m")["dataset"] | SMALL
    columns = given["columns"] | changes.pop("columns", {})
    return build_group(DatasetConfig, given | changes | {"columns": columns}, "dataset")


def load(name: str, path: Path, parts: Collection[str] | None = None, **changes: Any) -> TextData:
    """All parts of a data set, but pairs of one that has prompts alone, and SFT texts where those have no answer."""
    config = settings(name, path=str(path), **changes)
    if name != "prompts":
        return load_text_data(config, parts or PARTS)
    try:
        return load_text_data(config, parts or ("sft", "test_sft", "prompts", "eval_prompts"))
    except DataError:
        if parts is not None:
            raise
        return load_text_data(config, ("prompts", "eval_prompts"))


def write(path: Path, *rows: object) -> Path:
    """A row a line; a text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def dialogues(numbers: int | Sequence[int]) -> list[dict[str, str]]:
    """Rows as in Anthropic/hh-rlhf, one for each question."""
    numbers = range(numbers) if isinstance(numbers, int) else numbers
    asks = [f"\n\nHuman: {number}?\n\nAssistant:" for number in numbers]
    return [{"chosen": f"{ask} Yes.", "rejected": f"{ask} No."} for ask in asks]


def contents(data: TextData) -> dict[str, list[Demonstration | Preference]]:
    return {part: list(getattr(data, part)) for part in PARTS}


def every_pair(data: TextData) -> list[Preference]:
    """Of both sides, in the order of their texts; `num_test_pairs` must not hide any."""
    return sorted([*data.pairs, *data.test_pairs], key=lambda pair: (pair.prompt, pair.chosen, pair.rejected))
