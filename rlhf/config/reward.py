"""Settings of the reward."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import setting


@dataclass(kw_only=True)
class RewardConfig:
    name: str = setting("what scores a response: the reward model trained here", choices=("learned",))
    path: str | None = setting(
        "folder of a trained reward model; null: train one on the data set's pairs", content=True
    )
    missing_eos_score: float | None = setting(
        "score of a response that never ended, in place of the reward model's; null: score the cut text"
    )
    scale: str = setting(
        "divide by the running standard deviation (no mean subtraction), or not", choices=("running", "none")
    )
    clip: float | None = setting("scores are clipped to +- this after scaling; null: not", above=0)
    baseline: str = setting(
        "subtract nothing, or the score of the prompt's reference answer", choices=("none", "reference")
    )
