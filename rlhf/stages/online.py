"""Online RL: an iteration's responses are sampled from the policy and scored by the reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batches import Rollouts
from rlhf.config import RunConfig
from rlhf.distributed import gathered, own_rows
from rlhf.random import endless_order, sampling_uniforms
from rlhf.rewards import RunningMoments, scale_scores, score_responses
from rlhf.rollout import generate
from rlhf.stages.context import RunContext
from rlhf.stages.loop import Setup, build, run_loop
from rlhf.training_batch import Measured


def run_online(context: RunContext) -> dict[str, float]:
    """The whole run from its initial policy or its checkpoint; returns the last evaluation."""
    setup = build(context)
    return run_loop(context, setup, Sampled(context.config, setup))


@dataclass(frozen=True)
class Sampled:
    """`Responses` of the policy as it is."""

    config: RunConfig
    setup: Setup
    sampled = True

    def rollouts(self, iteration: int) -> Rollouts:
        """The iteration's prompts, next in an endless reshuffled order, with a response each."""
        config, setup = self.config, self.setup
        count = config.rollout.num_responses
        order = endless_order(config.seed, "prompts", (iteration - 1) * count, count, len(setup.prompts))
        uniforms = sampling_uniforms(config.seed, "rollout", iteration, count, config.dataset.max_new_tokens)
        own = own_rows(count)
        part = generate(
            setup.models,
            setup.tokenizer,
            setup.prompts.rows(order).rows(own),  # padded as all of them are
            uniforms[own],
            batch_size=config.rollout.batch_size,
            temperature=config.rollout.temperature,
            stop_strings=config.dataset.stop_strings,
        )
        return gathered(part, count)

    def scores(self, rollouts: Rollouts, iteration: int) -> Tensor:
        """(B,) raw scores, less those of the reference answers where reward.baseline asks for it.

        reward.missing_eos_score stays what it is, whatever the reference.
        """
        config, scorer, count = self.config, self.setup.scorer, len(rollouts.mask)
        own = rollouts.rows(own_rows(count))
        scores = score_responses(scorer, own, config.reward.missing_eos_score)
        if config.reward.baseline == "reference":
            references = scorer.score(own.prompts, own.references)
            if config.reward.missing_eos_score is not None:
                references = torch.where(own.ended.cpu(), references, 0.0)
            scores = scores - references
        return gathered(scores, count)

    def scaled(self, scores: Tensor, moments: RunningMoments) -> Tensor:
        """(B,) divided by the running standard deviation and clipped, as `reward` says."""
        return scale_scores(scores, moments, self.config.reward)

    def values(self, measured: Measured) -> Tensor:
        """(B, T) of the value network as it is."""
        return measured.values
