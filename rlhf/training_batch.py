"""Rollouts + scores -> what the losses need: old and reference logprobs, values, advantages, returns."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.advantages import generalized_advantages
from rlhf.batches import Rollouts, TrainingBatch
from rlhf.beside import beside
from rlhf.config import AdvantagesConfig
from rlhf.kl import k1
from rlhf.masked import whiten
from rlhf.models import Features, PolicyModels
from rlhf.models.features import features_of
from rlhf.rewards import token_rewards


@dataclass(frozen=True)
class Measured:
    """What the networks say of the rollouts before any update. (B, T) float32 each, 0 on padding."""

    features: Features
    old_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropy: Tensor


COLUMNS = ("old_logprobs", "reference_logprobs", "values", "entropy")
"""Of `Measured`."""


@torch.no_grad()
def measure(models: PolicyModels, rollouts: Rollouts, parts: Sequence[Tensor], *, by_length: bool) -> Measured:
    """Old and reference logprobs by the update's own function; 0 in rows that no part names.

    Not by the sampler: its cached, token-by-token arithmetic rounds otherwise, and the first ratio would not be 1.

    Args:
        parts: rows that are computed together. Those of the update's first epoch make its first ratio exactly 1: the
            same texts at the same padded shape give the same bits.
        by_length: optimization.pack_by_length; parts are trimmed of their padding.
    """
    whole = features_of(rollouts)
    columns = {name: torch.zeros(rollouts.mask.shape, device=rollouts.mask.device) for name in COLUMNS}
    trunk: Tensor | None = None

    def states(some: Sequence[Tensor]) -> Iterator[tuple[Tensor, Rollouts, States]]:
        for rows in some:
            part = rollouts.rows(rows)
            part = part.trimmed() if by_length else part
            yield rows, part, states_of(models, part)

    if models.apart:
        halves = beside(lambda: [*states(parts[::2])], lambda: [*states(parts[1::2])], at_once=True)
        found = itertools.chain(*halves)
    else:
        found = states(parts)  # one after the other, so that none waits in memory
    for rows, part, seen in found:
        measured = by_heads(models, part, seen, by_length=by_length)
        for name, column in zip(COLUMNS, measured, strict=True):
            columns[name][rows, : part.mask.shape[1]] = torch.where(part.mask, column, 0.0)
        trunk = put_rows(trunk, rows, seen.features, whole)
    return Measured(features=dataclasses.replace(whole, hidden=trunk), **columns)


@dataclass(frozen=True)
class States:
    """What the heads read of a micro-batch. (B, T, d) each."""

    features: Features
    policy: Tensor
    reference: Tensor
    values: Tensor | None
    """(B, T), of a value network of its own."""


def states_of(models: PolicyModels, part: Rollouts) -> States:
    features = models.features(part)
    return States(
        features=features,
        policy=models.policy_hidden(features),
        reference=models.reference_hidden(features),
        values=None if models.value_on_policy else models.values(features),
    )


def by_heads(
    models: PolicyModels, part: Rollouts, states: States, *, by_length: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old and reference logprobs, values and entropy, (B, T) each."""
    valid, tokens = part.mask if by_length else None, part.response_ids
    values = models.values_on(states.policy) if states.values is None else states.values
    old, entropy = models.policy_logprobs_and_entropy(states.policy, tokens, valid)
    return old, models.reference_logprobs(states.reference, tokens, valid), values, entropy


def put_rows(trunk: Tensor | None, rows: Tensor, part: Features, whole: Features) -> Tensor | None:
    """The trunk's output of a micro-batch, trimmed or not, into that of the whole batch; None where there is none."""
    if part.hidden is None:
        return None
    if trunk is None:
        trunk = part.hidden.new_zeros(*whole.input_ids.shape, part.hidden.shape[-1])
    first = whole.prompt_width - part.prompt_width
    trunk[rows, first : first + part.hidden.shape[1]] = part.hidden
    return trunk


def training_batch(
    rollouts: Rollouts, measured: Measured, scores: Tensor, kl_coef: float, config: AdvantagesConfig
) -> TrainingBatch:
    """Token rewards, GAE and whitening over the whole rollout batch.

    Args:
        scores: (B,), scaled and clipped.
        kl_coef: beta of the KL penalty in the reward; 0 for every algorithm but PPO.
    """
    mask = rollouts.mask
    token_kl = k1(measured.old_logprobs, measured.reference_logprobs)
    rewards = token_rewards(scores.to(mask.device), token_kl, mask, kl_coef)
    advantages, returns = generalized_advantages(
        rewards, measured.values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    if config.whiten_over == "rollout":
        advantages = whiten(advantages, mask, config.whiten)
    return TrainingBatch(
        rows_in_rollout=torch.arange(len(mask)),
        mask=mask,
        old_logprobs=measured.old_logprobs,
        reference_logprobs=measured.reference_logprobs,
        old_values=measured.values,
        advantages=advantages,
        returns=returns,
    )
