"""Reward models: the learned one, and any sequence classifier with one output.

The learned one is a language model with a linear score at a text's last token, in transformers' own format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from rlhf.batches import pad
from rlhf.config import TrainableConfig
from rlhf.config.reward import NORMALISATION, label_problem
from rlhf.control_tokens import pad_id, rows_needed
from rlhf.data.examples import NO_COLUMNS, Columns
from rlhf.data.tokenize import encode_answered
from rlhf.errors import reason
from rlhf.finite import NotFinite, check_loaded
from rlhf.models.adapters import adapter_at, resize
from rlhf.models.families import KEPT_IN_FLOAT32
from rlhf.models.features import positions_of
from rlhf.models.hub import CLASSIFIER, NOT_RUN, ModelError, OwnCode, loading
from rlhf.models.layers import FLOAT32, FrozenWeights, compute_in_float32, to_float32
from rlhf.models.loading import check_positions, load_pretrained, load_tokenizer, load_weights
from rlhf.models.saving import write_trained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(eq=False)
class RewardModel:
    """Scores texts, at most `batch_size` at once. `mean` and `std` are what raw scores are shifted and divided by.

    A text longer than `max_tokens`, its EOS counted, loses its beginning.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    max_prompt_tokens: int
    max_new_tokens: int
    mean: float = 0.0
    std: float = 1.0
    max_tokens: int | None = None
    batch_size: int = 64

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
    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        """Normalised scores of whole answers, (B,) float32 on the CPU."""
        device = next(self.model.parameters()).device
        parts = []
        for first in range(0, len(prompts), self.batch_size):
            rows = slice(first, first + self.batch_size)
            ids, mask = encode_answered(
                self.tokenizer, prompts[rows], answers[rows], self.max_prompt_tokens, self.max_new_tokens + 1
            )
            if (most := self.max_tokens) is not None:  # rows without their beginnings
                texts = [row[valid].tolist()[-most:] for row, valid in zip(ids, mask, strict=True)]
                ids, mask = pad(texts, 0, left=False)
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
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise NotFinite(
                f"the scores of reference answers have mean {self.mean} and standard deviation {self.std}; try a "
                "smaller reward_model.learning_rate"
            )
        write_trained(self.model, self.tokenizer, folder, train, "reward_model.train", weights)
        (folder / NORMALISATION).write_text(json.dumps({"mean": self.mean, "std": self.std}))


def new_reward_model(
    policy: Path,
    tokenizer: PreTrainedTokenizerBase,
    frozen: FrozenWeights = FLOAT32,
    own_code: OwnCode = NOT_RUN,
    **limits: int,
) -> RewardModel:
    """A reward model that starts from a policy, with a head drawn at standard deviation 1 / sqrt(d + 1), bias 0.

    Stiennon et al. 2020, via Huang et al. 2024. Seed torch before.

    Raises:
        ModelError: damaged files, or a policy for shorter texts.
    """
    with loading("reward model", policy, own_code=own_code):
        if (policy / ADAPTER_CONFIG).is_file():
            adapted, _ = load_pretrained(policy, frozen, own_code=own_code)
            adapted.config.num_labels = 1
            model = AutoModelForSequenceClassification.from_config(
                adapted.config, dtype=torch.float32, trust_remote_code=own_code.allowed
            )
            setattr(model, model.base_model_prefix, adapted.base_model)
        else:
            own_code.warn(policy)
            config = AutoConfig.from_pretrained(policy, trust_remote_code=own_code.allowed)
            classifier_class(config, "fp32", policy, own_code, "reward model")
            model = AutoModelForSequenceClassification.from_pretrained(
                policy, num_labels=1, trust_remote_code=own_code.allowed, **frozen.options()
            )
    check_loaded(dict(model.base_model.named_parameters()), policy, "model.path")
    resize(model, max(model.config.vocab_size, rows_needed(tokenizer), pad_id(tokenizer) + 1))
    compute_in_float32(model)
    reward_model = RewardModel(model.eval(), tokenizer, **limits)
    check_positions(model.config, policy, limits["max_prompt_tokens"] + limits["max_new_tokens"])
    to_float32(reward_model.head.parameters())
    nn.init.normal_(reward_model.head.weight, std=1.0 / math.sqrt(reward_model.head.in_features + 1))
    return reward_model


