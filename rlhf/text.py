"""How text becomes tokens and back, for policies, reward models, stop strings, logs and data.

- A prompt begins as its tokenizer begins texts (Llama, Gemma, Mistral: with BOS; GPT-2, GPT-NeoX, Qwen: with nothing),
  exactly once, also where it is cut. An answer ends with exactly one EOS.
- Text is text: what a user writes never becomes a control token, however it is spelled. Only a chat template, and
  reward.prefix and reward.suffix, put control tokens; `MarkedText` says where. An assistant's own text may hold those
  that its tokenizer does not call special, as <think>.
- A prompt that is cut becomes a text of its own, whose tokens are what the policy sees: whoever encodes it again gets
  the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rlhf.control_tokens import MarkedText, control_spans, eos_id, facts, joined, part, special_control, spoken_control
from rlhf.errors import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", ".", "x")
"""A text is encoded behind one of these where a tokenizer puts a blank before every text."""
_CONTEXT = 8
"""Tokens of a prompt that a response is decoded with, where a decoder drops a text's first blank."""
_NO_CHARACTER = "\ufffd"
"""As which a part of a character's bytes is read."""
_SHOWN = 400
"""Characters of a prompt that a log line shows."""


# --- text -> tokens ------------------------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text from its beginning, without what the tokenizer puts around it."""
    control = {token: i for i, token in facts(tokenizer).control.items()}
    spans = [(a, b) for a, b in control_spans(text) if text[a:b] in control]
    if not spans:
        return _plain(tokenizer, str(text))
    ids: list[int] = tokenizer(str(text), add_special_tokens=False, split_special_tokens=False)["input_ids"]
    meant = [control[text[a:b]] for a, b in spans]
    if [i for i in ids if i in facts(tokenizer).control] == meant:
        return ids
    # Somebody has spelled out a control token between the template's own.
    pieces = encode(tokenizer, str(text)[: spans[0][0]])
    ends = [first for first, _ in spans[1:]] + [len(text)]
    for token, (_, first), end in zip(meant, spans, ends, strict=True):
        pieces += [token, *encode_next(tokenizer, str(text)[first:end])]
    return pieces


def encode_next(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """As `encode`, for a text that goes on from another one: no blank is put before it."""
    return _behind(tokenizer, text, encode)


def _behind(
    tokenizer: PreTrainedTokenizerBase, text: str, encoder: Callable[[PreTrainedTokenizerBase, str], list[int]]
) -> list[int]:
    if not facts(tokenizer).blank_first or not text:
        return encoder(tokenizer, text)
    for anchor in _ANCHORS:
        alone, both = encoder(tokenizer, anchor), encoder(tokenizer, joined(anchor, text))
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    return encoder(tokenizer, text)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, longest: int) -> tuple[list[int], str]:
    """A prompt's tokens, at least one and at most `longest`, and its text as far as the tokens hold it.

    What begins every text (BOS) is there once, whoever wrote it, and survives the cut on the left. The text is without
    it, but for what a template wrote.
    """
    bos, start = tokenizer.bos_token_id, facts(tokenizer).start
    spans = control_spans(prompt)
    written = part(prompt, *spans[0]) if spans and spans[0][0] == 0 and encode(tokenizer, prompt)[:1] == [bos] else ""
    text = prompt if written else _without_start(tokenizer, prompt)
    ids = encode(tokenizer, text)
    if written:
        start, ids = ids[:1], ids[1:]
    room = longest - len(start)
    if room <= 0:
        start, room, written = [], longest, ""
    if len(ids) > room:
        ids, text = _cut(tokenizer, ids, room, written)
    return [*start, *ids] or [eos_id(tokenizer)], text


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """An answer's tokens behind its prompt, and its EOS."""
    return [*encode_next(tokenizer, spoken_control(tokenizer, answer_text(tokenizer, answer))), eos_id(tokenizer)]


