"""The learned reward: a language model with a linear score at a text's last token, in transformers' own format."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.batches import pad
from rlhf.config import TrainableConfig
from rlhf.data.tokenize import encode_answered
from rlhf.errors import reason
from rlhf.finite import NotFinite, check_loaded
from rlhf.models.classifier import classifier_class, load_classifier
from rlhf.models.errors import ModelError, loading
from rlhf.models.features import positions_of
from rlhf.models.held import hold, to_float32
from rlhf.models.loading import FLOAT32, Held, check_positions, load_pretrained, load_tokenizer, widen_vocabulary
from rlhf.models.own_code import CLASSIFIER, NOT_RUN, OwnCode
from rlhf.models.saving import end_alike, save_whole, write_trained

NORMALISATION = "reward_normalisation.json"


class RewardModel:
    """Scores texts, at most `batch_size` at once. `mean` and `std` are what raw scores are shifted and divided by.

    A text longer than `max_tokens`, its EOS counted, loses its beginning.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_tokens: int,
        max_new_tokens: int,
        mean: float = 0.0,
        std: float = 1.0,
        max_tokens: int | None = None,
        batch_size: int = 64,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.mean = mean
        self.std = std
        self.max_tokens = max_tokens
        self.batch_size = batch_size

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
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden[torch.arange(len(hidden)), last].float()).squeeze(-1)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Normalised scores of whole answers, (B,) float32 on the CPU."""
        device = next(self.model.parameters()).device
        parts = []
        for first in range(0, len(prompts), self.batch_size):
            rows = slice(first, first + self.batch_size)
            ids, mask = encode_answered(
                self.tokenizer, prompts[rows], answers[rows], self.max_prompt_tokens, self.max_new_tokens + 1
            )
            if self.max_tokens is not None:
                ids, mask = _last_tokens(ids, mask, self.max_tokens)
            parts.append(self.raw_scores(ids.to(device), mask.to(device)).cpu())
        return (torch.cat(parts) - self.mean) / self.std

    def save(
        self, folder: Path, train: TrainableConfig | None = None, weights: dict[str, Tensor] | None = None
    ) -> None:
        """save_pretrained form, or the adapter alone where `train` says so, plus the normalisation.

        Args:
            weights: as in `rlhf.models.saving.save_model`.

        Raises:
            NotFinite: a weight, or what scores are normalised by, is NaN or infinite.
        """
        end_alike(self.model, self.tokenizer)
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise NotFinite(
                f"the scores of reference answers have mean {self.mean} and standard deviation {self.std}; try a "
                "smaller reward_model.learning_rate"
            )
        if train is None:
            save_whole(self.model, folder)
        else:
            write_trained(self.model, folder, train, "reward_model.train", weights)
        self.tokenizer.save_pretrained(folder)
        (folder / NORMALISATION).write_text(json.dumps({"mean": self.mean, "std": self.std}))


def _last_tokens(ids: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Right-padded rows without their beginnings: at most `count` tokens of each."""
    kept = [row[valid].tolist()[-count:] for row, valid in zip(ids, mask, strict=True)]
    return pad(kept, 0, left=False)


def new_reward_model(
    policy_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    held: Held = FLOAT32,
    own_code: OwnCode = NOT_RUN,
    **limits: int,
) -> RewardModel:
    """A reward model that starts from a policy, with a head drawn at standard deviation 1 / sqrt(d + 1), bias 0.

    Stiennon et al. 2020, via Huang et al. 2024. Seed torch before.

    Raises:
        ModelError: damaged files, or a policy for shorter texts.
    """
    reward_model = RewardModel(_headless(policy_folder, tokenizer, held, own_code), tokenizer, **limits)
    check_positions(reward_model.model.config, policy_folder, sum(limits.values()))
    to_float32(reward_model.head.parameters())
    nn.init.normal_(reward_model.head.weight, std=1.0 / math.sqrt(reward_model.head.in_features + 1))
    return reward_model


def _headless(policy: Path, tokenizer: PreTrainedTokenizerBase, held: Held, own_code: OwnCode) -> PreTrainedModel:
    """A policy's network under a score that means nothing yet."""
    options = held.options() | {"trust_remote_code": own_code.allowed}
    with loading("reward model", policy):
        if not (policy / ADAPTER_CONFIG).is_file():
            own_code.check(policy, CLASSIFIER, "reward model")
            config = AutoConfig.from_pretrained(policy, trust_remote_code=own_code.allowed)
            classifier_class(config, "fp32", policy if own_code.allowed else None)
            model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, **options)
        else:
            whole, _ = load_pretrained(policy, held, own_code=own_code)
            whole.config.num_labels = 1
            model = AutoModelForSequenceClassification.from_config(
                whole.config, dtype=torch.float32, trust_remote_code=own_code.allowed
            )
            setattr(model, model.base_model_prefix, whole.base_model)
    check_loaded(dict(model.base_model.named_parameters()), policy, "model.path")
    widen_vocabulary(model, tokenizer)
    hold(model)
    return model.eval()


def load_reward_model(
    folder: Path,
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    max_tokens: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    base: str | None = None,
    tokenizer: str | None = None,
    own_code: OwnCode = NOT_RUN,
) -> RewardModel:
    """A reward model that `RewardModel.save` wrote, or its adapter beside the same two files.

    Raises:
        ModelError: nothing there, or damaged.
    """
    path = folder / NORMALISATION
    try:
        normalisation = json.loads(path.read_text())
        mean, std = float(normalisation["mean"]), float(normalisation["std"])
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f"mean {mean}, std {std}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"reward.path: no reward model in {folder} ({path.name} is missing or damaged: {reason(error)})"
        ) from error
    return RewardModel(
        load_classifier(folder, precision, base, own_code),
        load_tokenizer(tokenizer or folder, own_code, "reward.tokenizer" if tokenizer else "reward.path"),
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        max_tokens=max_tokens,
        batch_size=batch_size,
        mean=mean,
        std=std,
    )
