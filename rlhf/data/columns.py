"""Rows of any common form -> pairs, prompts and SFT texts: which of their columns hold what (docs/data.md).

A prompt is a text, or a conversation: a list of messages, or a text beside a column of system texts. Pairs without a
prompt of their own are whole conversations or dialogues, and the prompt is what they begin with alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.examples import Demonstration, Dropped, Example, MalformedRow, Preference, Prompt, TextAlone, UnknownForm
from rlhf.data.hh import one_turn, shared_prompt
from rlhf.data.messages import (
    Message,
    before_last_answer,
    has_columns,
    kind_of,
    listed,
    messages_in,
    plain_text,
    where_they_part,
)
from rlhf.errors import printable

PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input")
SYSTEMS = ("system", "system_prompt")
RESPONSES = ("completion", "response", "output")
SFT_RESPONSES = (*RESPONSES, "answer", "label")
"""Beside prompts alone the latter two are left to the reward, for which they often are the solution."""
CONVERSATIONS = ("messages", "conversations", "conversation")
TEXT = "text"
"""An SFT text without a prompt."""
PAIRS = (
    ("chosen", "rejected", None),
    ("response_0", "response_1", "better_response_id"),
    ("response_a", "response_b", "winner"),
    ("conversation_a", "conversation_b", "winner"),
    ("response_j", "response_k", None),
)
"""Two answers, the first of which is the better one, or a column says which."""

PAIR_COLUMNS = ("prompt", "system", "chosen", "rejected", "preferred")
ANSWER_COLUMNS = ("response", "messages")
"""What dataset.columns.* name: of pairs, and beside them of prompts and of SFT texts."""

Written = str | list[Message]
"""A prompt as a data set writes it."""
Names = list[str]
"""Of columns."""


@dataclass(frozen=True)
class ColumnReader:
    """Reads rows by the names of their columns.

    `preferences`, `prompt` and `demonstration` are what `rlhf.data.form.Form` asks for, and raise MalformedRow.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    """Columns by what they hold, as the options dataset.columns.* name them."""

    def preferences(self, row: Any) -> list[Preference | Dropped]:
        """The pair of a row, () where neither answer is preferred, and how many answers lost what follows them."""
        columns = self._checked(row, *PAIR_COLUMNS)._pair_columns(row)
        if columns is None:
            known = "prompt" in self.named or _first(row, PROMPTS, _is_prompt) is not None
            prompt = "" if known else ", the prompt as dataset.columns.prompt"
            raise UnknownForm(
                f"{has_columns(row)}; no two answers among these: name them as dataset.columns.chosen and "
                f"dataset.columns.rejected{prompt}, or use dataset=prompts, which needs none"
            )
        answers = _ordered(row, *columns)
        if answers is None:
            return []
        prompt, better, worse, used = self._pair(row, *answers)
        names = [next((name for name in columns[:2] if row[name] is answer), columns[0]) for answer in answers]
        chosen, first_cut = _placed(prompt, better, names[0])
        rejected, second_cut = _placed(prompt, worse, names[1])
        pair = Preference(_plain(prompt), chosen, rejected, _others(row, [*used, *columns]), _messages(prompt))
        cut = first_cut + second_cut
        return [pair, *([Dropped(cut_answers=cut)] if cut else [])]

    def prompt(self, row: Any) -> Prompt:
        """The prompt of a row, with the answer that it may have: its own, or the better one of a pair."""
        prompt, answer, used, of_answer = self._checked(row, *self.named)._answered(row, RESPONSES)
        if prompt is None:
            raise UnknownForm(f"{has_columns(row)}; no prompt among these: name its column as dataset.columns.prompt")
        text = "" if answer is None else _placed(prompt, answer, *of_answer[:1])[0]
        return Prompt(_plain(prompt), text, _others(row, used), _messages(prompt))

    def demonstration(self, row: Any) -> Demonstration:
        """The SFT text of a row: a prompt with its answer, or a text without a prompt."""
        self._checked(row)
        there = ColumnReader({what: name for what, name in self.named.items() if name in row})
        prompt, answer, used, more = there._answered(row, SFT_RESPONSES)
        if prompt is None and isinstance(row.get(TEXT), str):
            return TextAlone("", row[TEXT], _others(row, [TEXT]))
        if prompt is None or answer is None:
            raise UnknownForm(
                f"{has_columns(row)}; no prompt with an answer among these: name them as dataset.columns.prompt and "
                "dataset.columns.response, or a column of conversations as dataset.columns.messages"
            )
        response, _ = _placed(prompt, answer, *more[:1])
        return Demonstration(_plain(prompt), response, _others(row, [*used, *more]), _messages(prompt))

    @staticmethod
    def found(row: Mapping[str, Any], example: Example) -> str:
        """The columns of a row that the example was made of, each with what it holds."""
        return listed(row, [name for name in row if name not in example.columns])

    def _checked(self, row: Any, *named: str) -> ColumnReader:
        """Itself, for a row that has the columns which the options of these names name."""
        if not isinstance(row, Mapping):
            raise UnknownForm(f"the row is {kind_of(row)}, not an object with columns")
        for what in named:
            name = self.named.get(what)
            if name is not None and name not in row:
                raise UnknownForm(f"{has_columns(row)}, and no dataset.columns.{what}={printable(name)}")
        return self

    def _answered(self, row: Mapping[str, Any], responses: Sequence[str]) -> tuple[Written | None, Any, Names, Names]:
        """(prompt, answer, the prompt's columns, the answer's); None where there is none."""
        if (name := self._conversation(row)) is not None:
            start, answer = before_last_answer(messages_in(row[name]) or [])
            used = [name, *filter(None, [self._system(row)])]
            return self._with_system(row, start), answer or None, used, []
        response = self.named.get("response", _first(row, responses, _is_answer))
        prompt, used = self._prompt(row)
        if prompt is not None and response is not None and response not in used:
            return _suited(prompt, row[response]), row[response], used, [response]
        columns = self._pair_columns(row)
        answers = None if columns is None else _ordered(row, *columns)
        if columns is None or answers is None:
            return prompt, None, used, []
        prompt, chosen, _, used = self._pair(row, *answers)
        both = [name for name in columns if name is not None]
        return prompt, chosen, used or both, both

    def _conversation(self, row: Mapping[str, Any]) -> str | None:
        """The column of whole conversations, where that is what prompt and answer are taken from."""
        named = self.named.get("messages")
        if named is None:
            pair = not self.named.keys().isdisjoint(("prompt", "chosen")) or self._pair_columns(row) is not None
            return None if pair else _first(row, CONVERSATIONS, _is_conversation)
        if not _is_conversation(row[named]):
            raise MalformedRow(f"{named} must be a list of messages, not {kind_of(row[named])}")
        return named

    def _pair_columns(self, row: Mapping[str, Any]) -> tuple[str, str, str | None] | None:
        """(first, second, which is better); one column with both answers stands twice."""
        chosen = self.named.get("chosen")
        if chosen is not None:
            return chosen, self.named.get("rejected", chosen), self.named.get("preferred")
        for first, second, preferred in PAIRS:
            if {first, second, *filter(None, [preferred])} <= row.keys():
                return first, second, preferred
        output = row.get("output")
        return ("output", "output", None) if isinstance(output, list) and not _is_conversation(output) else None

    def _pair(self, row: Mapping[str, Any], better: Any, worse: Any) -> tuple[Written, Any, Any, Names]:
        """(prompt, better, worse, the prompt's columns), the answers without what they repeat of the prompt."""
        prompt, used = self._prompt(row)
        chosen, rejected = messages_in(better), messages_in(worse)
        if chosen and rejected and chosen[0]["role"] != "assistant":
            at = where_they_part(chosen, rejected)
            if not at:
                raise MalformedRow("the two conversations do not begin with one prompt")
            start = chosen[:at]
            if not isinstance(prompt, list) or prompt[-at:] != start:  # else it has a system turn more
                prompt = self._with_system(row, start)
            return prompt, chosen[at:], rejected[at:], used
        if prompt is not None:
            return _suited(prompt, better), better, worse, used
        start = shared_prompt(better, worse) if isinstance(better, str) and isinstance(worse, str) else ""
        if not start:
            raise UnknownForm(
                f"{has_columns(row)}; no prompt among these, and the answers do not begin with one conversation: name "
                "the prompt's column as dataset.columns.prompt"
            )
        return start, better[len(start) :], worse[len(start) :], used

    def _prompt(self, row: Mapping[str, Any]) -> tuple[Written | None, Names]:
        """(prompt, its columns); None where the row has none of its own."""
        found = _first(row, PROMPTS, lambda _: True) or _first(row, CONVERSATIONS, _is_conversation)
        name = self.named.get("prompt", found)
        system = self._system(row)
        if name is None:
            return None, [] if system is None else [system]
        value, used = row[name], [name]
        if name == "instruction" and isinstance(row.get("input"), str):
            value, used = "\n\n".join(filter(None, [value, row["input"]])), [*used, "input"]
        if _is_conversation(value):
            prompt = messages_in(value) or []
            if prompt and prompt[-1]["role"] == "assistant":
                raise MalformedRow(f"{name} ends with the assistant's turn")
        elif isinstance(value, str):
            prompt = value if system is None else [{"role": "user", "content": value}]
        else:
            raise MalformedRow(f"{name} must be a text or a list of messages, not {kind_of(value)}")
        return self._with_system(row, prompt), used if system is None else [*used, system]

    def _system(self, row: Mapping[str, Any]) -> str | None:
        return self.named.get("system", next((name for name in SYSTEMS if name in row), None))

    def _with_system(self, row: Mapping[str, Any], prompt: Written) -> Written:
        """A conversation behind the row's system text."""
        text = row.get(self._system(row) or "")
        if not isinstance(prompt, list) or not text or (prompt and prompt[0]["role"] == "system"):
            return prompt
        if not isinstance(text, str):
            raise MalformedRow(f"{self._system(row)} must be a text, not {kind_of(text)}")
        return [{"role": "system", "content": text}, *prompt]


