"""Rows tokenised as they are asked for are those of the whole set tokenised at once; the report on a set's prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.chat import with_template
from rlhf.data.examples import Demonstration, Dropped, Preference, TextData
from rlhf.data.messages import plain_text
from rlhf.data.tokenize import (
    Demonstrations,
    Preferences,
    encode_demonstrations,
    encode_preferences,
    prompt_report,
)
from rlhf.models.loading import word_tokenizer
from tests.data.collected import settings

WORDS = [f"w{number}" for number in range(30)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["pad", "eos", *WORDS])}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="pad", eos_token="eos")


def words(count: int) -> str:
    return " ".join(WORDS[:count])


class Asked(Sequence):
    """Remembers which examples were read."""

    def __init__(self, examples: Sequence) -> None:
        self.examples, self.indices = examples, []

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):
        self.indices.append(index)
        return self.examples[index]


def test_demonstrations_are_tokenised_as_they_are_asked_for(tokenizer):
    examples = Asked([Demonstration(words(1 + n), words(2 * n + 1)) for n in range(8)])
    lazy = Demonstrations(tokenizer, examples, 4, 6, loss_on_prompt=False)
    assert len(lazy) == 8 and examples.indices == []
    batch = lazy.rows(torch.tensor([6, 0, 6]))
    assert examples.indices == [6, 0, 6]
    whole = encode_demonstrations(tokenizer, examples.examples, 4, 6, loss_on_prompt=False)
    expected = whole.rows(torch.tensor([6, 0, 6])).trimmed()
    for name in ("input_ids", "mask", "loss_mask"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))
    on_prompts = Demonstrations(tokenizer, examples, 4, 6, loss_on_prompt=True).rows(torch.tensor([0]))
    assert on_prompts.loss_mask.sum() == batch.loss_mask[1].sum()  # a prompt of one token has no loss
    on_prompts = Demonstrations(tokenizer, examples, 4, 6, loss_on_prompt=True).rows(torch.tensor([6]))
    assert on_prompts.loss_mask.sum() == batch.loss_mask[0].sum() + 3


def test_pairs_are_tokenised_as_they_are_asked_for(tokenizer):
    examples = Asked([Preference(words(1 + n), words(2 * n + 1), words(9 - n)) for n in range(8)])
    lazy = Preferences(tokenizer, examples, 4, 6)
    assert len(lazy) == 8 and examples.indices == []
    batch = lazy.rows(torch.tensor([5, 2]))
    assert examples.indices == [5, 2]
    expected = encode_preferences(tokenizer, examples.examples, 4, 6).rows(torch.tensor([5, 2])).trimmed()
    for name in ("chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))


def test_the_report_counts_cut_prompts_and_says_what_was_dropped(tokenizer):
    config = settings("hh", max_total_length=10, max_new_tokens=6)  # 4 tokens of prompt
    examples = [Demonstration(words(n), "") for n in (1, 4, 5, 9, 4)]
    report = prompt_report(config, tokenizer, examples, Dropped())
    assert report.splitlines() == [
        "data: hh: 5 prompts, 2 cut on the left to 4 tokens",
        'data: the first prompt, 1 tokens: "w0"',
    ]
    dropped = Dropped(2, 1, 1234, 5, 6, ("a.jsonl:3: not JSON", "a.jsonl:7: not JSON"))
    pairs = [Preference(words(n), "", "") for n in (1, 5)]
    assert prompt_report(config, tokenizer, pairs, dropped, ["Human:"]).splitlines() == [
        "data: hh: 2 prompts, 1 cut on the left to 4 tokens, 1 empty ones dropped, "
        "1,234 rows without a preference dropped, 5 rows of held-out prompts dropped, 2 malformed rows skipped, "
        "6 answers cut at the next turn, responses end at 'Human:' too",
        "data: skipped a.jsonl:3: not JSON",
        "data: skipped a.jsonl:7: not JSON",
        'data: the first prompt, 1 tokens: "w0"',
    ]


CHATML = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} [EOS] {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "longest", "length", "learnt"),
    [
        # Human: a Assistant: b Human: c Assistant: d [EOS]
        (None, 99, 9, [3, 7, 8]),
        (None, 4, 6, [4, 5]),  # cut to: b Human: c Assistant: -- nothing predicts its first token
        (None, 5, 7, [1, 5, 6]),
        # user a [EOS] assistant b [EOS] user c [EOS] assistant d [EOS]
        (CHATML, 99, 12, [4, 5, 10, 11]),
    ],
)
def test_every_answer_of_a_conversation_is_learnt(template, longest, length, learnt):
    words = ["Human:", "Assistant:", "user", "assistant", "a", "b", "c", "d"]
    tokenizer = word_tokenizer(words)
    tokenizer.chat_template = template
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in turns]
    data = TextData(sft=[Demonstration(plain_text(messages), " d", {}, json.dumps(messages))])

    def mask(every_turn: bool) -> list[int]:
        (example,) = with_template(settings("prompts"), data, tokenizer, every_turn).sft[:1]
        batch = encode_demonstrations(tokenizer, [example], longest, 9, loss_on_prompt=False)
        assert batch.loss_mask.shape == (1, length)
        return batch.loss_mask[0].nonzero().flatten().tolist()

    assert mask(True) == learnt
    assert mask(False) == [length - 2, length - 1]
