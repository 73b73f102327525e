"""Settings of the reward."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import setting


@dataclass(kw_only=True)
class RewardConfig:
    name: str = setting(
        "what scores a response: a reward model trained here or any sequence classifier with one output; GPT-J with a "
        "linear head in a bare state dict; a server; a lexicon's sentiment",
        choices=("learned", "hh_gptj", "tldr_gptj", "http", "sentiment"),
    )
    path: str | None = setting(
        "folder or hub name of a trained reward model; null with name=learned: train one on the data set's pairs",
        content=True,
    )
    checkpoint_file: str | None = setting("the bare state dict's file at `path`; null: path is in transformers' format")
    base: str | None = setting(
        "folder or hub name whose architecture a bare state dict fills; of an adapter: its base, null where it says",
        content=True,
    )
    tokenizer: str | None = setting("folder or hub name of its tokenizer; null: the one at `path`", content=True)
    prefix: str = setting("put before a text that is scored")
    suffix: str = setting("put behind a text that is scored, as an EOS written out; empty: its tokenizer's EOS")
    max_tokens: int | None = setting("longer texts are cut on the left; null: what max_total_length leaves", low=1)
    precision: str = setting("how the reward model's weights are held", choices=("fp32", "bf16", "fp16"))
    batch_size: int = setting("texts scored at once; how far they are padded can change a score's last bits", low=1)
    overlap: bool = setting(
        "score what has been sampled while more is sampled: with reward.name=http or on a GPU, where "
        "rollout.batch_size is less than a rank's responses; false: afterwards, in less memory"
    )
    url: str | None = setting("where name=http posts its texts")
    timeout_seconds: float = setting("longest wait for an answer of `url`", above=0, identity=False)
    retries: int = setting("further tries of a request that failed", low=0, identity=False)
    normalize: str = setting(
        "what scores are shifted and scaled by before RL: mean and standard deviation over reference answers, their "
        "mean alone, or nothing (a model trained here has been through it)",
        choices=("none", "mean", "mean_std"),
    )
    missing_eos_score: float | None = setting(
        "score of a response that never ended, in place of the reward model's; null: score the cut text"
    )
    scale: str = setting(
        "divide by the running standard deviation (no mean subtraction), or not", choices=("running", "none")
    )
    clip: float | None = setting("scores are clipped to +- this after scaling; null: not", above=0)
    baseline: str = setting(
        "subtract nothing, or the score of the prompt's reference answer; not from missing_eos_score",
        choices=("none", "reference"),
    )
