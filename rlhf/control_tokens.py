"""What a tokenizer's control tokens are, where a text spells them out, and how a tokenizer pads and ends.

Text is text: what looks like a control token is one only where a `MarkedText` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "[PAD]"
_BLANK_MARKS = ("▁", "Ġ")
"""With which vocabularies write a blank."""
_ROWLESS = "padding_without_a_row"
"""Where a tokenizer's settings name its own padding token, if the model has no embedding for it."""
_MARK = re.compile(r"<[^<>\s]{2,}>|<[^<>\s/]>|\[[A-Z_/]{2,}\]")
"""What an added token that a tokenizer does not call special looks like where it is a control token (<think>)."""
_HTML = re.compile(
    r"</?(a|b|i|s|u|p|h[1-6]|hr|br|em|li|ol|ul|td|th|tr|sub|sup|code|pre|div|span|strong|table|thead|tbody|tfoot|caption|"
    r"blockquote)/?>"
)
"""Gemma has tokens for these, which are text."""
Span = tuple[int, int]
"""First character and the one after the last."""


class MarkedText(str):
    """A text some places of which are control tokens, spelled out; what looks like one elsewhere is plain text."""

    control: tuple[Span, ...]
    messages: Sequence[Mapping[str, Any]]
    """The conversation that the whole text writes, for whoever writes it otherwise; empty where it is none, or cut."""
    turns: tuple[Span, ...]
    """Answers within a prompt that SFT learns beside the one behind it."""

    def __new__(
        cls,
        text: str,
        control: Iterable[Span] = (),
        messages: Sequence[Mapping[str, Any]] = (),
        turns: Iterable[Span] = (),
    ) -> MarkedText:
        made = super().__new__(cls, text)
        made.control = tuple(control)
        made.messages = messages
        made.turns = tuple(turns)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(self), self.control, self.messages, self.turns


def control_spans(text: str) -> tuple[Span, ...]:
    return text.control if isinstance(text, MarkedText) else ()


def joined(*texts: str) -> str:
    """Texts one behind the other, each with its control tokens."""
    spans, length = [], 0
    for text in texts:
        spans += [(first + length, end + length) for first, end in control_spans(text)]
        length += len(text)
    whole = "".join(texts)
    return MarkedText(whole, spans) if spans else whole


def part(text: str, first: int, end: int | None = None) -> str:
    """text[first:end] with its control tokens."""
    plain = str(text)[first:end]
    spans = [(a - first, b - first) for a, b in control_spans(text) if a >= first and b - first <= len(plain)]
    return MarkedText(plain, spans) if spans else plain


@dataclass(frozen=True)
class Facts:
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


_FACTS: WeakKeyDictionary[PreTrainedTokenizerBase, Facts] = WeakKeyDictionary()


def facts(tokenizer: PreTrainedTokenizerBase) -> Facts:
    known = _FACTS.get(tokenizer)
    if known is None:
        known = _FACTS[tokenizer] = _facts_of(tokenizer)
    return known


def _facts_of(tokenizer: PreTrainedTokenizerBase) -> Facts:
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
    return Facts(
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
    control = facts(tokenizer).control.values()
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
    spans = [match.span() for match in facts(tokenizer).pattern.finditer(text)]
    return MarkedText(text, spans) if spans else text


def spelled_control(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The control tokens that `text` spells out and that are none, since nobody but its author put them there."""
    spans = set(control_spans(text))
    return [match.group() for match in facts(tokenizer).pattern.finditer(text) if match.span() not in spans]


def spoken_control(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` of an assistant, whose <think> and <tool_call> are meant; what its tokenizer calls special is not."""
    spoken = [match.span() for match in facts(tokenizer).spoken.finditer(text)]
    return MarkedText(text, sorted({*control_spans(text), *spoken})) if spoken else text
