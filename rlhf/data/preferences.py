"""dataset=preferences, dataset=prompts and dataset=hh: pairs of answers, or prompts, in any common form of rows.

Which columns are read stands in docs/data.md. dataset=hh is preferences whose place on the hub is known, Anthropic's
helpful and harmless dialogues (Bai et al. 2022): {prompt, chosen, rejected} as in Dahoas/rm-static, or two whole
dialogues {chosen, rejected} as in Anthropic/hh-rlhf.

Rows with an empty answer (4 of 1,800 in hh-rlhf's harmless test part) or with two equal ones have no preference to
teach and are left out. SFT texts and reference answers are the preferred responses, or the prompts' own, unless
`dataset.sft_path` or `dataset.sft_hub` gives others.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace

from rlhf.config.dataset import DatasetConfig
from rlhf.data.columns import ANSWER_COLUMNS, PAIR_COLUMNS, ColumnReader
from rlhf.data.examples import PARTS, Prompt, TextData
from rlhf.data.form import Form, load_form
from rlhf.data.hh import stop_strings


def load_hh(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    """RL prompts are those of the SFT texts, where they are a data set of their own."""
    read = ColumnReader()
    form = Form("hh", read.preferences, read.demonstration, found=read.found, stop_strings=stop_strings)
    return load_form(config, parts, form)


def load_preferences(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    read = ColumnReader(_named(config, *PAIR_COLUMNS, *(ANSWER_COLUMNS if config.has_sft_texts else ())))
    return _load(config, parts, read, Form("preferences", read.preferences, read.demonstration))


def load_prompts(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    read = ColumnReader(_named(config, *PAIR_COLUMNS, *ANSWER_COLUMNS))
    return _load(config, parts, read, Form("prompts", lambda row: [read.prompt(row)], read.demonstration, kind=Prompt))


def _named(config: DatasetConfig, *names: str) -> dict[str, str]:
    return {what: name for what in names if (name := getattr(config.columns, what)) is not None}


def _load(config: DatasetConfig, parts: Collection[str], read: ColumnReader, form: Form) -> TextData:
    name = json.dumps([form.name, read.named])
    form = replace(form, name=name, found=read.found, stop_strings=stop_strings, prompts_of_sft_texts=False)
    return replace(load_form(config, parts, form), system=config.system or "")
