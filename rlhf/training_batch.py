"""Rollouts + scores -> what the losses need: old and reference logprobs, values, advantages, returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.advantages import generalized_advantages
from rlhf.batches import Rollouts, TrainingBatch, on_device
from rlhf.beside import beside
from rlhf.config import AdvantagesConfig
from rlhf.kl import k1
from rlhf.masked import whiten
from rlhf.models import Features, PolicyModels
from rlhf.models.features import features_of, micro_batches
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
def measure(
    models: PolicyModels, rollouts: Rollouts, parts: Sequence[Tensor], *, rows_at_once: int, by_length: bool
) -> Measured:
    """Old and reference logprobs by the update's own function; 0 in rows that no part names.

    Not by the sampler: its cached, token-by-token arithmetic rounds otherwise, and the first ratio would not be 1.

    Args:
        parts: rows that are computed together. Those of the update's first epoch make its first ratio exactly 1: the
            same texts at the same padded shape give the same bits.
        rows_at_once: of the trunk, whose output the update reads as it is.
        by_length: optimization.pack_by_length; parts are trimmed of their padding.
    """
    features = features_at(models, rollouts, torch.cat(list(parts)), rows_at_once, by_length=by_length)
    columns = {name: torch.zeros(rollouts.mask.shape, device=rollouts.mask.device) for name in COLUMNS}
    at_once = models.apart and len(parts) > 1

    def measure_these(parts: Sequence[Tensor]) -> None:
        for rows in parts:
            part = features.rows(rows)
            part = part.trimmed() if by_length else part
            mask = part.mask[:, part.prompt_width :]
            found = measure_part(models, part, by_length=by_length, at_once=models.apart and not at_once)
            place = on_device(rows, mask.device)
            for name, column in zip(COLUMNS, found, strict=True):
                columns[name][place, : mask.shape[1]] = torch.where(mask, column, 0.0)

    beside(lambda: measure_these(parts[::2]), lambda: measure_these(parts[1::2]), at_once=at_once)
    return Measured(features=features, **columns)


def measure_part(
    models: PolicyModels, features: Features, *, by_length: bool, at_once: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old and reference logprobs, values and entropy, (B, T) each, of one micro-batch.

    Args:
        at_once: the policy beside the other networks, where they are `apart`.
    """
    tokens = features.tokens
    at = features.response_positions() if by_length else None

    def policy() -> tuple[Tensor, Tensor, Tensor | None]:
        hidden = models.policy_hidden(features)
        values = models.values_on(hidden) if models.value_on_policy else None
        return *models.policy_logprobs_and_entropy(hidden, tokens, at), values

    def others() -> tuple[Tensor, Tensor | None]:
        reference = models.reference_logprobs(models.reference_hidden(features), tokens, at)
        return reference, None if models.value_on_policy else models.values(features)

    (old, entropy, values), (reference, own_values) = beside(policy, others, at_once=at_once)
    values = own_values if values is None else values
    assert values is not None
    return old, reference, values, entropy


@torch.no_grad()
def features_at(
    models: PolicyModels, rollouts: Rollouts, rows: Tensor, rows_at_once: int, *, by_length: bool
) -> Features:
    """The whole texts with the trunk's output of these rows, 0 in others; None where there is no trunk.

    Args:
        rows: int64 vector on the CPU.
        by_length: neighbours in length go together, without their padding.
    """
    whole = features_of(rollouts)
    trunk: Tensor | None = None
    for own in micro_batches(rows, whole, rows_at_once, by_length=by_length):
        part = rollouts.rows(own)
        found = models.features(part.trimmed() if by_length else part)
        if found.hidden is None:
            return whole
        if trunk is None:
            trunk = found.hidden.new_zeros(*whole.input_ids.shape, found.hidden.shape[-1])
        put_rows(trunk, own, found.hidden, whole.prompt_width - found.prompt_width)
    return dataclasses.replace(whole, hidden=trunk)


def put_rows(trunk: Tensor, rows: Tensor, part: Tensor, first: int) -> None:
    """The trunk's output of some rows into that of the whole batch, from column `first` on."""
    trunk[on_device(rows, trunk.device), first : first + part.shape[1]] = part


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
