"""Offline RL: an iteration's responses are the data set's own, chosen and rejected, scored by the reward."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf.answers import Answers, scored_once, scores_file
from rlhf.batches import ILQLBatch, Rollouts
from rlhf.config import ILQLConfig, RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.distributed import gathered, own_rows
from rlhf.evaluation import ILQLEvaluator
from rlhf.ilql_update import ilql_update
from rlhf.kl import k1, sequence_kl
from rlhf.masked import masked_mean
from rlhf.models import Features, PolicyModels
from rlhf.models.ilql import ILQLHeads
from rlhf.optimization import adamw
from rlhf.random import endless_order, seed_torch
from rlhf.rewards import RunningMoments, score_responses, token_rewards
from rlhf.stages.context import RunContext
from rlhf.stages.loop import Progress, Responses, run_loop, skipping
from rlhf.stages.setup import Setup, build
from rlhf.training_batch import Measured, features_at


def run_offline(context: RunContext) -> dict[str, float]:
    """The whole run from its initial policy or its checkpoint; returns the last evaluation."""
    if isinstance(context.config.algo, ILQLConfig):
        return _run_ilql(context)
    setup = build(context)
    untrained = None if context.config.offline.refresh_values else _untrained_values(setup.models)
    return run_loop(context, setup, data_responses(context, setup, untrained))


@dataclass(frozen=True)
class Untrained:
    """The value network before training. Its parameters, which a resumed run draws again from its seed, are swapped
    in for the time of a measurement: frozen tensors are not held twice."""

    models: PolicyModels
    initial: Mapping[str, Tensor]
    """On the CPU, this rank's part where they are sharded: a GPU holds the network twice in a measurement alone."""

    @torch.no_grad()
    def values(self, measured: Measured, mask: Tensor, micro_batch_size: int) -> Tensor:
        """(B, T) float32, 0 on padding."""
        with swapped(self.models.named_parameters(), self.initial):
            parts = [
                self.models.values(measured.features.rows(rows)) for rows in own_rows(len(mask)).split(micro_batch_size)
            ]
        return torch.where(mask, gathered(torch.cat(parts), len(mask)), 0.0)


def _untrained_values(models: PolicyModels) -> Untrained:
    parameters = models.value_parameters or models.policy_parameters  # the latter hold a head on the policy
    return Untrained(
        models, {name: _own_part(parameter).to("cpu", copy=True) for name, parameter in parameters.items()}
    )


