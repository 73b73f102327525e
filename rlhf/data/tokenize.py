"""Text -> tensors. Prompt and answer are tokenised apart: a response starts at the same token in every stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batches import DemonstrationBatch, PreferenceBatch, PromptBatch, pad
from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import Demonstration, Dropped, Preference


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Demonstration], max_prompt_tokens: int
) -> PromptBatch:
    """Left-padded prompts, cut on the left to `max_prompt_tokens`, to the longest of them."""
    rows = [prompt_tokens(tokenizer, example.prompt, max_prompt_tokens + 1) for example in examples]
    cut = [len(row) > max_prompt_tokens for row in rows]
    rows = [row[-max_prompt_tokens:] for row in rows]
    ids, mask = pad(rows, pad_id(tokenizer), left=True)
    texts = [
        decode(tokenizer, row) if was_cut else example.prompt
        for example, row, was_cut in zip(examples, rows, cut, strict=True)
    ]
    return PromptBatch(ids, mask, texts, [example.response for example in examples])


class Prompts:
    """A data set's prompts, tokenised as they are asked for: a large set never lies in memory as tensors."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Demonstration], max_prompt_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self.examples = examples
        self.max_prompt_tokens = max_prompt_tokens

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: Tensor) -> PromptBatch:
        """The prompts that `index` (an int64 vector) names, in its order, padded to the longest of them."""
        return encode_prompts(self.tokenizer, [self.examples[i] for i in index.tolist()], self.max_prompt_tokens)


class Demonstrations:
    """SFT examples, tokenised as they are asked for."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Demonstration],
        max_prompt_tokens: int,
        max_new_tokens: int,
        *,
        loss_on_prompt: bool,
    ) -> None:
        self.tokenizer = tokenizer
        self.examples = examples
        self.limits = max_prompt_tokens, max_new_tokens
        self.loss_on_prompt = loss_on_prompt

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: Tensor) -> DemonstrationBatch:
        """The examples that `index` (an int64 vector) names, in its order, padded to the longest of them."""
        picked = [self.examples[i] for i in index.tolist()]
        return encode_demonstrations(self.tokenizer, picked, *self.limits, loss_on_prompt=self.loss_on_prompt)


class Preferences:
    """Preference pairs, tokenised as they are asked for."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Preference],
        max_prompt_tokens: int,
        max_new_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.examples = examples
        self.limits = max_prompt_tokens, max_new_tokens

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: Tensor) -> PreferenceBatch:
        """The pairs that `index` (an int64 vector) names, in its order, each side padded to the longest of it."""
        return encode_preferences(self.tokenizer, [self.examples[i] for i in index.tolist()], *self.limits)


REPORTED_PROMPTS = 2_000
"""Prompts that a report tokenises: a second's work, and enough for the share that is cut."""


def prompt_report(
    config: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Demonstration] | Sequence[Preference],
    dropped: Dropped,
) -> str:
    """What became of a data set's prompts: a line, and one for each malformed row that can be named."""
    read = min(len(examples), REPORTED_PROMPTS)
    prompts = [examples[i].prompt for i in range(read)]
    lengths = [len(tokens) for tokens in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    cut = sum(length > config.max_prompt_tokens for length in lengths)
    first = f" of the first {read:,}" if read < len(examples) else ""
    counts = {
        f"{first} cut on the left to {config.max_prompt_tokens:,} tokens": cut,
        " empty ones dropped": dropped.empty_prompts,
        " rows without a preference dropped": dropped.no_preference,
        " rows of held-out prompts dropped": dropped.held_out,
        " malformed rows skipped": dropped.malformed,
    }
    told = [f"{len(examples):,} prompts", *(f"{count:,}{what}" for what, count in counts.items() if count)]
    lines = [f"data: {config.name}: {', '.join(told)}", *(f"data: skipped {row}" for row in dropped.named)]
    return "\n".join(lines)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, max_prompt_tokens: int) -> list[int]:
    """A prompt's last tokens; at least one, since a policy must start from something."""
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"][-max_prompt_tokens:]
    return tokens or [eos_id(tokenizer)]


def answer_tokens(tokenizer: PreTrainedTokenizerBase, text: str, max_new_tokens: int) -> list[int]:
    """An answer and its EOS; an answer that is cut at `max_new_tokens` has none, as a cut rollout has none."""
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], eos_id(tokenizer)]
    return tokens[:max_new_tokens]


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Demonstration],
    max_prompt_tokens: int,
    max_new_tokens: int,
    *,
    loss_on_prompt: bool,
) -> DemonstrationBatch:
    """prompt + response + EOS, right-padded; the loss is on response and EOS, or on all tokens but the first."""
    prompts = [prompt_tokens(tokenizer, e.prompt, max_prompt_tokens) for e in examples]
    answers = [answer_tokens(tokenizer, e.response, max_new_tokens) for e in examples]
    ids, mask = pad([p + a for p, a in zip(prompts, answers, strict=True)], pad_id(tokenizer), left=False)
    lengths = torch.tensor([1 if loss_on_prompt else len(p) for p in prompts])
    loss_mask = mask & (torch.arange(ids.shape[1]) >= lengths[:, None])
    return DemonstrationBatch(ids, mask, loss_mask)


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
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"][: max_new_tokens - 1]
        rows.append([*prompt_tokens(tokenizer, prompt, max_prompt_tokens), *tokens, eos_id(tokenizer)])
    return pad(rows, pad_id(tokenizer), left=False)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """The text of some tokens, special ones left out."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer gives every tokenizer a pad token"
    return tokenizer.pad_token_id


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.eos_token_id, int), "load_tokenizer refuses a tokenizer without EOS"
    return tokenizer.eos_token_id
