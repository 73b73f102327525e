"""The learned reward: a language model with a linear score at a text's last token, in transformers' own format."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.tokenize import encode_answered, pad_id
from rlhf.models.base import positions_of
from rlhf.models.loading import ModelError, load_tokenizer

NORMALISATION = "reward_normalisation.json"


class RewardModel:
    """Scores texts. `mean` and `std` are what raw scores are shifted and divided by."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_tokens: int,
        max_new_tokens: int,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.mean = mean
        self.std = std

    @property
    def head(self) -> nn.Linear:
        """The linear score, which AutoModelForSequenceClassification calls `score`."""
        head = self.model.score
        assert isinstance(head, nn.Linear)
        return head

    def raw_scores(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """The score at each row's last valid token: (B, L), (B, L) bool -> (B,) float32."""
        hidden = self.model.base_model(
            input_ids=input_ids, attention_mask=mask.long(), position_ids=positions_of(mask), use_cache=False
        ).last_hidden_state
        last = mask.sum(1) - 1
        return self.head(hidden[torch.arange(len(hidden)), last].float()).squeeze(-1)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], answers: Sequence[str], batch_size: int = 64) -> Tensor:
        """Normalised scores of whole answers, (B,) float32 on the CPU."""
        device = next(self.model.parameters()).device
        parts = []
        for first in range(0, len(prompts), batch_size):
            rows = slice(first, first + batch_size)
            ids, mask = encode_answered(
                self.tokenizer, prompts[rows], answers[rows], self.max_prompt_tokens, self.max_new_tokens + 1
            )
            parts.append(self.raw_scores(ids.to(device), mask.to(device)).cpu())
        return (torch.cat(parts) - self.mean) / self.std

    def save(self, folder: Path) -> None:
        """save_pretrained form plus the normalisation."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / NORMALISATION).write_text(json.dumps({"mean": self.mean, "std": self.std}))


def new_reward_model(policy_folder: Path, tokenizer: PreTrainedTokenizerBase, **limits: int) -> RewardModel:
    """A reward model that starts from a policy, with a head drawn at standard deviation 1 / sqrt(d + 1), bias 0.

    Stiennon et al. 2020, via Huang et al. 2024. Seed torch before.
    """
    reward_model = RewardModel(_load(policy_folder), tokenizer, **limits)
    nn.init.normal_(reward_model.head.weight, std=1.0 / math.sqrt(reward_model.head.in_features + 1))
    reward_model.model.config.pad_token_id = pad_id(tokenizer)
    return reward_model


def load_reward_model(folder: Path, **limits: int) -> RewardModel:
    """A reward model that `RewardModel.save` wrote.

    Raises:
        ModelError: nothing there, or damaged.
    """
    path = folder / NORMALISATION
    try:
        normalisation = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"reward.path: no reward model in {folder} ({path.name} is missing or damaged)") from error
    return RewardModel(_load(folder), load_tokenizer(folder), **limits, **normalisation)


def _load(folder: Path) -> PreTrainedModel:
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    except Exception as error:  # whatever safetensors or transformers raise on damaged files
        raise ModelError(f"reward model: cannot load {folder} ({str(error).splitlines()[0][:200]})") from error
    return model.eval()
