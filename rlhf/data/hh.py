"""dataset=hh: Anthropic's helpful and harmless dialogues (Bai et al. 2022), from the hub or from `dataset.path`.

Two forms of a row are read: {prompt, chosen, rejected} as in Dahoas/rm-static, and {chosen, rejected} as in
Anthropic/hh-rlhf, where both are whole dialogues. There the prompt is the common part up to and including its last
"\\n\\nAssistant:". The blank between prompt and response belongs to the response. A response is one turn: what a few
rows have behind the next "\\n\\nHuman:" or "\\n\\nAssistant:" is dropped. Rows with an empty answer (4 of 1,800 in
hh-rlhf's harmless test part) or with two equal ones have no preference to teach and are left out.

SFT texts and reference answers are the preferred responses, unless `dataset.sft_path` or `dataset.sft_hub` gives rows
{prompt, response}.
"""

from __future__ import annotations

import re
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import Demonstration, Preference, TextData
from rlhf.data.form import Form, MalformedRow, load_form, texts

ANSWER_TURN = "\n\nAssistant:"
_NEXT_TURN = re.compile("\n\n(?:Human|Assistant):")


def load_hh(config: DatasetConfig) -> TextData:
    return load_form(config, Form("hh", preferences, demonstration))


def preferences(row: Any) -> list[Preference]:
    """The pair of a row in either form."""
    chosen, rejected = texts(row, "chosen", "rejected")
    if row.get("prompt") is not None:
        (prompt,) = texts(row, "prompt")
    else:
        end = _common_start(chosen, rejected).rfind(ANSWER_TURN) + len(ANSWER_TURN)
        if end < len(ANSWER_TURN):
            raise MalformedRow(
                "chosen and rejected do not begin with one dialogue up to an Assistant turn, and there is no prompt"
            )
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    return [Preference(prompt, _one_turn(chosen), _one_turn(rejected))]


def demonstration(row: Any) -> Demonstration:
    prompt, response = texts(row, "prompt", "response")
    return Demonstration(prompt, _one_turn(response))


def _common_start(a: str, b: str) -> str:
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return a[:index]
    return min(a, b, key=len)


def _one_turn(text: str) -> str:
    turn = _NEXT_TURN.split(text, maxsplit=1)[0].strip()
    return f" {turn}" if turn else ""
