"""Examples -> tensors, by the rules of `rlhf.text`.

Prompt and answer are tokenised apart: a response starts at the same token in every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batches import DemonstrationBatch, PreferenceBatch, PromptBatch, pad
from rlhf.config.dataset import DatasetConfig
from rlhf.control_tokens import MarkedText, eos_id, pad_id, part, spelled_control
from rlhf.data.examples import Demonstration, Dropped, Preference, columns_of
from rlhf.errors import printable
from rlhf.text import answer_text, encode_answer, encode_prompt, shown_prompt

Example = TypeVar("Example")
Batch = TypeVar("Batch")


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Demonstration], max_prompt_tokens: int
) -> PromptBatch:
    """Left-padded prompts, cut on the left to `max_prompt_tokens`, to the longest of them."""
    rows = [encode_prompt(tokenizer, example.prompt, max_prompt_tokens) for example in examples]
    ids, mask = pad([tokens for tokens, _ in rows], pad_id(tokenizer), left=True)
    references = [answer_text(tokenizer, example.response) for example in examples]
    return PromptBatch(ids, mask, [text for _, text in rows], references, columns_of(examples))


class _Examples(Generic[Example, Batch]):
    """Examples, tokenised as they are asked for: a large set never lies in memory as tensors."""

    encode: Callable[..., Batch]

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *limits: int, **options: int
    ) -> None:
        """
        Args:
            limits, options: the other arguments of `encode`.
        """
        self._examples = examples
        self._encode = partial(self.encode, tokenizer)
        self._limits, self._options = limits, options

    def __len__(self) -> int:
        return len(self._examples)

    def rows(self, index: Tensor) -> Batch:
        """The examples that `index` (an int64 vector) names, in its order, padded to the longest of them."""
        return self._encode([self._examples[i] for i in index.tolist()], *self._limits, **self._options)


UNCUT = 2**62
"""Tokens of a prompt that is not cut."""
REPORTED_PROMPTS = 2_000
"""Prompts that a report tokenises: a second's work, and enough for the share that is cut."""


def prompt_report(
    config: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Demonstration] | Sequence[Preference],
    dropped: Dropped,
    stop_strings: Sequence[str] = (),
) -> str:
    """What became of a data set's prompts: a line, one for each malformed row that can be named, one for what deserves
    a word, and the first prompt as the model sees it.

    Args:
        stop_strings: what ends a response beside the EOS, where responses are sampled.
    """
    read = min(len(examples), REPORTED_PROMPTS)
    prompts = [examples[i].prompt for i in range(read)]
    longest = config.max_prompt_tokens
    cut = sum(len(encode_prompt(tokenizer, prompt, longest + 1)[0]) > longest for prompt in prompts)
    first = f" of the first {read:,}" if read < len(examples) else ""
    counts = {
        f"{first} cut on the left to {longest:,} tokens": cut,
        " empty ones dropped": dropped.empty_prompts,
        " rows without a preference dropped": dropped.no_preference,
        " rows of held-out prompts dropped": dropped.held_out,
        " malformed rows skipped": dropped.malformed,
        " answers cut at the next turn": dropped.cut_answers,
        " rows of repeated prompts dropped": dropped.repeated,
    }
    said = [f"{len(examples):,} prompts", *(f"{count:,}{what}" for what, count in counts.items() if count)]
    if stop_strings:
        said.append(f"responses end at {', '.join(map(repr, stop_strings))} too")
    lines = [f"data: {config.name}: {', '.join(said)}", *(f"data: skipped {row}" for row in dropped.named)]
    lines += _spelled_out(config, tokenizer, prompts)
    tokens, _ = encode_prompt(tokenizer, prompts[0], longest)
    return "\n".join([*lines, f"data: the first prompt, {len(tokens):,} tokens: {shown_prompt(tokenizer, tokens)}"])