def load_reward_model(
    folder: Path,
    *,
    precision: str = "fp32",
    base: str | None = None,
    tokenizer: str | None = None,
    own_code: OwnCode = NOT_RUN,
    **limits: Any,
) -> RewardModel:
    """A reward model that `RewardModel.save` wrote, or its adapter beside the same two files.

    Args:
        limits: of `RewardModel`.

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
    model = load_classifier(folder, precision, base, own_code)
    words = load_tokenizer(tokenizer or folder, own_code, "reward.tokenizer" if tokenizer else "reward.path")
    return RewardModel(model, words, mean=mean, std=std, **limits)


def load_classifier(
    path: str | Path,
    precision: str = "fp32",
    base: str | None = None,
    own_code: OwnCode = NOT_RUN,
    label: str | None = None,
) -> PreTrainedModel:
    """A frozen sequence classifier, its weights held in `precision` but for a head called `score`.

    Args:
        path: a folder or hub name of a whole model, or of a peft adapter, which is merged into its base.
        base: where an adapter's base lies; None: where the adapter says.
        label: as in `output_of`.

    Raises:
        ModelError: nothing there, damaged, weights missing, no such output, a model that compares two answers, or code
            of its own that is not allowed.
    """
    adapter = adapter_at(path, "reward.path", base)
    if base is not None and adapter is None:
        raise ModelError(f"reward.base: {path} is no adapter and needs no base; leave it null")
    if adapter is not None and adapter.config.task_type == "CAUSAL_LM":
        raise ModelError(f"reward.path: {path} is an adapter for CAUSAL_LM; give a reward model, not a policy")

    def prepare(config: PretrainedConfig, place: str | Path) -> type[PreTrainedModel]:
        if adapter is not None and label is None:
            config.num_labels = 1  # the base may be a policy, which has no labels
        names = getattr(config, "architectures", None) or []
        if hasattr(config, "ranker_type") or any(str(name).endswith("PairRM") for name in names):  # LLM-Blender's
            raise ModelError(
                f"reward.path: {path} compares two answers and scores none alone; give a model that scores one answer"
            )
        output_of(config, label, path)
        return classifier_class(config, precision, place, own_code)

    model = load_weights(
        path,
        adapter,
        prepare,
        option="reward.path",
        own_code=own_code,
        wanted="a reward model, not a policy",
        dtype=DTYPES[precision],
    )
    check_head(model)
    return model.eval().requires_grad_(False)


def output_of(config: PretrainedConfig, label: str | None, path: str | Path) -> int:
    """Which output of a classifier is the score.

    Args:
        label: its name or its number from 0; None: it has one.

    Raises:
        ModelError: there is none of that name or number, or none was named and there are several.
    """
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    if problem := label_problem(names, label, path):
        raise ModelError(problem)
    if label is None:
        return 0
    return names.index(label) if label in names else int(label)


def classifier_class(
    config: PretrainedConfig,
    precision: str,
    place: str | Path = "",
    own_code: OwnCode = NOT_RUN,
    option: str = "reward.path",
) -> type[PreTrainedModel]:
    """The architecture's sequence classifier; below float32 it keeps a head called `score` in float32.

    Args:
        place: where the model lies, which may bring a classifier of its own.
    """
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    brought = (getattr(config, "auto_map", None) or {}).get(CLASSIFIER)
    if brought and own_code.allowed:
        kind = get_class_from_dynamic_module(brought, str(place))
    if kind is None and brought:
        raise own_code.refusal(place, option)
    if kind is None:
        raise ModelError(
            f"reward.name: transformers has no sequence classifier of architecture {config.model_type}; give one of "
            "another as reward.path, or a reward without one (reward=http)"
        )
    if precision == "fp32":
        return kind
    kept = [*(getattr(kind, KEPT_IN_FLOAT32, None) or ()), "score"]
    return type(kind.__name__, (kind,), {KEPT_IN_FLOAT32: kept})


def check_head(model: PreTrainedModel) -> None:
    """
    Raises:
        ModelError: the head called `score` was rounded to fewer bits when it was loaded.
    """
    head = getattr(model, "score", None)
    if isinstance(head, nn.Module) and any(parameter.dtype != torch.float32 for parameter in head.parameters()):
        raise ModelError(
            f"reward.precision: transformers {transformers.__version__} does not keep a reward model's head in float32 "
            "when it loads the rest in fewer bits; use reward.precision=fp32"
        )
