"""What scores a whole response. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.data.examples import TextData
from rlhf.models.loading import moved
from rlhf.models.reward_model import load_reward_model


class Scorer(Protocol):
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Scores of whole answers, (B,) float32 on the CPU; larger is better."""
        ...


def load_scorer(config: RunConfig, trained: Path | None, device: torch.device, data: TextData) -> Scorer:
    """The scorer that `config.reward` names.

    Args:
        trained: final/ of the reward model that was trained here, or reward.path; None where there is neither.
        data: whose reference answers the scores are normalised on, where reward.normalize asks for it.
    """
    assert trained is not None
    reward_model = load_reward_model(
        trained, max_prompt_tokens=config.dataset.max_prompt_tokens, max_new_tokens=config.dataset.max_new_tokens
    )
    moved(reward_model.model, device)
    return reward_model