def _spelled_out(config: DatasetConfig, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """A line where prompts spell out control tokens."""
    spelled = [tokens for prompt in prompts if (tokens := spelled_control(tokenizer, prompt))]
    if not spelled:
        return []
    line = (
        f"data: {len(spelled):,} prompts spell out special tokens, as {printable(spelled[0][0])}; they stay plain text"
    )
    remedy = "; to put them where the model expects them is what dataset.template=chat is for"
    return [line + (remedy if tokenizer.chat_template and config.template == "none" else "")]


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Demonstration],
    max_prompt_tokens: int,
    max_new_tokens: int,
    *,
    loss_on_prompt: bool,
) -> DemonstrationBatch:
    """prompt + response + EOS, right-padded; the loss is on response and EOS, and on the answers that a prompt marks as
    its `turns`, or on all tokens but the first.

    A response that is cut at `max_new_tokens` has no EOS, as a cut rollout has none.
    """
    prompts = [encode_prompt(tokenizer, e.prompt, max_prompt_tokens)[0] for e in examples]
    answers = [encode_answer(tokenizer, e.response)[:max_new_tokens] for e in examples]
    ids, mask = pad([p + a for p, a in zip(prompts, answers, strict=True)], pad_id(tokenizer), left=False)
    lengths = torch.tensor([1 if loss_on_prompt else len(p) for p in prompts])
    loss_mask = mask & (torch.arange(ids.shape[1]) >= lengths[:, None])
    for row, (example, tokens) in enumerate(zip(examples, prompts, strict=True)):
        for first, end in _turns_in(tokenizer, example.prompt, tokens):
            loss_mask[row, first:end] = True
    return DemonstrationBatch(ids, mask, loss_mask)


def _turns_in(tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Which tokens of a prompt, which may be cut on the left, are those of its `turns`, each with the EOS behind it;
    never the first, which nothing predicts."""
    turns = prompt.turns if isinstance(prompt, MarkedText) else ()
    if not turns:
        return
    whole, _ = encode_prompt(tokenizer, prompt, UNCUT)
    lost = len(whole) - len(tokens)
    if whole[lost + 1 :] != list(tokens[1:]):  # cut within a word, whose end has other tokens
        return
    for turn in turns:
        first, end = (_alike(whole, encode_prompt(tokenizer, part(prompt, 0, place), UNCUT)[0]) for place in turn)
        end += whole[end : end + 1] == [eos_id(tokenizer)]
        if end - lost > 1:
            yield max(first - lost, 1), end - lost


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def encode_preferences(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Preference], max_prompt_tokens: int, max_new_tokens: int
) -> PreferenceBatch:
    """Both whole texts of each pair, ending with EOS."""
    prompts = [e.prompt for e in examples]
    chosen = encode_answered(tokenizer, prompts, [e.chosen for e in examples], max_prompt_tokens, max_new_tokens)
    rejected = encode_answered(tokenizer, prompts, [e.rejected for e in examples], max_prompt_tokens, max_new_tokens)
    return PreferenceBatch(*chosen, *rejected)


def encode_answered(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_prompt_tokens: int,
    max_new_tokens: int,
) -> tuple[Tensor, Tensor]:
    """prompt + answer + EOS as a reward model reads them, right-padded: (B, L) ids and mask.

    The EOS stays when an answer is cut to `max_new_tokens`: the score is read there.
    """
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = encode_answer(tokenizer, answer)[:-1][: max_new_tokens - 1]
        rows.append([*encode_prompt(tokenizer, prompt, max_prompt_tokens)[0], *tokens, eos_id(tokenizer)])
    return pad(rows, pad_id(tokenizer), left=False)


class Prompts(_Examples[Demonstration, PromptBatch]):
    """A data set's prompts."""

    encode = staticmethod(encode_prompts)


class Demonstrations(_Examples[Demonstration, DemonstrationBatch]):
    """SFT examples."""

    encode = staticmethod(encode_demonstrations)


class Preferences(_Examples[Preference, PreferenceBatch]):
    """Preference pairs."""

    encode = staticmethod(encode_preferences)
