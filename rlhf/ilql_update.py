"""ILQL's update: epochs of shuffled minibatches over an iteration's answers, and the syncs of the target heads."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from rlhf.algorithms.ilql import ilql
from rlhf.batches import ILQLBatch
from rlhf.config import ILQLConfig, RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.distributed import own_rows, sum_gradients, sum_numbers
from rlhf.finite import NotFinite
from rlhf.models import Features, PolicyModels
from rlhf.models.ilql import ILQLHeads
from rlhf.optimization import REMEDIES, clip_and_step, minibatches, schedule_factor, set_learning_rate
from rlhf.random import permutation
from rlhf.update import Skip, check_losses, num_optimizer_steps


def ilql_update(
    config: RunConfig,
    models: PolicyModels,
    heads: ILQLHeads,
    optimizer: torch.optim.Optimizer,
    batch: ILQLBatch,
    features: Features,
    *,
    iteration: int,
    step: int,
    skip: Skip | None = None,
) -> tuple[dict[str, float], int]:
    """All epochs over `batch`; policy and heads are clipped and stepped as one, since their losses are one.

    Args:
        features: of the whole iteration, as `features_at` made them.
        step: optimizer steps done before.
        skip: as `rlhf.update.update` takes it.

    Returns:
        Metrics (without the prefix train/), averaged over the minibatches, and the optimizer steps done after, those
        left out, be it that float16 overflowed (`skipped_steps`), among them.

    Raises:
        NotFinite: a loss or gradient is, and `skip` is None or raises it.
    """
    algo, settings = config.algo, config.optimization
    sums, counts = defaultdict[str, float](float), defaultdict[str, int](int)
    assert isinstance(algo, ILQLConfig)
    total_steps, before = num_optimizer_steps(config), step
    network = {"policy": [*models.policy_parameters.values(), *heads.trained_parameters()]}
    remedies = {"policy": f"{REMEDIES['policy']} or algo.awac_beta"}
    bad = 0
    for epoch in range(settings.epochs):
        order = permutation(config.seed, f"minibatches of epoch {epoch}", iteration, len(batch.mask))
        for rows in minibatches(order, settings.minibatch_size):
            try:
                metrics = sum_numbers(accumulate_gradients(config, models, heads, batch.rows(rows), features))
                check_losses(metrics, step, remedies)
                sum_gradients(network["policy"])
                set_learning_rate(optimizer, schedule_factor(step, total_steps, 0, settings.schedule))
                norms = clip_and_step(optimizer, network, settings.max_grad_norm, step, models.scaler, remedies)
            except NotFinite as error:
                if skip is None:
                    raise
                optimizer.zero_grad(set_to_none=True)
                skip(error, step, rows)
                step, bad = step + 1, bad + 1
                continue
            step += 1
            if norms and step % algo.sync_every == 0:  # not where overflow left the heads as they were
                heads.sync(algo.polyak)
            if norms:
                metrics["grad_norm"] = norms["policy"]
            for name, value in metrics.items():
                sums[name] += value
                counts[name] += 1
    means = {name: value / counts[name] for name, value in sums.items()}
    if models.scaler.enabled:
        means["skipped_steps"] = float(step - before - bad - counts["grad_norm"])
    return means, step


def accumulate_gradients(
    config: RunConfig, models: PolicyModels, heads: ILQLHeads, minibatch: ILQLBatch, features: Features
) -> dict[str, float]:
    """This rank's part of a minibatch's gradients, in micro-batches; see `rlhf.update.accumulate_gradients`."""
    num_tokens = minibatch.mask.sum()
    sums = defaultdict[str, float](float)
    for rows in own_rows(len(minibatch.mask)).split(forward_rows(config)):
        part = minibatch.rows(rows)
        for name, value in _backward(config, models, heads, part, features, num_tokens).items():
            sums[name] += float(value)
    return dict(sums)


def _backward(
    config: RunConfig,
    models: PolicyModels,
    heads: ILQLHeads,
    batch: ILQLBatch,
    features: Features,
    num_tokens: Tensor,
) -> dict[str, Tensor]:
    assert isinstance(config.algo, ILQLConfig)
    features = features.rows(batch.rows_in_rollout)
    hidden = models.policy_hidden(features)
    at = features.response_positions()
    logprobs = models.policy_logprobs(hidden, features.tokens, at)
    output = ilql(batch, heads.outputs(logprobs, hidden, features.tokens, at), config.algo, num_tokens)
    models.scaler.scaled(output.loss).backward()
    return {"policy_loss": output.loss.detach(), **output.metrics}