def answer_text(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """An answer without the EOS that some data sets write out at its end."""
    eos = tokenizer.eos_token
    if not isinstance(eos, str) or eos not in answer:
        return answer
    ending = re.search(rf"(?:{re.escape(eos)}\s*)+\Z", answer)
    return part(answer, 0, ending.start()) if ending else answer


def encode_whole(tokenizer: PreTrainedTokenizerBase, text: str, longest: int) -> list[int]:
    """A whole text within what the tokenizer puts around every text; too long a one loses its beginning."""
    known, spans = facts(tokenizer), control_spans(text)
    if spans and spans[0][0] == 0 and text[: spans[0][1]] not in known.control.values():
        text = part(text, spans[0][1])  # another tokenizer's BOS
    ids = encode(tokenizer, _without_start(tokenizer, text))
    room = max(longest - len(known.start) - len(known.end), 0)
    tokens = [*known.start, *ids[max(len(ids) - room, 0) :], *known.end]
    return tokens[max(len(tokens) - longest, 0) :]


def encode_judged(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, longest: int, *, ended: bool
) -> list[int]:
    """A prompt as it is logged, control tokens spelled out, and its answer, for a model that judges them.

    They stand once within what the tokenizer puts around every text, the answer's EOS before what ends it. Too long a
    text loses the beginning of its prompt, never its BOS.
    """
    known, eos = facts(tokenizer), tokenizer.eos_token_id
    last = [eos] if ended and isinstance(eos, int) and eos not in known.end else []
    words = encode_next(tokenizer, spoken_control(tokenizer, answer_text(tokenizer, answer)))
    answered = [*words, *last, *known.end]
    asked = _without_start(tokenizer, special_control(tokenizer, prompt))
    room = max(longest - len(answered), len(known.start) + 1)
    tokens = [*(encode_prompt(tokenizer, asked, room)[0] if asked else known.start), *answered]
    if len(tokens) <= longest:
        return tokens
    start = known.start[:longest]
    return [*start, *tokens[len(tokens) - longest + len(start) :]]


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    known = facts(tokenizer)
    ids = _split(tokenizer, text)
    if not any(i in known.control for i in ids):
        return ids
    # The vocabulary itself, or an added token that is not called special, holds it as a word: its letters are encoded
    # apart.
    cuts = [0, *(match.start() + 1 for match in known.pattern.finditer(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    encoded = [_split(tokenizer, pieces[0]), *(_behind(tokenizer, piece, _split) for piece in pieces[1:])]
    return [i for piece in encoded for i in piece if i not in known.control]


def _split(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(str(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _without_start(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` without a BOS written out at its beginning, where the tokenizer puts one itself."""
    bos = tokenizer.bos_token
    if not isinstance(bos, str) or tokenizer.bos_token_id not in facts(tokenizer).start:
        return text
    while text.startswith(bos):
        text = part(text, len(bos))
    return text


def _cut(tokenizer: PreTrainedTokenizerBase, ids: list[int], room: int, written: str) -> tuple[list[int], str]:
    """The last tokens, at most `room`, as a text of their own is encoded, and that text.

    A cut may lie within a word or a character, whose end would be encoded otherwise: it then moves on a little.

    Args:
        written: the BOS that a template wrote, which begins the text and is not among the tokens.
    """
    for first in range(len(ids) - room, len(ids)):
        text = decode_prompt(tokenizer, ids[first:])
        again = encode(tokenizer, joined(written, text))[len(written) > 0 :]
        if len(again) <= room and not text.startswith(_NO_CHARACTER):
            return again, joined(written, text)
    return [], written


# --- tokens -> text ------------------------------------------------------------------------------------------------


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], before: Sequence[int] = ()) -> str:
    """The text of a response: without BOS, EOS, padding and unknown tokens; other control tokens are spelled out.

    Args:
        before: the prompt's tokens. Some decoders drop the first blank of whatever they are given.
    """
    known = facts(tokenizer)
    shown = [i for i in ids if i not in known.unspoken]
    if not known.blank_first:
        return _spelled(tokenizer, shown)
    context = [i for i in before if i not in known.control and i not in known.unspoken][-_CONTEXT:]
    given = _raw(tokenizer, context)
    whole = _spelled(tokenizer, [*context, *shown])
    return part(whole, len(given)) if whole.startswith(given) else _spelled(tokenizer, shown)


def decode_prompt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a prompt's tokens, every control token spelled out."""
    return _spelled(tokenizer, ids)


def shown_prompt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """A prompt as a model sees it, for a log: one line, control tokens visible, the middle of a long one left out."""
    text = _raw(tokenizer, ids)
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} [...] {text[len(text) - _SHOWN // 2 :]}"
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    visible = "".join(_visible(c) for c in escaped)
    return f'"{visible}"'


def _visible(character: str) -> str:
    if character == " " or printable(character) == character:
        return character
    return character.encode("unicode_escape").decode()


def _raw(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _spelled(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    control = facts(tokenizer).control
    text, spans = _raw(tokenizer, ids), []
    for place, token in enumerate(ids):
        if token in control:
            before = len(_raw(tokenizer, ids[:place]))
            first = text.find(control[token], max(before - 1, 0))
            if first >= 0:
                spans.append((first, first + len(control[token])))
    return MarkedText(text, spans) if spans else text


# --- where a response ends -----------------------------------------------------------------------------------------


def stop_ids(tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> frozenset[int]:
    """The control tokens among the stop strings, which end a response by their ids."""
    return frozenset(i for i, token in facts(tokenizer).control.items() if token in stop_strings)


def unreachable_stop(tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> str | None:
    """A stop string that no response can complete: a token that responses do not show beside other text."""
    known = facts(tokenizer)
    unseen = [token for i, token in known.control.items() if i in known.unspoken]
    return next((stop for stop in stop_strings if any(token in stop and token != stop for token in unseen)), None)