@contextlib.contextmanager
def swapped(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The named parameters with other values, until the context ends. In place: sharded ones have no other storage."""
    now = {name: _own_part(parameters[name]).clone() for name in tensors}
    _copy_into(parameters, tensors)
    try:
        yield
    finally:
        _copy_into(parameters, now)


@torch.no_grad()
def _copy_into(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        _own_part(parameters[name]).copy_(tensor)


@torch.no_grad()
def _own_part(parameter: Tensor) -> Tensor:
    """The parameter's own storage, without gradient: all of it, or what this rank holds of a sharded one."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


@dataclass(frozen=True)
class DataResponses:
    """`Responses` of the data set, each as often as the others, in an endless reshuffled order."""

    config: RunConfig
    answers: Answers
    all_scores: Tensor
    """(rows of `answers`,) float32, raw."""
    untrained: Untrained | None
    """What gives every value; None: the value network as it is."""
    sampled = False

    def rollouts(self, iteration: int) -> Rollouts:
        """The iteration's answers."""
        return self.answers.rows(self._order(iteration)).to(torch.device(self.config.hardware.device))

    def scores(self, rollouts: Rollouts, iteration: int) -> Tensor:
        """(B,) raw scores of them."""
        return self.all_scores[self._order(iteration)]

    def scaled(self, scores: Tensor, moments: RunningMoments) -> Tensor:
        """(B,) z-scored over the whole data set where offline.standardize_scores asks for it, then clipped."""
        if self.config.offline.standardize_scores:
            std, mean = torch.std_mean(self.all_scores.double())
            scores = ((scores - mean) / (std if std > 0 else 1.0)).float()
        clip = self.config.reward.clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def values(self, measured: Measured) -> Tensor:
        """(B, T) of the value network as it is, or as it was before training."""
        if self.untrained is None:
            return measured.values
        mask = measured.features.mask[:, measured.features.prompt_width :]
        return self.untrained.values(measured, mask, forward_rows(self.config))

    def _order(self, iteration: int) -> Tensor:
        count = self.config.rollout.num_responses
        return endless_order(self.config.seed, "data answers", (iteration - 1) * count, count, len(self.answers))


def data_responses(context: RunContext, setup: Setup, untrained: Untrained | None) -> DataResponses:
    """The data set's answers with their scores, which the first run of a sweep works out."""
    config = context.config
    dataset = config.dataset
    answers = Answers(setup.tokenizer, setup.data.pairs, dataset.max_prompt_tokens, dataset.max_new_tokens)

    def score(rollouts: Rollouts) -> Tensor:
        count = len(rollouts.mask)
        own = rollouts.rows(own_rows(count))
        return gathered(score_responses(setup.scorer, own, config.reward.missing_eos_score), count)

    path = scores_file(config, context.inputs.get("reward_model"), answers)
    return DataResponses(config, answers, scored_once(path, answers, score), untrained)


def _run_ilql(context: RunContext) -> dict[str, float]:
    setup, heads = _ilql_setup(context)

    def iterate(
        config: RunConfig, setup: Setup, responses: Responses, progress: Progress, iteration: int
    ) -> dict[str, float]:
        return ilql_iteration(config, setup, heads, responses, progress, iteration)

    metrics = run_loop(context, setup, data_responses(context, setup, None), iterate)
    if context.config.checkpoint.save_final != "none":
        context.folder.write(lambda: heads.save(context.folder.final))
    return metrics


def _ilql_setup(context: RunContext) -> tuple[Setup, ILQLHeads]:
    """The networks of any run but for a value network, and ILQL's heads, drawn from the run's seed."""
    config = context.config
    on_policy = dataclasses.replace(config.value, network="head", train="as_policy")
    setup = build(dataclasses.replace(context, config=dataclasses.replace(config, value=on_policy)))
    for name in [name for name in setup.models.policy_parameters if name.startswith("value_head.")]:
        del setup.models.policy_parameters[name]  # V is one of ILQL's heads
    assert isinstance(config.algo, ILQLConfig)
    architecture, settings = setup.models.model.config, config.optimization
    seed_torch(config.seed, "ilql heads")
    heads = ILQLHeads(
        architecture.hidden_size,
        architecture.vocab_size,
        two_qs=config.algo.two_qs,
        init_std=config.value.head_init_std,
        device=context.device,
    )
    trained = [*setup.models.policy_parameters.values(), *heads.trained_parameters()]
    optimizer = adamw(
        [(trained, settings.learning_rate)],
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    plain = setup.evaluator
    evaluator = ILQLEvaluator(
        config, plain.tokenizer, plain.prompts, plain.scorer, plain.gold, heads, stop_strings=plain.stop_strings
    )
    return dataclasses.replace(setup, optimizer=optimizer, evaluator=evaluator, heads=heads.named()), heads


def ilql_iteration(
    config: RunConfig, setup: Setup, heads: ILQLHeads, responses: Responses, progress: Progress, iteration: int
) -> dict[str, float]:
    """The algorithm box of ILQL: answers, scores, updates."""
    began = time.monotonic()
    rollouts = responses.rollouts(iteration)
    scores = responses.scores(rollouts, iteration)
    rewards = token_rewards(
        responses.scaled(scores, progress.moments).to(rollouts.mask.device),
        torch.zeros(rollouts.mask.shape, device=rollouts.mask.device),
        rollouts.mask,
        0.0,
    )
    batch = ILQLBatch(torch.arange(len(scores)), rollouts.mask, rewards)
    features, metrics = _measure(setup.models, rollouts, config.rollout.batch_size)
    prepared = time.monotonic()
    update_metrics, progress.step = ilql_update(
        config,
        setup.models,
        heads,
        setup.optimizer,
        batch,
        features,
        iteration=iteration,
        step=progress.step,
        skip=skipping(setup, progress, rollouts, {"score": scores, "reward": rewards}),
    )
    progress.iteration = iteration
    ended = time.monotonic()
    metrics = {"reward": float(scores.mean()), **metrics, **update_metrics}
    return {f"train/{name}": value for name, value in metrics.items()} | {
        "perf/scoring_seconds": prepared - began,
        "perf/update_seconds": ended - prepared,
        "perf/tokens_per_second": int(rollouts.lengths.sum()) / (ended - began),
    }


@torch.no_grad()
def _measure(models: PolicyModels, rollouts: Rollouts, rows_at_once: int) -> tuple[Features, dict[str, float]]:
    """The frozen part's features, and what the language model says of the answers before any update."""
    mask, count, columns = rollouts.mask, len(rollouts.mask), []
    own = rollouts.rows(own_rows(count))
    features = features_at(models, own, torch.arange(len(own.mask)), rows_at_once, by_length=False)
    for rows in torch.arange(len(own.mask)).split(rows_at_once):
        part = features.rows(rows)
        hidden, initial = models.policy_hidden(part), models.reference_hidden(part)
        logprobs, entropies = models.policy_logprobs_and_entropy(hidden, part.tokens)
        columns.append((k1(logprobs, models.reference_logprobs(initial, part.tokens)), entropies))
    log_ratios, entropies = (gathered(torch.cat(column), count) for column in zip(*columns, strict=True))
    return gathered(features, count), {
        "data_log_ratio": float(sequence_kl(log_ratios, mask)),
        "entropy": float(masked_mean(entropies, mask)),
        "response_length": float(rollouts.lengths.double().mean()),
        "eos_rate": float(rollouts.ended.double().mean()),
    }
