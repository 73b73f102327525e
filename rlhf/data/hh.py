"""Dialogues as text, "\\n\\nHuman: ...\\n\\nAssistant: ...", as Anthropic's are (Bai et al. 2022).

An answer to a prompt that ends with "\\n\\nAssistant:" is one turn of such a dialogue. It begins with a blank, which is
put there where the data has none. What a few rows have behind the next turn's "\\n\\nHuman:" or "\\n\\nAssistant:" is
dropped and counted. Any other prompt and its answers are taken as they are, to the last blank.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from rlhf.data.messages import ANSWER_TURN

_NEXT_TURN = re.compile("\n\n(?:Human|Assistant):")


STOP_STRINGS = ("Human:", "human:", "Assistant:", "assistant:")
"""A policy that has said its turn goes on by writing the human's next one."""


def stop_strings(prompts: Sequence[str]) -> Sequence[str]:
    """Those of dialogues, where most prompts are dialogues."""
    return STOP_STRINGS if 2 * sum(map(_is_dialogue, prompts)) > len(prompts) else ()


def shared_prompt(chosen: str, rejected: str) -> str:
    """What two whole dialogues have in common up to its last "\\n\\nAssistant:", which is with it; "" for others."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    start = chosen[: sum(1 for _ in alike)]
    end = start.rfind(ANSWER_TURN)
    return start[: end + len(ANSWER_TURN)] if end >= 0 else ""


def one_turn(prompt: str, answer: str) -> tuple[str, bool]:
    """An answer as it stands behind its prompt, and whether it lost what a dialogue has behind it."""
    if not _is_dialogue(prompt):
        return answer, False
    next_turn = _NEXT_TURN.search(answer)
    turn = answer[: next_turn.start()] if next_turn else answer
    if not turn.strip():
        return "", next_turn is not None
    return turn if turn[0].isspace() or prompt[-1].isspace() else f" {turn}", next_turn is not None


def _is_dialogue(prompt: str) -> bool:
    return prompt.rstrip().endswith(ANSWER_TURN)
