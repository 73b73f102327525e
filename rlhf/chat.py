"""Conversations as the chat template of a tokenizer writes them, for models that were trained on it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.config.dataset import DatasetConfig
from rlhf.control_tokens import (
    MarkedText,
    control_spans,
    end_with,
    joined,
    part,
    special_control,
    spelled_control,
    spoken_control,
)
from rlhf.data.examples import DataError, Demonstration, Mapped, Preference, TextData
from rlhf.data.messages import plain_text
from rlhf.errors import reason

Message = Mapping[str, Any]
"""{"role": "system", "user" or "assistant", "content": its text}, and whatever else a template reads."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_CUES = ("\n\nAssistant:", "\nTL;DR:")
"""What ends the prompts of data whose answers begin with a blank that belongs to the form."""
_QUESTION, _ANSWER = "QUESTION", "ANSWER"
"""What a template is tried with."""


@dataclass(frozen=True)
class ChatTemplate:
    """How a tokenizer's template writes a prompt up to the place where its answer begins."""

    tokenizer: PreTrainedTokenizerBase
    opened: str = ""
    """What it puts at the end of a prompt and not before a finished answer, as an opened <think>: left out."""
    inner: str = ""
    """What it puts before a finished answer and not at the end of a prompt: put there."""
    blanks: str = ""
    """Blanks that it puts before an answer."""

    def prompt(self, messages: Iterable[Message]) -> str:
        """Messages, the last of them the user's, and what opens the answer.

        A control token that a message spells out stays text.

        Raises:
            DataError: the template does not write such messages.
        """
        text = _render(self.tokenizer, [_plain_message(message) for message in messages], prompt=True)
        if self.opened and text.endswith(self.opened):
            text = part(text, 0, len(text) - len(self.opened))
        return joined(text, special_control(self.tokenizer, self.inner))


def template_of(tokenizer: PreTrainedTokenizerBase, choice: str) -> ChatTemplate | None:
    """The tokenizer's template as dataset.template asks for it; None: prompts are plain text.

    The tokenizer's EOS becomes the token with which the template ends an answer.

    Raises:
        DataError: asked for, and there is none, or none for a question and its answer.
    """
    if choice == "none" or (choice == "auto" and not tokenizer.chat_template):
        return None
    if not tokenizer.chat_template:
        raise DataError("dataset.template: chat, but the model's tokenizer has no chat template; use none")
    question = {"role": "user", "content": _QUESTION}
    asked = str(_render(tokenizer, [question], prompt=True))
    answered = _render(tokenizer, [question, {"role": "assistant", "content": _ANSWER}], prompt=False)
    place = answered.rfind(_ANSWER)
    if place < 0:
        raise DataError("dataset.template: the chat template leaves an assistant's answer out; use none")
    before, after = str(answered)[:place], place + len(_ANSWER)
    behind = [span for span in control_spans(answered) if span[0] >= after]
    end = str(answered)[slice(*behind[0])] if behind and not str(answered)[after : behind[0][0]].strip() else None
    if end is not None:
        end_with(tokenizer, end)
    plain = ChatTemplate(tokenizer)
    if asked.startswith(before):
        return replace(plain, opened=asked[len(before) :])
    if before.startswith(asked):
        more = before[len(asked) :]
        return replace(plain, inner=more) if more.strip() else replace(plain, blanks=more)
    return plain


def with_template(
    config: DatasetConfig, data: TextData, tokenizer: PreTrainedTokenizerBase, every_turn: bool = False
) -> TextData:
    """The data as the policy reads it: through the tokenizer's template, where dataset.template asks for one, and
    behind the system text of the data set.

    With a template it needs no stop strings: the template ends an answer.

    Args:
        every_turn: SFT texts say where the earlier answers of their conversations stand.

    Raises:
        DataError: as `template_of`.
    """
    template = template_of(tokenizer, config.template)
    if config.template == "none" and not data.system and not every_turn:
        return data

    def texts(example: Demonstration | Preference, *answers: str) -> list[str]:
        prompt = example.prompt
        if not prompt:  # an SFT text alone
            return [prompt, *answers]
        messages = _messages(example, data.system)
        if template is None:
            marked = MarkedText(_behind_system(example, data.system), messages=messages)
            return [marked if config.template == "auto" else str(marked), *answers]
        bare = [answer.removeprefix(" ") if prompt.endswith(_CUES) else answer for answer in answers]
        written = [template.blanks + answer if given else given for answer, given in zip(bare, answers, strict=True)]
        text = template.prompt(messages)
        return [MarkedText(text, control_spans(text), messages), *written]

    def demonstration(example: Demonstration) -> Demonstration:
        prompt, response = texts(example, example.response)
        return replace(example, prompt=prompt, response=response)

    def learnt(example: Demonstration) -> Demonstration:
        made = demonstration(example)
        if not every_turn or not example.messages:
            return made
        spoken = _turns(made.prompt, _messages(example, data.system), template)
        seen = made.prompt.messages if isinstance(made.prompt, MarkedText) else ()
        return replace(made, prompt=MarkedText(made.prompt, control_spans(made.prompt), seen, spoken))

    def preference(example: Preference) -> Preference:
        prompt, chosen, rejected = texts(example, example.chosen, example.rejected)
        return replace(example, prompt=prompt, chosen=chosen, rejected=rejected)

    return replace(
        data,
        sft=Mapped(data.sft, learnt),
        test_sft=Mapped(data.test_sft, learnt),
        pairs=Mapped(data.pairs, preference),
        test_pairs=Mapped(data.test_pairs, preference),
        prompts=Mapped(data.prompts, demonstration),
        eval_prompts=Mapped(data.eval_prompts, demonstration),
        stop_strings=data.stop_strings if template is None else (),
    )


