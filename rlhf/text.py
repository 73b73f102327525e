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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rlhf.errors import printable
from rlhf.marked_text import MarkedText, control_spans, joined, part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "[PAD]"
_BLANK_MARKS = ("▁", "Ġ")
"""With which vocabularies write a blank."""
_ANCHORS = ("\n", ".", "x")
"""A text is encoded behind one of these where a tokenizer puts a blank before every text."""
_CONTEXT = 8
"""Tokens of a prompt that a response is decoded with, where a decoder drops a text's first blank."""
_NO_CHARACTER = "\ufffd"
"""As which a part of a character's bytes is read."""
_ROWLESS = "padding_without_a_row"
"""Where a tokenizer's settings name its own padding token, if the model has no embedding for it."""
_MARK = re.compile(r"<[^<>\s]{2,}>|<[^<>\s/]>|\[[A-Z_/]{2,}\]")
"""What an added token that a tokenizer does not call special looks like where it is a control token (<think>)."""
_HTML = re.compile(
    r"</?(a|b|i|s|u|p|h[1-6]|hr|br|em|li|ol|ul|td|th|tr|sub|sup|code|pre|div|span|strong|table|thead|tbody|tfoot|caption|"
    r"blockquote)/?>"
)
"""Gemma has tokens for these, which are text."""
_SHOWN = 400
"""Characters of a prompt that a log line shows."""


@dataclass(frozen=True)
class _Facts:
    """What a tokenizer does, found out once."""

    start: list[int]
    """What it puts before every text: BOS, or nothing."""
    end: list[int]
    """What it puts behind every text."""
    control: dict[int, str]
    """Its control tokens, as they are spelled; the unknown token is none, since any text can hold it."""
    spoken: re.Pattern[str]
    """Any of those that the tokenizer does not call special, which an assistant's own text may hold (<think>)."""
    unspoken: frozenset[int]
    """Special tokens that no text of a response shows: BOS, EOS, padding, unknown."""
    pattern: re.Pattern[str]
    """Any control token, spelled out."""
    blank_first: bool
    """Whether it puts a blank before every text, which its decoder takes away."""


_FACTS: WeakKeyDictionary[PreTrainedTokenizerBase, _Facts] = WeakKeyDictionary()


def _facts(tokenizer: PreTrainedTokenizerBase) -> _Facts:
    known = _FACTS.get(tokenizer)
    if known is None:
        known = _FACTS[tokenizer] = _facts_of(tokenizer)
    return known


def _facts_of(tokenizer: PreTrainedTokenizerBase) -> _Facts:
    word = _any_word(tokenizer)
    plain, around = tokenizer(word, add_special_tokens=False)["input_ids"], tokenizer(word)["input_ids"]
    before = next((i for i in range(len(around)) if around[i : i + len(plain)] == plain), 0)
    named = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if _is_mark(tokenizer, str(token))}
    control = {i: token for token, i in {**marks, **added, **named}.items() if token}
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        control.pop(tokenizer.unk_token_id, None)
    unspoken = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk"))
    ordinary = [token for token in marks if token not in added and token not in named]
    return _Facts(
        start=around[:before],
        end=around[before + len(plain) :],
        control=control,
        unspoken=frozenset(i for i in unspoken if isinstance(i, int)),
        spoken=_any_of(token for token in ordinary if marks[token] != _rowless(tokenizer)),
        pattern=_any_of(control.values()),
        blank_first=str(tokenizer.convert_ids_to_tokens(plain)[0]).startswith(_BLANK_MARKS) if plain else False,
    )


