"""Rollouts + scores -> what the losses need: old and reference logprobs, values, advantages, returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.advantages import generalized_advantages
from rlhf.batches import Rollouts, TrainingBatch
from rlhf.config import AdvantagesConfig
from rlhf.kl import k1
from rlhf.masked import entropy, token_logprobs, whiten
from rlhf.models import Features, PolicyModels
from rlhf.rewards import token_rewards


@dataclass(frozen=True)
class Measured:
    """What the networks say of the rollouts before any update. (B, T) float32 each, 0 on padding."""

    features: Features
    old_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropy: Tensor


@torch.no_grad()
def measure(models: PolicyModels, rollouts: Rollouts, micro_batch_size: int) -> Measured:
    """Old and reference logprobs by the update's own function, in micro-batches of the update's size.

    Not by the sampler: its cached, token-by-token arithmetic rounds otherwise, and the first ratio would not be 1.
    """
    features, columns = [], []
    for rows in torch.arange(len(rollouts.mask)).split(micro_batch_size):
        part = rollouts.rows(rows)
        shared = models.features(part)
        logits, values = models.policy_logits_and_values(shared)
        reference = token_logprobs(models.reference_logits(shared), part.response_ids)
        measured = (token_logprobs(logits, part.response_ids), reference, values, entropy(logits))
        columns.append([torch.where(part.mask, column, 0.0) for column in measured])
        features.append(shared)
    old, reference, values, entropies = (torch.cat(column) for column in zip(*columns, strict=True))
    return Measured(joined(features), old, reference, values, entropies)


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


def joined(parts: list[Features]) -> Features:
    """The features of all micro-batches as one."""
    hidden = [part.hidden for part in parts if part.hidden is not None]
    return Features(
        input_ids=torch.cat([part.input_ids for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        hidden=torch.cat(hidden) if hidden else None,
        prompt_width=parts[0].prompt_width,
    )
