"""Epochs of shuffled minibatches over one rollout batch: losses, backward, one optimizer step a minibatch."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlhf.algorithms import Algorithm
from rlhf.batches import LossOutput, Totals, TrainingBatch
from rlhf.config import RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.distributed import own_rows, sum_gradients, sum_numbers
from rlhf.finite import NotFinite
from rlhf.models import Features, PolicyModels
from rlhf.models.features import micro_batches
from rlhf.optimization import REMEDIES, clip_and_step, schedule_factor, set_learning_rate
from rlhf.random import permutation

Skip = Callable[[NotFinite, int, Tensor], None]
"""(what was not finite, the optimizer step, the minibatch's rows in the rollout) -> nothing; see `BadSteps`."""


def update(
    config: RunConfig,
    algorithm: Algorithm,
    models: PolicyModels,
    optimizer: torch.optim.Optimizer,
    batch: TrainingBatch,
    features: Features,
    *,
    iteration: int,
    step: int,
    skip: Skip | None = None,
) -> tuple[dict[str, float], int]:
    """All epochs over `batch`.

    Args:
        features: of the whole rollout batch, as `measure` cached them.
        step: optimizer steps done before.
        skip: called for a step that is left out since its loss or gradient is not finite; None: it is an error.

    Returns:
        Metrics (without the prefix train/), averaged over the minibatches, and the optimizer steps done after. Those
        left out, be it that float16 overflowed (counted in `skipped_steps`), are among the steps.

    Raises:
        NotFinite: a loss or gradient is, and `skip` is None or raises it.
    """
    settings, sums, counts = config.optimization, defaultdict[str, float](float), defaultdict[str, int](int)
    total_steps, before, bad = num_optimizer_steps(config), step, 0
    heads = [] if algorithm.heads is None else algorithm.heads.trained_parameters()
    networks = {"policy": [*models.policy_parameters.values(), *heads], "value": [*models.value_parameters.values()]}
    networks = {name: parameters for name, parameters in networks.items() if parameters}
    remedies = remedies_for(config, models.value_on_policy)
    for epoch in range(settings.epochs):
        for rows in minibatches_of(config, len(batch.mask), iteration, epoch):
            minibatch = algorithm.before_loss(batch.rows(rows))
            try:
                metrics = sum_numbers(accumulate_gradients(config, algorithm, models, minibatch, features))
                check_losses(metrics, step, remedies)
                sum_gradients(parameter for parameters in networks.values() for parameter in parameters)
                set_learning_rate(optimizer, schedule_factor(step, total_steps, 0, settings.schedule))
                norms = clip_and_step(optimizer, networks, settings.max_grad_norm, step, models.scaler, remedies)
            except NotFinite as error:
                if skip is None:
                    raise
                optimizer.zero_grad(set_to_none=True)
                skip(error, step, rows)
                step, bad = step + 1, bad + 1
                continue
            step += 1
            if norms:  # none where float16 overflowed and the weights stayed as they were
                algorithm.after_step(step)
                metrics |= {"grad_norm" if name == "policy" else f"{name}_grad_norm": x for name, x in norms.items()}
            for name, value in metrics.items():
                sums[name] += value
                counts[name] += 1
    means = {name: value / counts[name] for name, value in sums.items()}
    if models.scaler.enabled:
        means["skipped_steps"] = float(step - before - bad - counts["grad_norm"])
    return means, step


def check_losses(metrics: Mapping[str, float], step: int, remedies: Mapping[str, str]) -> None:
    """Refuse a minibatch with a loss or share that is NaN or infinite.

    Raises:
        NotFinite: there is one, with the remedy of the network whose loss it is.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            remedy = remedies.get(name.removesuffix("_loss"), remedies["policy"])
            raise NotFinite(f"{name} is {value} at optimizer step {step}; try {remedy}")


def remedies_for(config: RunConfig, value_on_policy: bool) -> dict[str, str]:
    """By network, what may keep its loss and gradient finite."""
    remedies = {"policy": REMEDIES["policy"] + (f" or {config.algo.remedy}" if config.algo.remedy else "")}
    if config.algo.critic:
        remedies["value"] = f"{REMEDIES['policy']} or value.coef" if value_on_policy else REMEDIES["value"]
    return remedies


def minibatches_of(config: RunConfig, count: int, iteration: int, epoch: int) -> list[Tensor]:
    """Rows of each minibatch of an epoch over `count` responses, all ranks' together; groups are shuffled whole."""
    size = config.algo.group_size
    groups = permutation(config.seed, f"minibatches of epoch {epoch}", iteration, count // size)
    return list(rows_of_groups(groups, size).split(config.optimization.minibatch_size))


def rows_of_groups(groups: Tensor, size: int) -> Tensor:
    """(N,) int64 groups -> (N size,) rows, those of a group one after the other."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def packs_by_length(config: RunConfig) -> bool:
    """Whether micro-batches are of neighbours in length."""
    return config.optimization.pack_by_length and config.algo.packs_by_length


def rank_micro_batches(config: RunConfig, minibatch: Tensor, features: Features) -> list[Tensor]:
    """Rows of this rank's micro-batches of a minibatch.

    Args:
        minibatch: its rows in the rollout.
        features: of the whole rollout batch.
    """
    group_size = config.algo.group_size
    rows = minibatch[own_rows(len(minibatch), group_size)]
    by_length = packs_by_length(config)
    return micro_batches(rows, features, forward_rows(config), by_length=by_length, group_size=group_size)


def first_micro_batches(config: RunConfig, features: Features, iteration: int) -> list[Tensor]:
    """Rows of this rank's micro-batches of an iteration's first epoch: all ranks' together are all rows, once."""
    first = minibatches_of(config, len(features.mask), iteration, 0)
    return [rows for minibatch in first for rows in rank_micro_batches(config, minibatch, features)]


def num_optimizer_steps(config: RunConfig) -> int:
    """Optimizer steps of the whole run."""
    per_epoch = config.rollout.num_responses // config.optimization.minibatch_size
    return config.rollout.iterations * config.optimization.epochs * per_epoch


def accumulate_gradients(
    config: RunConfig, algorithm: Algorithm, models: PolicyModels, minibatch: TrainingBatch, features: Features
) -> dict[str, float]:
    """This rank's part of a minibatch's gradients, in micro-batches.

    Means are over the whole minibatch however it is cut, so that the parts' sums are the whole.
    """
    totals = Totals(minibatch.mask.sum(), len(minibatch.mask))
    sums = defaultdict[str, list[Tensor]](list)
    place = {row: i for i, row in enumerate(minibatch.rows_in_rollout.tolist())}
    for rows in rank_micro_batches(config, minibatch.rows_in_rollout, features):
        batch, part = minibatch.rows(torch.tensor([place[row] for row in rows.tolist()])), features.rows(rows)
        if packs_by_length(config):
            part = part.trimmed()
            batch = batch.first_columns(part.tokens.shape[1])
        for name, value in backward(config, algorithm, models, batch, part, totals).items():
            sums[name].append(value)
    added = torch.stack([torch.stack(values).sum() for values in sums.values()]).tolist()  # a GPU is waited for once
    return dict(zip(sums, added, strict=True))


def backward(
    config: RunConfig,
    algorithm: Algorithm,
    models: PolicyModels,
    batch: TrainingBatch,
    features: Features,
    totals: Totals,
) -> dict[str, Tensor]:
    """Backward through the losses of one micro-batch; each loss and the algorithm's metrics.

    Separate networks have a graph each, one freed before the other is made where they do not run concurrently;
    a value head on the policy needs both losses on one graph.
    """
    scaled, coef = models.scaler.scaled, config.value.coef

    def train_policy() -> LossOutput:
        output = policy_loss(algorithm, models, models.policy_hidden(features), batch, features, totals)
        scaled(output.loss).backward()
        return output

    def train_values() -> Tensor:
        loss = algorithm.critic_loss(models.values(features), batch, totals)
        scaled(coef * loss).backward()
        return loss

    if models.value_on_policy:
        hidden = models.policy_hidden(features)
        output = policy_loss(algorithm, models, hidden, batch, features, totals)
        critic = algorithm.critic_loss(models.values_on(hidden), batch, totals)
        scaled(output.loss + coef * critic).backward()
    elif models.critic:
        output, critic = models.run_both(train_policy, train_values)
    else:
        output, critic = train_policy(), None
    values = {} if critic is None else {"value_loss": critic.detach()}
    return {"policy_loss": output.loss.detach(), **values, **output.metrics}


def policy_loss(
    algorithm: Algorithm, models: PolicyModels, hidden: Tensor, batch: TrainingBatch, features: Features, totals: Totals
) -> LossOutput:
    """The algorithm's loss from the policy's hidden states (B, T, d)."""
    tokens, at = features.tokens, features.response_positions()
    outputs = models.policy_logprobs(hidden, tokens, at)
    if algorithm.heads is not None:
        outputs = algorithm.heads.outputs(outputs, hidden, tokens, at)
    if algorithm.config.exact_kl_in_loss:
        exact = models.exact_kl(hidden, models.reference_hidden(features), tokens, at)
        batch = dataclasses.replace(batch, exact_kl=exact)
    return algorithm.loss(batch, outputs, totals)
