"""Rollouts + scores -> what the losses need: old and reference logprobs, values, advantages, returns."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
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
    one_at_a_time = threading.Lock()
    at_once = models.apart and len(parts) > 1

    def measure_these(parts: Sequence[Tensor]) -> None:
        nonlocal trunk
        for rows in parts:
            part = rollouts.rows(rows)
            part = part.trimmed() if by_length else part
            found, features = measure_part(models, part, by_length=by_length, at_once=models.apart and not at_once)
            for name, column in zip(COLUMNS, found, strict=True):
                columns[name][rows, : part.mask.shape[1]] = torch.where(part.mask, column, 0.0)
            with one_at_a_time:  # the rows are each thread's own; which makes room for the trunk is not
                trunk = put_rows(trunk, rows, features, whole)

    beside(lambda: measure_these(parts[::2]), lambda: measure_these(parts[1::2]), at_once=at_once)
    return Measured(features=dataclasses.replace(whole, hidden=trunk), **columns)


def measure_part(
    models: PolicyModels, part: Rollouts, *, by_length: bool, at_once: bool = False
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Features]:
    """Old and reference logprobs, values and entropy, (B, T) each, of one micro-batch; its features.

    Args:
        at_once: the policy beside the other networks, where they are `apart`.
    """
    features = models.features(part)
    valid = part.mask if by_length else None
    tokens = part.response_ids

    def policy() -> tuple[Tensor, Tensor, Tensor | None]:
        hidden = models.policy_hidden(features)
        values = models.values_on(hidden) if models.value_on_policy else None
        return *models.policy_logprobs_and_entropy(hidden, tokens, valid), values

    def others() -> tuple[Tensor, Tensor | None]:
        reference = models.reference_logprobs(models.reference_hidden(features), tokens, valid)
        return reference, None if models.value_on_policy else models.values(features)

    (old, entropy, values), (reference, own_values) = beside(policy, others, at_once=at_once)
    values = own_values if values is None else values
    assert values is not None
    return (old, reference, values, entropy), features


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
