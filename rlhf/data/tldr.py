"""dataset=tldr: summaries of Reddit posts (Stiennon et al. 2020), from the hub or from local files.

Pairs are rows {prompt, chosen, rejected} as in CarperAI/openai_summarize_comparisons, where the prompt ends with the
post and both answers begin with "TL;DR:". SFT texts are rows {prompt, label} as in CarperAI/openai_summarize_tldr,
where the prompt ends with "TL;DR:" and the label is the author's own summary. Here every prompt ends with "\\nTL;DR:",
so that the policy, the reward model and the check for held-out prompts see the same text in both; the blank before a
summary belongs to the summary.

RL prompts and reference answers are those of the SFT texts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import PARTS, Demonstration, Preference, TextData
from rlhf.data.form import Form, load_form, texts

CUE = "TL;DR:"


def load_tldr(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    return load_form(config, parts, Form("tldr", preferences, demonstration))


def preferences(row: Any) -> list[Preference]:
    prompt, chosen, rejected = texts(row, "prompt", "chosen", "rejected")
    return [Preference(_prompt(prompt), _summary(chosen), _summary(rejected))]


def demonstration(row: Any) -> Demonstration:
    prompt, label = texts(row, "prompt", "label")
    return Demonstration(_prompt(prompt), _summary(label))


def _prompt(text: str) -> str:
    post = text.strip().removesuffix(CUE).rstrip()
    return f"{post}\n{CUE}" if post else ""


def _summary(text: str) -> str:
    summary = text.strip().removeprefix(CUE).strip()
    return f" {summary}" if summary else ""