def _first(row: Mapping[str, Any], names: Iterable[str], fits: Any) -> str | None:
    return next((name for name in names if row.get(name) is not None and fits(row[name])), None)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str | list)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and messages_in(value) is not None


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) or bool(messages_in(value))


def _ordered(row: Mapping[str, Any], first: str, second: str, preferred: str | None) -> tuple[Any, Any] | None:
    """(better, worse); None for a tie."""
    if first == second:
        value = row[first]
        if not isinstance(value, list) or len(value) < 2:
            raise MalformedRow(f"{first} must be a list [better, worse], not {kind_of(value)}")
        return value[0], value[1]
    answers = row[first], row[second]
    if any(answer is None for answer in answers):
        raise MalformedRow(f"{first if answers[0] is None else second} holds nothing")
    if preferred is None:
        return answers
    said = row[preferred]
    label = "" if said is None else str(said).lower()
    ends = [name.lower().rpartition("_")[2] for name in (first, second)]
    choices = ends if any(map(str.isdigit, ends)) or label not in ("0", "1") else ["0", "1"]
    if (end := label.rpartition("_")[2]) in choices:  # 0 or 1, a or b, model_a, response_1
        return answers if end == choices[0] else answers[::-1]
    if label.startswith("tie") or label in ("", "-1", "none"):
        return None
    raise MalformedRow(f"{preferred} is {printable(repr(said))}, not {' or '.join(ends)}")


