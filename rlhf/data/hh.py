"""dataset=hh: Anthropic's helpful and harmless dialogues (Bai et al. 2022), from the hub or from `dataset.path`.

Two forms of a row are read: {prompt, chosen, rejected} as in Dahoas/rm-static, and {chosen, rejected} as in
anthropics/hh-rlhf, where both are whole dialogues. There the prompt is the common part up to and including its last
"\\n\\nAssistant:". The blank between prompt and response belongs to the response. A response is one turn: what a few
rows have behind the next "\\n\\nHuman:" or "\\n\\nAssistant:" is dropped. Rows with an empty answer (4 of 1,800 in
hh-rlhf's harmless test part) or with two equal ones have no preference to teach and are left out.

SFT texts and reference answers are the preferred responses.
"""

from __future__ import annotations

import gzip
import importlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import DataError, Demonstration, Preference, TextData, take

HUB_NAME = "Dahoas/rm-static"
HELD_OUT_SHARE = 0.2
ANSWER_TURN = "\n\nAssistant:"
_NEXT_TURN = re.compile("\n\n(?:Human|Assistant):")


def load_hh(config: DatasetConfig) -> TextData:
    """The hub's own test part is held out; a local file is split by prompt with `config.seed`."""
    if config.path is None:
        train, held_out = _hub_pairs()
    else:
        train, held_out = split_by_prompt(read_pairs(Path(config.path)), config.seed)
    shuffle = random.Random(f"{config.seed} order").shuffle
    shuffle(train)
    shuffle(held_out)
    train_answers, held_out_answers = _preferred(train), _preferred(held_out)
    return TextData(
        sft=take(train_answers, config.num_sft, "num_sft"),
        test_sft=held_out_answers,
        pairs=take(train, config.num_pairs, "num_pairs"),
        test_pairs=take(held_out, config.num_test_pairs, "num_test_pairs"),
        prompts=take(train_answers, config.num_prompts, "num_prompts"),
        eval_prompts=take(held_out_answers, config.num_eval_prompts, "num_eval_prompts"),
    )


def split_by_prompt(pairs: Sequence[Preference], seed: int) -> tuple[list[Preference], list[Preference]]:
    """(trained on, held out): a fifth of the prompts is held out, with all of their pairs."""
    prompts = sorted({pair.prompt for pair in pairs})
    random.Random(f"{seed} split").shuffle(prompts)
    held_out = set(prompts[: round(HELD_OUT_SHARE * len(prompts))])
    return (
        [pair for pair in pairs if pair.prompt not in held_out],
        [pair for pair in pairs if pair.prompt in held_out],
    )


def _preferred(pairs: Sequence[Preference]) -> list[Demonstration]:
    """Each prompt once, with its first preferred response."""
    answers: dict[str, Demonstration] = {}
    for pair in pairs:
        answers.setdefault(pair.prompt, Demonstration(pair.prompt, pair.chosen))
    return list(answers.values())


def read_pairs(path: Path) -> list[Preference]:
    """The pairs of a .json (a list of rows), .jsonl or .jsonl.gz file."""
    pairs = (parse_row(row, where) for row, where in _rows(path))
    return [pair for pair in pairs if _teaches(pair)]


def _teaches(pair: Preference) -> bool:
    return bool(pair.chosen and pair.rejected) and pair.chosen != pair.rejected


def parse_row(row: Any, where: str) -> Preference:
    """The pair of a row in either form. `where` names the row in errors."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("chosen", "rejected")):
        raise DataError(f"{where}: a row must be an object with the texts chosen and rejected; mend or drop it")
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        end = _common_start(chosen, rejected).rfind(ANSWER_TURN) + len(ANSWER_TURN)
        if end < len(ANSWER_TURN):
            raise DataError(
                f"{where}: chosen and rejected do not begin with one dialogue up to an Assistant turn, "
                "and there is no prompt; mend or drop it"
            )
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    elif not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: prompt must be a text that is not empty; mend or drop it")
    return Preference(prompt, _one_turn(chosen), _one_turn(rejected))


def _common_start(a: str, b: str) -> str:
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return a[:index]
    return min(a, b, key=len)


def _one_turn(text: str) -> str:
    turn = _NEXT_TURN.split(text, maxsplit=1)[0].strip()
    return f" {turn}" if turn else ""


def _rows(path: Path) -> Iterator[tuple[Any, str]]:
    """(row, "file:line") of each row; a .json file counts its rows instead of lines."""
    if not path.name.endswith((".json", ".jsonl", ".jsonl.gz")):
        raise DataError(f"dataset.path={path}: not a .json, .jsonl or .jsonl.gz file")
    line = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                yield from _json_rows(json.load(file), path)
                return
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield json.loads(text), f"{path}:{line}"
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{line or error.lineno}: not JSON ({error.msg}); mend or drop the line") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"dataset.path={path}: cannot be read ({reason}); give a readable file") from None


def _json_rows(rows: Any, path: Path) -> Iterable[tuple[Any, str]]:
    if not isinstance(rows, list):
        raise DataError(f"dataset.path={path}: must hold a list of rows; a row a line is .jsonl")
    return ((row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))


def _hub_pairs() -> tuple[list[Preference], list[Preference]]:
    """The train and test parts of rm-static; of the former, the prompts that are not in the latter."""
    try:
        # By name: the package is an optional extra, and its import takes seconds.
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            "dataset=hh needs the package datasets (pip install -e '.[hub]') or a local file: set dataset.path"
        ) from None
    try:
        parts = datasets.load_dataset(HUB_NAME)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"dataset=hh: the hub did not give {HUB_NAME} ({reason}); set dataset.path to a local .jsonl or .jsonl.gz"
        ) from None
    train, held_out = (
        [
            pair
            for number, row in enumerate(parts[part])
            if _teaches(pair := parse_row(row, f"{HUB_NAME} {part} {number}"))
        ]
        for part in ("train", "test")
    )
    held_out_prompts = {pair.prompt for pair in held_out}
    return [pair for pair in train if pair.prompt not in held_out_prompts], held_out
