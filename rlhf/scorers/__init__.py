"""What scores a whole response. Imports torch.

| reward.name | score |
| --- | --- |
| learned | a reward model that was trained here, or any sequence classifier with one output |
| hh_gptj, tldr_gptj | the paper's reward models: GPT-J with a linear head, as bare state dicts |
| http | a server's |
| sentiment | a lexicon's |
| python | a function of the user's |
| verifiable | 1 for a right answer, 0 for a wrong one |

A scorer takes text, so that its tokenizer is its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.data import load_text_data
from rlhf.data.examples import NO_COLUMNS, Columns, DataError, Demonstration, TextData, columns_of
from rlhf.finite import NotFinite
from rlhf.random import endless_order
from rlhf.scorers.classifier import load_learned
from rlhf.scorers.gptj import load_hh_gptj, load_tldr_gptj
from rlhf.scorers.http import check_server, load_http
from rlhf.scorers.python import load_python
from rlhf.scorers.sentiment import SentimentScorer
from rlhf.scorers.verifiable import check_answers, load_verifiable


class Scorer(Protocol):
    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS, /) -> Tensor:
        """Scores of whole answers, (B,) float32 on the CPU; larger is better.

        Args:
            columns: what else the rows of the data have, an entry for each answer.
        """
        ...


SCORERS: dict[str, Callable[[RunConfig, Path | None, torch.device, TextData], Scorer]] = {
    "learned": load_learned,
    "hh_gptj": load_hh_gptj,
    "tldr_gptj": load_tldr_gptj,
    "http": load_http,
    "sentiment": lambda *_: SentimentScorer(),
    "python": load_python,
    "verifiable": load_verifiable,
}


def load_scorer(config: RunConfig, trained: Path | None, device: torch.device, data: TextData) -> Scorer:
    """The scorer that `config.reward` names.

    Args:
        trained: final/ of the reward model that was trained here, or reward.path; None where there is neither.
        data: whose reference answers the scores are normalised on, where reward.normalize asks for it.
    """
    reward = config.reward
    answered = config.stage.name != "online" or any(example.response for example in data.prompts)
    _check_references(config, answered)
    scorer = SCORERS[reward.name](config, trained, device, data)
    if reward.normalize == "none":
        return scorer
    # The references depend on the data and its seed alone: a run that goes on gets the same numbers again.
    return Normalised(scorer, *mean_and_std(scorer, reference_answers(data, config.dataset.seed), reward.normalize))


def check_reward(config: RunConfig) -> None:
    """Refuse, before a policy is trained that it would score, a reward which the data do not suit or whose secrets are
    not there; a server that does not answer yet is said."""
    reward = config.reward
    if reward.name == "http":
        check_server(config)
    if reward.name not in ("python", "verifiable") and reward.baseline != "reference":
        return
    data = load_text_data(config.dataset, ("prompts",))
    _check_references(config, any(example.response for example in data.prompts))
    if reward.name == "python":
        load_python(config, None, torch.device("cpu"), data)
    elif reward.name == "verifiable":
        check_answers(config, data)


def _check_references(config: RunConfig, answered: bool) -> None:
    if not answered and config.reward.baseline == "reference":
        raise DataError(f"reward.baseline=reference: dataset={config.dataset.name} has no reference answers; use none")


NUM_REFERENCES = 256
"""Reference answers whose scores give the normalisation: their mean to 1/16 of a standard deviation."""


@dataclass(frozen=True)
class Normalised:
    """A scorer's scores less `mean`, divided by `std`."""

    scorer: Scorer
    mean: float
    std: float

    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        """(B,) float32 on the CPU."""
        return (self.scorer.score(prompts, answers, columns) - self.mean) / self.std


def mean_and_std(scorer: Scorer, references: Sequence[Demonstration], how: str) -> tuple[float, float]:
    """Of the references' scores: ("mean") their mean and 1, ("mean_std") mean and population standard deviation."""
    texts = [e.prompt for e in references], [e.response for e in references]
    scores = scorer.score(*texts, columns_of(references)).double()
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    if not bool(scores.isfinite().all()):
        raise NotFinite(
            "the reward gives reference answers scores that are not finite; look at reward.path or .precision"
        )
    # One reference, or the same score for all: nothing to scale by.
    return mean, std or 1.0 if how == "mean_std" else 1.0


def parts_with_references(how: str) -> Sequence[str]:
    """The parts of the data that `reference_answers` reads, where scores are normalised."""
    return () if how == "none" else ("prompts", "sft")


def reference_answers(data: TextData, seed: int) -> list[Demonstration]:
    """At most 256 RL prompts with reference answers, drawn by `seed`; SFT texts where no prompt has one."""
    for examples in (data.prompts, data.sft):
        # One by one, since a large set lies on the disk; a list of all places would be larger than the tensor by far.
        order = endless_order(seed, "references", 0, len(examples), len(examples))
        places = itertools.chain.from_iterable(part.tolist() for part in order.split(NUM_REFERENCES))
        answered = (example for i in places if (example := examples[i]).response)
        if drawn := list(itertools.islice(answered, NUM_REFERENCES)):
            return drawn
    return []
