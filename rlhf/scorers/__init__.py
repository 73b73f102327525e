"""What scores a whole response. Imports torch.

| reward.name | score |
| --- | --- |
| learned | a reward model that was trained here, or any sequence classifier with one output |
| hh_gptj, tldr_gptj | the paper's reward models: GPT-J with a linear head, as bare state dicts |
| http | a server's |
| sentiment | a lexicon's |

A scorer takes text, so that its tokenizer is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.data.examples import DataError, TextData
from rlhf.scorers.gptj import load_hh_gptj, load_tldr_gptj
from rlhf.scorers.http import load_http
from rlhf.scorers.learned import load_learned
from rlhf.scorers.normalisation import normalised
from rlhf.scorers.sentiment import load_sentiment


class Scorer(Protocol):
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Scores of whole answers, (B,) float32 on the CPU; larger is better."""
        ...


SCORERS: dict[str, Callable[[RunConfig, Path | None, torch.device], Scorer]] = {
    "learned": load_learned,
    "hh_gptj": load_hh_gptj,
    "tldr_gptj": load_tldr_gptj,
    "http": load_http,
    "sentiment": load_sentiment,
}


def load_scorer(config: RunConfig, trained: Path | None, device: torch.device, data: TextData) -> Scorer:
    """The scorer that `config.reward` names.

    Args:
        trained: final/ of the reward model that was trained here, or reward.path; None where there is neither.
        data: whose reference answers the scores are normalised on, where reward.normalize asks for it.
    """
    reward = config.reward
    answered = config.stage.name != "online" or any(example.response for example in data.prompts)
    if not answered and reward.baseline == "reference":
        raise DataError(f"reward.baseline=reference: dataset={config.dataset.name} has no reference answers; use none")
    scorer = SCORERS[reward.name](config, trained, device)
    if reward.normalize == "none":
        return scorer
    return normalised(scorer, data, reward.normalize, config.dataset.seed)
