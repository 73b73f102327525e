"""What the ids of SFT and reward-model runs leave out cannot change the texts that those stages read."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import DatasetConfig
from rlhf.config.options import options
from rlhf.data import DATASETS, load_text_data
from tests.config.composed import config

# The parts of TextData that rlhf/stages/sft.py and reward_model.py load; the latter's prompts for their references.
READ = {
    "sft": ("sft", "test_sft", "words"),
    "reward_model": ("pairs", "test_pairs", "prompts", "sft", "words"),
}
OTHER: dict[str, Any] = {
    "num_pairs": 3,
    "num_test_pairs": 2,
    "num_prompts": 4,
    "num_eval_prompts": 2,
    "label_noise_scale": 0.01,
    "stop_strings": ["."],
    "kl_budgets": [1.0],
}
SIZES = ["num_sft=30", "num_pairs=20", "num_test_pairs=4", "num_prompts=20", "num_eval_prompts=4"]


def hh_rows(path: Path) -> None:
    asks = [f"\n\nHuman: {number}?\n\nAssistant:" for number in range(60)]
    path.write_text("".join(json.dumps({"chosen": f"{ask} Yes.", "rejected": f"{ask} No."}) + "\n" for ask in asks))


def review_rows(path: Path) -> None:
    """400 reviews, half of them positive; four each begin with the same three words."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "source"])
        for number in range(400):
            text = f"Film {number // 4} was, number {number}, like no film. I went home after it."
            rows.writerow([text, number % 2, "imdb"])


def tldr_rows(path: Path) -> None:
    rows = ({"prompt": f"POST: {number}", "chosen": "TL;DR: Yes.", "rejected": "TL;DR: No."} for number in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def question_rows(path: Path) -> None:
    """Each question has answers enough for more pairs than are taken."""
    answers = [{"text": f"Answer {number}.", "upvotes": 2**number} for number in range(6)]
    rows = ({"question": f"{number}?", "answers": answers} for number in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS = {"hh": hh_rows, "reviews": review_rows, "tldr": tldr_rows, "stackexchange": question_rows}


def settings(name: str, folder: Path) -> DatasetConfig:
    """A data set with few examples, from a file where it needs one."""
    overrides = [f"dataset.{size}" for size in SIZES]
    if name == "letters":
        return config(*overrides).dataset
    path = folder / ("reviews.csv" if name == "reviews" else "pairs.jsonl")
    ROWS[name](path)
    return config(f"dataset={name}", "model=smollm2_135m", f"dataset.path={path}", *overrides).dataset


def no_part_of(stage: str, name: str) -> list[str]:
    """Options of the data set that are no part of the stage's id, though the data set reads them."""
    run = config(f"stage={stage}", *([] if name == "letters" else [f"dataset={name}", "model=smollm2_135m"]))
    found = [one for one in options(run) if one.section == "dataset" and not one.changes(run)]
    failures = {one.path.partition(".")[2]: one.failure(run) for one in found}
    return [name for name, failure in failures.items() if failure is None or failure.by_stage]


@pytest.mark.parametrize("stage", READ)
@pytest.mark.parametrize("name", DATASETS)
def test_an_unread_option_changes_nothing_that_the_stage_reads(name, stage, tmp_path):
    if name != "letters":
        pytest.importorskip("sklearn" if name == "reviews" else "datasets")
    given = settings(name, tmp_path)
    before = load_text_data(given)
    unread = no_part_of(stage, name)
    assert {"num_eval_prompts", "stop_strings", "kl_budgets"} <= set(unread)
    for option in unread:
        assert getattr(given, option) != OTHER[option]
        after = load_text_data(dataclasses.replace(given, **{option: OTHER[option]}))
        for part in READ[stage]:
            assert list(getattr(after, part)) == list(getattr(before, part)), (option, part)