def _turn(answer: Any, name: str) -> tuple[str, bool]:
    """An answer's text, and whether it lost what a conversation has behind it; `name` is its column."""
    messages = messages_in(answer)
    if not messages:
        if not isinstance(answer, str):
            raise MalformedRow(f"{printable(name)}: an answer must be a text or messages, not {kind_of(answer)}")
        return answer, False
    if messages[0]["role"] != "assistant":
        begins = f"an answer begins with a turn of {messages[0]['role']}, not of the assistant"
        raise MalformedRow(f"{printable(name)}: {begins}")
    return messages[0]["content"], len(messages) > 1


def _placed(prompt: Written, answer: Any, name: str = "messages") -> tuple[str, bool]:
    """An answer as it stands behind the plain text of its prompt, and whether it lost what follows it; `name` is its
    column."""
    if isinstance(prompt, str) and isinstance(answer, str):
        return one_turn(prompt, answer)
    text, cut = _turn(answer, name)
    return f" {text}" if text.strip() else "", cut


def _suited(prompt: Written, answer: Any) -> Written:
    """A prompt as a conversation where its answer is messages."""
    asked = isinstance(prompt, str) and messages_in(answer)
    return [{"role": "user", "content": prompt}] if asked else prompt


def _plain(prompt: Written) -> str:
    return prompt if isinstance(prompt, str) else plain_text(prompt)


def _messages(prompt: Written) -> str:
    return json.dumps(prompt) if isinstance(prompt, list) else ""


def _others(row: Mapping[str, Any], used: Iterable[str | None]) -> dict[str, Any]:
    """The columns that are not used."""
    return {str(name): value for name, value in row.items() if name not in {*used}}
