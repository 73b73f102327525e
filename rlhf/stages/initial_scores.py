"""What the initial policy's responses to the prompts that a run learns from are worth, for algorithms that compare with
them: drawn and scored once, before training, and kept in the cache for every run that learns from the same prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf.answers import scored_once
from rlhf.batches import Rollouts
from rlhf.config import RunConfig, StageConfig
from rlhf.config.identity import run_id
from rlhf.data.tokenize import Prompts
from rlhf.distributed import gathered, own_rows
from rlhf.random import sampling_uniforms
from rlhf.rewards import score_responses
from rlhf.rollout import generate
from rlhf.stages.context import RunContext
from rlhf.stages.setup import Setup


@dataclass(frozen=True)
class InitialScores:
    rows: Callable[[int], Tensor]
    """iteration -> (B,) int64, its prompts."""
    places: dict[int, int]
    """Where a prompt stands in `scores`."""
    scores: Tensor
    """(prompts, N) float32, raw."""

    def of(self, iteration: int) -> Tensor:
        """(B, N) raw scores of an iteration's prompts."""
        return self.scores[torch.tensor([self.places[row] for row in self.rows(iteration).tolist()])]


def initial_scores(
    context: RunContext, setup: Setup, prompts: Prompts, rows: Callable[[int], Tensor]
) -> InitialScores | None:
    """Those of all prompts that the run will see, algo.reference_samples each; None where that is 0.

    Args:
        setup: with the policy as it is before training.
        rows: iteration -> (B,) int64, its prompts among `prompts`.
    """
    config, each = context.config, context.config.algo.reference_samples
    if each == 0:
        return None
    seen = dict.fromkeys(row for i in range(1, config.rollout.iterations + 1) for row in rows(i).tolist())
    places = {row: place for place, row in enumerate(sorted(seen))}
    context.say(f"compares with {each} responses of the initial policy to each of {len(places):,} prompts")
    responses = InitialResponses(config, setup, prompts, list(places), each)

    def score(rollouts: Rollouts) -> Tensor:
        count = len(rollouts.mask)
        part = rollouts.rows(own_rows(count))
        return gathered(score_responses(setup.scorer, part, config.reward.missing_eos_score), count)

    scores = scored_once(responses.file(), responses, score, what="responses of the initial policy")
    return InitialScores(rows, places, scores.view(-1, each))


@dataclass(frozen=True)
class InitialResponses:
    """`each` responses to each of some prompts, one prompt's after another's; the draws are the prompt's own."""

    config: RunConfig
    setup: Setup
    prompts: Prompts
    chosen: list[int]
    """Which prompts."""
    each: int

    def __len__(self) -> int:
        return len(self.chosen) * self.each

    def rows(self, index: Tensor) -> Rollouts:
        config, count = self.config, len(index)
        numbers = torch.tensor([self.chosen[row] for row in (index // self.each).tolist()])
        width = config.dataset.max_new_tokens
        draws = {
            number: sampling_uniforms(config.evaluation.seed, "initial responses", number, self.each, width)
            for number in set(numbers.tolist())
        }
        rows = zip(numbers.tolist(), (index % self.each).tolist(), strict=True)
        uniforms, own = torch.stack([draws[number][place] for number, place in rows]), own_rows(count)
        rollouts = generate(
            self.setup.models,
            self.setup.tokenizer,
            self.prompts.rows(numbers).rows(own),
            uniforms[own],
            sampling=config.rollout.sampling,
            batch_size=config.rollout.batch_size,
            stop_strings=self.setup.stop_strings,
        )
        return gathered(rollouts, count)

    def file(self) -> Path:
        """Where their scores are kept: by what the initial policy, its sampling and its reward follow from, which the
        id of the run that makes the evaluation's reference samples holds, and by the prompts."""
        config, hardware = self.config, self.config.hardware
        depends_on = {
            "run": run_id(dataclasses.replace(config, stage=StageConfig(name="reference_samples"))),
            "prompts": [self.chosen, self.prompts.rows(torch.tensor(self.chosen)).texts],
            "each": self.each,
            "hardware": [hardware.device, hardware.threads, hardware.ranks],
        }
        key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
        return Path(config.cache_dir) / "scores" / f"initial-{key}.txt"
