"""Epochs of shuffled minibatches over one rollout batch: losses, backward, one optimizer step a minibatch."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlhf.algorithms import ALGORITHMS
from rlhf.algorithms.value import value_loss
from rlhf.batches import LossOutput, TrainingBatch
from rlhf.beside import beside
from rlhf.config import RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.distributed import own_rows, sum_gradients, sum_numbers
from rlhf.finite import NotFinite
from rlhf.masked import whiten
from rlhf.models import Features, PolicyModels
from rlhf.models.features import micro_batches
from rlhf.optimization import REMEDIES, clip_and_step, minibatches, schedule_factor, set_learning_rate
from rlhf.random import permutation

Skip = Callable[[NotFinite, int, Tensor], None]
"""(what was not finite, the optimizer step, the minibatch's rows in the rollout) -> nothing; see `rlhf.bad_steps`."""


def update(
    config: RunConfig,
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
        skip: told of a step that is left out since its loss or gradient is not finite; None: such a step is an error.

    Returns:
        Metrics (without the prefix train/), averaged over the minibatches, and the optimizer steps done after. Those
        left out, be it that float16 overflowed (counted in `skipped_steps`), are among the steps.

    Raises:
        NotFinite: a loss or gradient is, and `skip` is None or raises it.
    """
    settings, sums, counts = config.optimization, defaultdict[str, float](float), defaultdict[str, int](int)
    total_steps = num_optimizer_steps(config)
    networks = {"policy": list(models.policy_parameters.values()), "value": list(models.value_parameters.values())}
    networks = {name: parameters for name, parameters in networks.items() if parameters}
    remedies, done, bad = remedies_for(config, models.value_on_policy), 0, 0
    for epoch in range(settings.epochs):
        for rows in minibatches_of(config, len(batch.mask), iteration, epoch):
            minibatch = batch.rows(rows)
            if config.advantages.whiten_over == "minibatch":
                whitened = whiten(minibatch.advantages, minibatch.mask, config.advantages.whiten)
                minibatch = dataclasses.replace(minibatch, advantages=whitened)
            try:
                metrics = sum_numbers(accumulate_gradients(config, models, minibatch, features))
                check_losses(metrics, step + done, remedies)
                sum_gradients(parameter for parameters in networks.values() for parameter in parameters)
                set_learning_rate(optimizer, schedule_factor(step + done, total_steps, 0, settings.schedule))
                norms = clip_and_step(optimizer, networks, settings.max_grad_norm, step + done, models.scaler, remedies)
            except NotFinite as error:
                if skip is None:
                    raise
                optimizer.zero_grad(set_to_none=True)
                skip(error, step + done, rows)
                done, bad = done + 1, bad + 1
                continue
            if norms:
                metrics |= {"grad_norm": norms["policy"], "value_grad_norm": norms.get("value", norms["policy"])}
            for name, value in metrics.items():
                sums[name] += value
                counts[name] += 1
            done += 1
    means = {name: value / counts[name] for name, value in sums.items()}
    if models.scaler.enabled:
        means["skipped_steps"] = float(done - bad - counts["grad_norm"])
    return means, step + done


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
    policy, value = REMEDIES["policy"], REMEDIES["value"]
    if value_on_policy:
        value = f"{policy} or value.coef"
    if config.algo.name in ("apa", "awr"):
        policy += " or a larger algo.lam"
    return {"policy": policy, "value": value}


def minibatches_of(config: RunConfig, count: int, iteration: int, epoch: int) -> list[Tensor]:
    """Rows of each minibatch of an epoch over `count` responses, all ranks' together."""
    order = permutation(config.seed, f"minibatches of epoch {epoch}", iteration, count)
    return list(minibatches(order, config.optimization.minibatch_size))


def own_micro_batches(config: RunConfig, minibatch: Tensor, features: Features) -> list[Tensor]:
    """Rows of this rank's micro-batches of a minibatch.

    Args:
        minibatch: its rows in the rollout.
        features: of the whole rollout batch.
    """
    own, by_length = minibatch[own_rows(len(minibatch))], config.optimization.pack_by_length
    return micro_batches(own, features, forward_rows(config), by_length=by_length)


def first_micro_batches(config: RunConfig, features: Features, iteration: int) -> list[Tensor]:
    """Rows of this rank's micro-batches of an iteration's first epoch: all ranks' together are all rows, once."""
    first = minibatches_of(config, len(features.mask), iteration, 0)
    return [rows for minibatch in first for rows in own_micro_batches(config, minibatch, features)]


def num_optimizer_steps(config: RunConfig) -> int:
    """Optimizer steps of the whole run."""
    per_epoch = config.rollout.num_responses // config.optimization.minibatch_size
    return config.rollout.iterations * config.optimization.epochs * per_epoch


def accumulate_gradients(
    config: RunConfig, models: PolicyModels, minibatch: TrainingBatch, features: Features
) -> dict[str, float]:
    """This rank's part of a minibatch's gradients, in micro-batches.

    The mean is over the whole minibatch's tokens however it is cut, so that the parts' sums are the whole.
    """
    num_tokens = minibatch.mask.sum()
    sums = defaultdict[str, list[Tensor]](list)
    by_length = config.optimization.pack_by_length
    place = {row: i for i, row in enumerate(minibatch.rows_in_rollout.tolist())}
    for rows in own_micro_batches(config, minibatch.rows_in_rollout, features):
        part, own = minibatch.rows(torch.tensor([place[row] for row in rows.tolist()])), features.rows(rows)
        if by_length:
            own = own.trimmed()
            part = part.first_columns(own.tokens.shape[1])
        for name, value in _backward(config, models, part, own, num_tokens).items():
            sums[name].append(value)
    totals = torch.stack([torch.stack(values).sum() for values in sums.values()]).tolist()  # a GPU is waited for once
    return dict(zip(sums, totals, strict=True))


def _backward(
    config: RunConfig, models: PolicyModels, batch: TrainingBatch, features: Features, num_tokens: Tensor
) -> dict[str, Tensor]:
    """Backward through policy and value loss of one micro-batch.

    Separate networks go side by side on a CPU, and one after the other elsewhere, which halves the memory of their
    graphs; a value head on the policy needs both losses on one graph.
    """

    def policy() -> tuple[Tensor, LossOutput]:
        hidden = models.policy_hidden(features)
        at = features.response_positions() if config.optimization.pack_by_length else None
        logprobs = models.policy_logprobs(hidden, features.tokens, at)
        return hidden, ALGORITHMS[config.algo.name](batch, logprobs, config.algo, num_tokens)

    def trained_policy() -> LossOutput:
        output = policy()[1]
        models.scaler.scaled(output.loss).backward()
        return output

    def trained_values() -> Tensor:
        critic = _value_loss(config, batch, models.values(features), num_tokens)
        models.scaler.scaled(config.value.coef * critic).backward()
        return critic

    if models.value_on_policy:
        hidden, output = policy()
        critic = _value_loss(config, batch, models.values_on(hidden), num_tokens)
        models.scaler.scaled(output.loss + config.value.coef * critic).backward()
    else:
        output, critic = beside(trained_policy, trained_values, at_once=models.apart)
    return {"policy_loss": output.loss.detach(), "value_loss": critic.detach(), **output.metrics}


def _value_loss(config: RunConfig, batch: TrainingBatch, values: Tensor, num_tokens: Tensor) -> Tensor:
    return value_loss(
        values,
        batch.old_values,
        batch.returns,
        batch.mask,
        value_clip=config.algo.value_clip,
        num_tokens=num_tokens,
    )