def _messages(example: Demonstration | Preference, system: str) -> list[Message]:
    """The conversation that a prompt is, behind the system text where it has none of its own."""
    messages = json.loads(example.messages) if example.messages else conversation(example.prompt)
    has_own = not system or messages[0]["role"] == "system"
    return messages if has_own else [{"role": "system", "content": system}, *messages]


def _turns(prompt: str, messages: Sequence[Message], template: ChatTemplate | None) -> Iterator[tuple[int, int]]:
    """Where in a prompt its own answers stand, each behind what the model reads before it there; one that the template
    writes otherwise than when it is asked for, as one without its thoughts, is left out."""
    for place, message in enumerate(messages):
        if place == 0 or message["role"] != "assistant" or not message["content"].strip():
            continue
        try:
            before = template.prompt(messages[:place]) if template else plain_text([*map(dict, messages[:place])])
        except DataError:  # two answers in a row
            continue
        blanks = template.blanks if template else " "
        for said in (message["content"], message["content"].strip()):  # some templates strip
            if prompt.startswith(str(before) + blanks + said):
                yield len(before), len(before) + len(blanks) + len(said)
                break


def _behind_system(example: Demonstration | Preference, system: str) -> str:
    """A prompt as plain text."""
    prompt = example.prompt
    if not system or (example.messages and json.loads(example.messages)[0]["role"] == "system"):
        return prompt
    return f"{system}{prompt}" if prompt.startswith("\n") else f"{system}\n\n{prompt}"


def whole_conversation(tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message], answer: str) -> str:
    """Messages and the answer to them as the tokenizer's template writes them to their end."""
    said = {"role": "assistant", "content": answer.removeprefix(" ")}
    return _render(tokenizer, [*map(_plain_message, messages), said], prompt=False)


def conversation(prompt: str) -> list[Message]:
    """The turns of a dialogue "\\n\\nHuman: ...\\n\\nAssistant:"; any other text is one message of the user."""
    pieces = _TURN.split(prompt)
    if len(pieces) < 5 or pieces[0].strip() or pieces[1] != "Human" or pieces[-2] != "Assistant" or pieces[-1].strip():
        return [{"role": "user", "content": prompt}]
    turns: list[dict[str, str]] = []
    for name, text in zip(pieces[1:-2:2], pieces[2:-1:2], strict=True):
        if turns and turns[-1]["role"] == _ROLES[name]:  # most templates want turns to alternate
            turns[-1]["content"] += f"\n\n{text.strip()}"
        else:
            turns.append({"role": _ROLES[name], "content": text.strip()})
    return list(turns)


def _plain_message(message: Message) -> dict[str, Any]:
    """A message of which every value is Python's own (parquet gives arrays) and the content is a text."""
    plain = _plain_value(dict(message))
    return plain if plain.get("content") is not None else {**plain, "content": ""}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain_value(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain_value(inner) for inner in value] if isinstance(value, list | tuple) else value


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], *, prompt: bool) -> str:
    """What the template writes, with its control tokens marked and those that messages spell out as plain text."""
    spelled: list[str] = []
    mark = _unused_character(messages)

    def hidden(value: Any, assistant: bool = False) -> Any:
        if isinstance(value, str):
            seen = spoken_control(tokenizer, value) if assistant else value
            for token in dict.fromkeys(spelled_control(tokenizer, seen)):
                if token not in spelled:
                    spelled.append(token)
                value = value.replace(token, f"{mark}{spelled.index(token)}{mark}")
            return value
        if isinstance(value, dict):
            assistant = assistant or value.get("role") == "assistant"
            return {key: hidden(inner, assistant) for key, inner in value.items()}
        return [hidden(inner, assistant) for inner in value] if isinstance(value, list) else value

    text = special_control(tokenizer, _write(tokenizer, hidden(messages), prompt))
    return _restored(text, mark, spelled) if spelled else text


def _restored(text: str, mark: str, spelled: Sequence[str]) -> str:
    """`text` with the spelled-out tokens back in place of their marks."""
    plain, spans, shift, last = "", [], 0, 0
    control = control_spans(text)
    for place in re.finditer(f"{mark}(\\d+){mark}", text):
        spans += [(a + shift, b + shift) for a, b in control if last <= a < place.start()]
        token = spelled[int(place.group(1))]
        plain += str(text)[last : place.start()] + token
        shift, last = shift + len(token) - len(place.group()), place.end()
    spans += [(a + shift, b + shift) for a, b in control if a >= last]
    return MarkedText(plain + str(text)[last:], spans)


def _unused_character(messages: list[dict[str, Any]]) -> str:
    """Of those that Unicode leaves to private use."""
    used = str(messages)
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)


def _write(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
        )
    except Exception as error:  # whatever the template raises
        if messages[0].get("role") == "system" and len(messages) > 1:  # Gemma's has no such turn
            first, second, *others = messages
            merged = {**second, "content": f"{first['content']}\n\n{second['content']}"}
            return _write(tokenizer, [merged, *others], prompt)
        raise DataError(
            f"dataset.template: the chat template does not write a conversation of the data ({reason(error)}); "
            "mend the data or use dataset.template=none"
        ) from error
    assert isinstance(text, str)
    return text
