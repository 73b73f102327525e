"""reward=learned: what the reward-model stage wrote, or any sequence classifier of transformers with one output."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf.config import RunConfig
from rlhf.models.classifier import load_classifier
from rlhf.models.errors import ModelError
from rlhf.models.loading import moved, own_code_of
from rlhf.models.reward_model import NORMALISATION, RewardModel, load_reward_model
from rlhf.scorers.classifier import TextClassifier, reward_code, text_classifier


def load_learned(config: RunConfig, trained: Path | None, device: torch.device) -> RewardModel | TextClassifier:
    """The model at `trained`, which is told apart by the normalisation that the reward-model stage writes.

    That one reads prompt, answer and EOS token by token as it was trained to; any other model reads text.
    """
    assert trained is not None, "without reward.path a reward model is trained first"
    reward = config.reward
    if reward.path is not None and not (trained / NORMALISATION).is_file():
        model = load_classifier(reward.path, reward.precision, reward.base, reward_code(config))
        return text_classifier(config, model, reward.tokenizer or reward.path, device)
    given = reward.path is not None
    for option in ("prefix", "suffix") if given else ():
        if getattr(reward, option):
            raise ModelError(f"reward.{option}: {trained} was trained here, on texts without one; leave it empty")
    reward_model = load_reward_model(
        trained,
        max_prompt_tokens=config.dataset.max_prompt_tokens,
        max_new_tokens=config.dataset.max_new_tokens,
        max_tokens=reward.max_tokens,
        batch_size=reward.batch_size,
        precision=reward.precision,
        base=reward.base if given else None,
        tokenizer=reward.tokenizer if given else None,
        own_code=reward_code(config) if given else own_code_of(config.model),
    )
    moved(reward_model.model, device)
    return reward_model
