"""Offline RL: an iteration's responses are the data set's own, chosen and rejected, scored by the reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf.answers import Answers, scored_once, scores_file
from rlhf.batches import Rollouts
from rlhf.config import RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.data.examples import Demonstration
from rlhf.data.tokenize import Prompts
from rlhf.distributed import gathered, own_rows
from rlhf.models import PolicyModels
from rlhf.random import endless_order
from rlhf.rewards import score_responses
from rlhf.stages.context import RunContext
from rlhf.stages.initial_scores import InitialScores, initial_scores
from rlhf.stages.loop import Responses, run_loop
from rlhf.stages.setup import Setup, build
from rlhf.training_batch import Measured
from rlhf.update import rows_of_groups


def run_offline(context: RunContext) -> dict[str, float]:
    """As `run_loop`."""
    setup = build(context)
    algo, settings = context.config.algo, context.config.offline
    untrained = UntrainedValues(setup.models) if algo.critic and not settings.refresh_values else None
    return run_loop(context, setup, data_responses(context, setup, untrained))


class UntrainedValues:
    """The value network before training. Its parameters, which a resumed run draws again from its seed, are swapped in
    for the time of a measurement: frozen tensors are not held twice."""

    def __init__(self, models: PolicyModels) -> None:
        self.models = models
        parameters = models.value_parameters or models.policy_parameters  # the latter hold a head on the policy
        # On the CPU, so that a GPU holds the network twice in a measurement alone.
        self.initial = {name: local(parameter).to("cpu", copy=True) for name, parameter in parameters.items()}

    @torch.no_grad()
    def values(self, measured: Measured, mask: Tensor, micro_batch_size: int) -> Tensor:
        """(B, T) float32, 0 on padding."""
        named = self.models.named_parameters()
        parameters = {name: local(named[name]) for name in self.initial}
        trained = {name: parameter.clone() for name, parameter in parameters.items()}
        rows = own_rows(len(mask)).split(micro_batch_size)
        try:
            for name, parameter in parameters.items():
                parameter.copy_(self.initial[name])
            values = torch.cat([self.models.values(measured.features.rows(part)) for part in rows])
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(trained[name])
        return torch.where(mask, gathered(values, len(mask)), 0.0)


def local(parameter: Tensor) -> Tensor:
    """The parameter's own storage, without gradient: all of it, or what this rank holds of a sharded one."""
    detached = parameter.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


@dataclass(frozen=True)
class DataResponses(Responses):
    """The data set's answers, each as often as the others, in an endless reshuffled order. A group of two is a
    prompt's chosen and rejected answer."""

    config: RunConfig
    answers: Answers
    all_scores: Tensor
    """(rows of `answers`,) float32, raw."""
    untrained: UntrainedValues | None
    """What gives every value; None: the value network as it is."""
    initial: InitialScores | None = None
    sampled = False

    def rollouts(self, iteration: int) -> Rollouts:
        return self.answers.rows(self._order(iteration)).to(torch.device(self.config.hardware.device))

    def scores(self, rollouts: Rollouts, iteration: int) -> Tensor:
        return self.all_scores[self._order(iteration)]

    def references(self, iteration: int) -> Tensor | None:
        return None if self.initial is None else self.initial.of(iteration)

    def scaled(self, scores: Tensor, std: float) -> Tensor:
        """Z-scored over the whole data set where offline.standardize_scores asks for it, then clipped."""
        if self.config.offline.standardize_scores:
            spread, mean = torch.std_mean(self.all_scores.double())
            scores = ((scores - mean) / (spread if spread > 0 else 1.0)).float()
        clip = self.config.reward.clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def values(self, measured: Measured) -> Tensor | None:
        """(B, T) of the value network as it is, or as it was before training."""
        if self.untrained is None:
            return measured.values
        mask = measured.features.mask[:, measured.features.prompt_width :]
        return self.untrained.values(measured, mask, forward_rows(self.config))

    def _order(self, iteration: int) -> Tensor:
        return answer_rows(self.config, len(self.answers), iteration)


def answer_rows(config: RunConfig, total: int, iteration: int) -> Tensor:
    """(B,) int64, which of `total` answers an iteration has."""
    size = config.algo.group_size
    count = config.rollout.num_responses // size
    order = endless_order(config.seed, "data answers", (iteration - 1) * count, count, total // size)
    return rows_of_groups(order, size)


def data_responses(context: RunContext, setup: Setup, untrained: UntrainedValues | None) -> DataResponses:
    """The data set's answers with their scores, which the first run of a sweep works out."""
    config = context.config
    dataset = config.dataset
    longest = dataset.max_prompt_tokens
    answers = Answers(setup.tokenizer, setup.data.pairs, longest, dataset.max_new_tokens)

    def score(rollouts: Rollouts) -> Tensor:
        count = len(rollouts.mask)
        part = rollouts.rows(own_rows(count))
        return gathered(score_responses(setup.scorer, part, config.reward.missing_eos_score), count)

    path = scores_file(config, context.inputs.get("reward_model"), answers)
    scores = scored_once(path, answers, score)
    prompts = Prompts(
        setup.tokenizer, [Demonstration(pair.prompt, "", pair.columns) for pair in setup.data.pairs], longest
    )
    initial = initial_scores(context, setup, prompts, lambda number: answer_rows(config, len(answers), number) // 2)
    return DataResponses(config, answers, scores, untrained, initial)
