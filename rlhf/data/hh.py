"""dataset=hh: Anthropic's helpful and harmless dialogues (Bai et al. 2022), from the hub or from `dataset.path`.

Two forms of a row are read: {prompt, chosen, rejected} as in Dahoas/rm-static, and {chosen, rejected} as in
Anthropic/hh-rlhf, where both are whole dialogues. There the prompt is the common part up to and including its last
"\\n\\nAssistant:".

An answer to a prompt that ends with "\\n\\nAssistant:" is one turn of such a dialogue. It begins with a blank, which is
put there where the data has none. What a few rows have behind the next turn's "\\n\\nHuman:" or "\\n\\nAssistant:" is
dropped and counted. Any other prompt and its answers are taken as they are, to the last blank. Rows with an empty
answer (4 of 1,800 in hh-rlhf's harmless test part) or with two equal ones have no preference to teach and are left out.

SFT texts and reference answers are the preferred responses, unless `dataset.sft_path` or `dataset.sft_hub` gives rows
{prompt, response}.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import PARTS, Demonstration, Dropped, MalformedRow, Preference, TextData
from rlhf.data.form import Form, load_form, texts

ANSWER_TURN = "\n\nAssistant:"
_NEXT_TURN = re.compile("\n\n(?:Human|Assistant):")


STOP_STRINGS = ("Human:", "human:", "Assistant:", "assistant:")
"""A policy that has said its turn goes on by writing the human's next one."""


def load_hh(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    return load_form(config, parts, Form("hh", preferences, demonstration, stop_strings=stop_strings))


def stop_strings(prompts: Sequence[str]) -> Sequence[str]:
    """Those of dialogues, where most prompts are dialogues."""
    return STOP_STRINGS if 2 * sum(map(_is_dialogue, prompts)) > len(prompts) else ()


def preferences(row: Any) -> list[Preference | Dropped]:
    """The pair of a row in either form, and how many answers lost what a dialogue has behind them."""
    prompt, chosen, rejected = _texts(row)
    cut = sum(_next_turn(prompt, answer) is not None for answer in (chosen, rejected))
    pair = Preference(prompt, _answer(prompt, chosen), _answer(prompt, rejected))
    return [pair, *([Dropped(cut_answers=cut)] if cut else [])]


def demonstration(row: Any) -> Demonstration:
    prompt, response = texts(row, "prompt", "response")
    return Demonstration(prompt, _answer(prompt, response))


def _texts(row: Any) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as the row has them."""
    chosen, rejected = texts(row, "chosen", "rejected")
    if row.get("prompt") is not None:
        (prompt,) = texts(row, "prompt")
        return prompt, chosen, rejected
    end = _common_start(chosen, rejected).rfind(ANSWER_TURN) + len(ANSWER_TURN)
    if end < len(ANSWER_TURN):
        raise MalformedRow(
            "chosen and rejected do not begin with one dialogue up to an Assistant turn, and there is no prompt"
        )
    return chosen[:end], chosen[end:], rejected[end:]


def _is_dialogue(prompt: str) -> bool:
    return prompt.rstrip().endswith(ANSWER_TURN)


def _common_start(a: str, b: str) -> str:
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return a[: sum(1 for _ in shared)]


def _next_turn(prompt: str, answer: str) -> int | None:
    """Where a dialogue goes on behind an answer."""
    turn = _NEXT_TURN.search(answer) if _is_dialogue(prompt) else None
    return turn.start() if turn else None


def _answer(prompt: str, answer: str) -> str:
    if not _is_dialogue(prompt):
        return answer
    turn = answer[: _next_turn(prompt, answer)]
    if not turn.strip():
        return ""
    return turn if turn[0].isspace() or prompt[-1].isspace() else f" {turn}"
