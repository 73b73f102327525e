"""What a judge is sent, and how its answer is read.

Responses are not trusted: each text is put between lines with a code that it cannot hold (a hash of all the texts), the
template says that nothing between them is an instruction, and only the last line of the judge's answer is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from analysis.errors import WinrateError
from analysis.winrate.matching import Comparison

Verdict = Literal["A", "B", "TIE"]

DEFAULT_TEMPLATE = Path(__file__).with_name("judge_prompt.txt")
REMINDER = "Your answer has no verdict on its last line. Answer with one line only: [[A]], [[B]] or [[TIE]]."
_TITLES = {
    "prompt": "PROMPT",
    "reference": "REFERENCE ANSWER",
    "response_a": "RESPONSE A",
    "response_b": "RESPONSE B",
}
_VERDICTS: dict[str, Verdict] = {"A": "A", "B": "B", "TIE": "TIE"}
# The token alone, or after the likes of "Final verdict:"; a sentence that only mentions a token is none.
_LAST_LINE = re.compile(
    r"[\s*_`#>-]*(?:(?:(?:so|my|the|final|overall)[\s,]+)*(?:verdict|answer|judge?ment|decision)(?:\s+is)?[\s:*_`]*)?"
    r"\[\[\s*(A|B|TIE)\s*\]\][\s*_`.!]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reply:
    """What a judge answered, and what it says that this cost."""

    content: str
    model: str  # as the server names it
    finish_reason: str
    prompt_tokens: int | None  # None where the server does not count
    completion_tokens: int | None


@dataclass
class Asked:
    """One order of a comparison: the verdict by place (A is what was shown first) and what it came from."""

    verdict: Verdict | None = None  # None: no answer had one
    replies: list[Reply] = field(default_factory=list)  # one per attempt; none where nobody was asked
    refusal: str = ""  # why the server would not answer

    def add(self, reply: Reply) -> None:
        self.replies.append(reply)
        self.verdict = parse_verdict(reply)

    def settled(self, parse_retries: int) -> bool:
        """Whether there is a verdict, or nothing left to try."""
        return self.verdict is not None or bool(self.refusal) or len(self.replies) > parse_retries


def read_template(path: Path) -> str:
    """The template of a file.

    Raises:
        WinrateError: it cannot be read, or lacks a placeholder or a verdict.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WinrateError(f"--template {path}: cannot be read as UTF-8 text; give a text file") from error
    needed = [f"{{{name}}}" for name in _TITLES] + [f"[[{verdict}]]" for verdict in _VERDICTS]
    if missing := [part for part in needed if part not in text]:
        raise WinrateError(f"--template {path}: lacks {', '.join(missing)}; start from {DEFAULT_TEMPLATE}")
    return text


def render(template: str, comparison: Comparison, *, swapped: bool) -> str:
    """The message that shows model_a's response as A, or as B when `swapped`."""
    responses = [comparison.response_a, comparison.response_b]
    texts = [comparison.prompt, comparison.reference or "", *sorted(responses)]  # both orders have one code
    code = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    shown = dict(zip(_TITLES, [*texts[:2], *(reversed(responses) if swapped else responses)], strict=True))

    def delimited(match: re.Match[str]) -> str:
        title = _TITLES[match[1]]
        return f"BEGIN {title} {code}\n{shown[match[1]]}\nEND {title} {code}"

    # One pass over the template alone: a response that holds `{response_b}` stays as it is.
    return re.sub(r"\{(" + "|".join(_TITLES) + r")\}", delimited, template)


def parse_verdict(reply: Reply) -> Verdict | None:
    """The verdict on the last line that is not blank; None where there is none, or where the answer was cut off."""
    lines = [line for line in reply.content.splitlines() if line.strip()]
    match = _LAST_LINE.fullmatch(lines[-1]) if lines and reply.finish_reason != "length" else None
    return _VERDICTS[match[1].upper()] if match else None


def messages(text: str, replies: Sequence[Reply]) -> list[dict[str, str]]:
    """The conversation after these replies to `text`. A retry shows the judge its last answer and a reminder: at
    temperature 0 the same question has the same answer."""
    opening = [{"role": "user", "content": text}]
    if not replies:
        return opening
    said = {"role": "assistant", "content": replies[-1].content}
    return [*opening, said, {"role": "user", "content": REMINDER}]
