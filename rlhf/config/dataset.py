"""Settings of the data sets."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import setting


@dataclass(kw_only=True)
class DatasetConfig:
    name: str = setting("the data set", choices=("letters", "reviews", "hh"))
    path: str | None = setting("local file in the data set's format instead of the hub or the package", content=True)
    seed: int = setting("seed of made-up data and of the split into train and held-out parts", low=0)
    num_sft: int | None = setting("SFT examples; null: all", low=1)
    num_pairs: int | None = setting("preference pairs for training; null: all", low=1)
    num_test_pairs: int = setting("held-out preference pairs", low=1)
    num_prompts: int | None = setting("prompts for RL; null: all", low=1)
    num_eval_prompts: int = setting("held-out prompts that evaluations use; even, for the two halves", low=2)
    label_noise_scale: float = setting(
        "Bradley-Terry scale of made-up labels: the better answer wins with probability sigmoid(scale * gold gap)",
        above=0,
    )
    max_prompt_tokens: int = setting("longer prompts are cut on the left", low=1)
    max_new_tokens: int = setting("longest response, tokens", low=1)
    stop_strings: list[str] = setting("a response ends where it completes one of these; the scored text drops it")
    kl_budgets: list[float] = setting(
        "KL budgets at which efficiency is reported, nats; the first is the headline", above=0
    )