def _is_mark(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether an added token is a control token, special or not."""
    written = len(token.strip()) > 1 and token in str(tokenizer.chat_template or "")
    looks = _MARK.fullmatch(token) is not None and _HTML.fullmatch(token) is None
    return written or looks or token == tokenizer.init_kwargs.get(_ROWLESS)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of them, the longest first; without any it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _any_word(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that can be encoded: without an unknown token, a tokenizer of words knows its own words alone."""
    for word in ("a", *tokenizer.get_vocab()):
        try:
            if tokenizer(word, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
                return word
        except Exception:  # tokenizers raises no type of its own
            continue
    return ""


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.eos_token_id, int), "load_tokenizer refuses a tokenizer without EOS"
    return tokenizer.eos_token_id


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands where a mask says that nothing stands; the EOS in a tokenizer without padding of its own."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else eos_id(tokenizer)


def name_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer without a padding token use one that it has; none is added, so none can be sampled.

    Padding is known by its place, so that the EOS will do where there is nothing else.
    """
    if tokenizer.pad_token_id is not None:
        return
    control = _facts(tokenizer).control.values()
    padding = next((token for token in control if "pad" in token.lower()), None)
    tokenizer.pad_token = padding or tokenizer.unk_token or tokenizer.eos_token
    _FACTS.pop(tokenizer, None)


def add_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """A padding token of its own for a tokenizer that pads with its EOS.

    For reward models: transformers' own forward pass reads a score at the last token that is no padding.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
        _FACTS.pop(tokenizer, None)


def end_with(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Let `token`, with which a chat template ends a turn, be the EOS."""
    if token != tokenizer.eos_token:
        tokenizer.eos_token = token
        _FACTS.pop(tokenizer, None)


def pad_within(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Let the EOS be the padding where the tokenizer's own lies behind a model's `rows`.

    Saved with the tokenizer, so that whoever loads it knows that the token has no row.
    """
    if pad_id(tokenizer) >= rows:
        tokenizer.init_kwargs[_ROWLESS] = str(tokenizer.pad_token)
        tokenizer.pad_token = tokenizer.eos_token
        _FACTS.pop(tokenizer, None)


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embeddings the tokens have use for.

    A model may have more rows than there are tokens (padded vocabularies): these can be neither read nor meant. Padding
    behind all other tokens was added to a model that has not learned it, and needs none: it is known by its place.
    """
    meant: tuple[Any, ...] = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    behind: tuple[Any, ...] = (tokenizer.pad_token_id, _rowless(tokenizer))
    padding = {*behind} - {*meant}
    return 1 + max(i for i in tokenizer.get_vocab().values() if i not in padding)


def _rowless(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The padding token that `pad_within` has put out of use."""
    token = tokenizer.init_kwargs.get(_ROWLESS)
    return tokenizer.get_vocab().get(token) if isinstance(token, str) else None


def special_control(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` of a template: every control token that it spells out is one."""
    spans = [match.span() for match in _facts(tokenizer).pattern.finditer(text)]
    return MarkedText(text, spans) if spans else text


def spelled_control(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The control tokens that `text` spells out and that are none, since nobody but its author put them there."""
    spans = set(control_spans(text))
    return [match.group() for match in _facts(tokenizer).pattern.finditer(text) if match.span() not in spans]


def spoken_control(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` of an assistant, whose <think> and <tool_call> are meant; what its tokenizer calls special is not."""
    spoken = [match.span() for match in _facts(tokenizer).spoken.finditer(text)]
    return MarkedText(text, sorted({*control_spans(text), *spoken})) if spoken else text


# --- text -> tokens ------------------------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text from its beginning, without what the tokenizer puts around it."""
    control = {token: i for i, token in _facts(tokenizer).control.items()}
    spans = [(a, b) for a, b in control_spans(text) if text[a:b] in control]
    if not spans:
        return _plain(tokenizer, str(text))
    ids: list[int] = tokenizer(str(text), add_special_tokens=False, split_special_tokens=False)["input_ids"]
    meant = [control[text[a:b]] for a, b in spans]
    if [i for i in ids if i in _facts(tokenizer).control] == meant:
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
    if not _facts(tokenizer).blank_first or not text:
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
    bos, start = tokenizer.bos_token_id, _facts(tokenizer).start
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
    facts, spans = _facts(tokenizer), control_spans(text)
    if spans and spans[0][0] == 0 and text[: spans[0][1]] not in facts.control.values():
        text = part(text, spans[0][1])  # another tokenizer's BOS
    ids = encode(tokenizer, _without_start(tokenizer, text))
    room = max(longest - len(facts.start) - len(facts.end), 0)
    tokens = [*facts.start, *ids[max(len(ids) - room, 0) :], *facts.end]
    return tokens[max(len(tokens) - longest, 0) :]


def encode_judged(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, longest: int, *, ended: bool
) -> list[int]:
    """A prompt as it is logged, control tokens spelled out, and its answer, for a model that judges them.

    They stand once within what the tokenizer puts around every text, the answer's EOS before what ends it. Too long a
    text loses the beginning of its prompt, never its BOS.
    """
    facts, eos = _facts(tokenizer), tokenizer.eos_token_id
    last = [eos] if ended and isinstance(eos, int) and eos not in facts.end else []
    words = encode_next(tokenizer, spoken_control(tokenizer, answer_text(tokenizer, answer)))
    answered = [*words, *last, *facts.end]
    asked = _without_start(tokenizer, special_control(tokenizer, prompt))
    room = max(longest - len(answered), len(facts.start) + 1)
    tokens = [*(encode_prompt(tokenizer, asked, room)[0] if asked else facts.start), *answered]
    if len(tokens) <= longest:
        return tokens
    start = facts.start[:longest]
    return [*start, *tokens[len(tokens) - longest + len(start) :]]


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    facts = _facts(tokenizer)
    ids = _split(tokenizer, text)
    if not any(i in facts.control for i in ids):
        return ids
    # The vocabulary itself, or an added token that is not called special, holds it as a word: its letters are encoded
    # apart.
    cuts = [0, *(match.start() + 1 for match in facts.pattern.finditer(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    encoded = [_split(tokenizer, pieces[0]), *(_behind(tokenizer, piece, _split) for piece in pieces[1:])]
    return [i for piece in encoded for i in piece if i not in facts.control]


def _split(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(str(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _without_start(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` without a BOS written out at its beginning, where the tokenizer puts one itself."""
    bos = tokenizer.bos_token
    if not isinstance(bos, str) or tokenizer.bos_token_id not in _facts(tokenizer).start:
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
    facts = _facts(tokenizer)
    shown = [i for i in ids if i not in facts.unspoken]
    if not facts.blank_first:
        return _spelled(tokenizer, shown)
    context = [i for i in before if i not in facts.control and i not in facts.unspoken][-_CONTEXT:]
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
    control = _facts(tokenizer).control
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
    return frozenset(i for i, token in _facts(tokenizer).control.items() if token in stop_strings)


def unreachable_stop(tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> str | None:
    """A stop string that no response can complete: a token that responses do not show beside other text."""
    facts = _facts(tokenizer)
    unseen = [token for i, token in facts.control.items() if i in facts.unspoken]
    return next((stop for stop in stop_strings if any(token in stop and token != stop for token in unseen)), None)
