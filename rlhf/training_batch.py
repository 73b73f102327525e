"""Rollouts + scores -> what the losses need: old and reference logprobs, values, advantages, returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms import Algorithm
from rlhf.batches import Rollouts, TrainingBatch, on_device
from rlhf.config import RunConfig
from rlhf.distributed import count, sum_rows
from rlhf.earlier import EarlierPolicies
from rlhf.kl import ESTIMATORS
from rlhf.models import Features, PolicyModels
from rlhf.models.features import features_of, micro_batches
from rlhf.rewards import token_rewards
from rlhf.update import first_micro_batches, packs_by_length


@dataclass(frozen=True)
class Measured:
    """What the networks say of the rollouts before any update. (B, T) float32 each, 0 on padding."""

    features: Features
    old_logprobs: Tensor
    """Of the policy that sampled."""
    reference_logprobs: Tensor
    entropy: Tensor
    values: Tensor | None
    """None without a critic."""
    start_logprobs: Tensor | None = None
    """Of the policy as it is; None where it is the one that sampled."""
    exact_kl: Tensor | None = None
    """Nats, over the vocabulary at each token; None where the KL penalty in the reward is made of another estimate."""

    @property
    def columns(self) -> dict[str, Tensor]:
        """All but the features, by name."""
        return {name: column for name, column in vars(self).items() if isinstance(column, Tensor)}


def measure_rollouts(
    config: RunConfig,
    models: PolicyModels,
    rollouts: Rollouts,
    iteration: int,
    earlier: EarlierPolicies | None = None,
) -> Measured:
    """What the networks say of all rollouts, each rank having asked them for the rows that it trains on first.

    Args:
        earlier: None: the policy that sampled is the one that learns.
    """
    parts = first_micro_batches(config, features_of(rollouts), iteration)
    rows_per_pass, by_length = config.rollout.batch_size, packs_by_length(config)
    exact = config.algo.penalty is not None and config.algo.penalty_estimator == "exact"
    measured = measure(models, rollouts, parts, rows_per_pass=rows_per_pass, by_length=by_length, exact_kl=exact)
    if earlier is not None and earlier.lag:
        with earlier.as_sampler():
            old = policy_logprobs(models, measured.features, parts, by_length=by_length)
        measured = dataclasses.replace(measured, start_logprobs=measured.old_logprobs, old_logprobs=old)
    if count() == 1:
        return measured
    hidden = measured.features.hidden
    features = dataclasses.replace(measured.features, hidden=None if hidden is None else sum_rows(hidden))
    columns = {name: sum_rows(column) for name, column in measured.columns.items()}
    return dataclasses.replace(measured, features=features, **columns)


@torch.no_grad()
def measure(
    models: PolicyModels,
    rollouts: Rollouts,
    parts: Sequence[Tensor],
    *,
    rows_per_pass: int,
    by_length: bool,
    exact_kl: bool = False,
) -> Measured:
    """Old and reference logprobs by the update's own function; 0 in rows that no part names.

    Not by the sampler: its cached, token-by-token arithmetic rounds otherwise, and the first ratio would not be 1.

    Args:
        parts: rows that are computed together. Those of the update's first epoch make its first ratio exactly 1: the
            same texts at the same padded shape give the same bits.
        rows_per_pass: of the trunk, whose output the update reads as it is.
        by_length: optimization.pack_by_length; parts are trimmed of their padding.
    """
    features = features_at(models, rollouts, torch.cat(list(parts)), rows_per_pass, by_length=by_length)
    names = ["old_logprobs", "reference_logprobs", "entropy", *(["values"] if models.critic else [])]
    names += ["exact_kl"] if exact_kl else []

    def of_part(part: Features) -> dict[str, Tensor]:
        return measure_part(models, part, exact_kl=exact_kl)

    columns = columns_by_parts(models, features, parts, names, of_part, by_length=by_length)
    return Measured(features=features, **{"values": None, **columns})


def columns_by_parts(
    models: PolicyModels,
    features: Features,
    parts: Sequence[Tensor],
    names: Sequence[str],
    of_part: Callable[[Features], dict[str, Tensor]],
    *,
    by_length: bool,
) -> dict[str, Tensor]:
    """(B, T) float32 columns of these names from those of micro-batches; 0 on padding and in other rows."""
    whole = features.mask[:, features.prompt_width :]
    columns = {name: torch.zeros(whole.shape, device=whole.device) for name in names}

    def fill(parts: Sequence[Tensor]) -> None:
        for rows in parts:
            part = features.rows(rows)
            part = part.trimmed() if by_length else part
            mask, place = part.mask[:, part.prompt_width :], on_device(rows, part.mask.device)
            for name, column in of_part(part).items():
                columns[name][place, : mask.shape[1]] = torch.where(mask, column, 0.0)

    models.run_both(lambda: fill(parts[::2]), lambda: fill(parts[1::2]))
    return columns


@torch.no_grad()
def policy_logprobs(models: PolicyModels, features: Features, parts: Sequence[Tensor], *, by_length: bool) -> Tensor:
    """(B, T) log pi of the policy as it is, computed as `measure` does."""

    def of_part(part: Features) -> dict[str, Tensor]:
        hidden, at = models.policy_hidden(part), part.response_positions()
        return {"logprobs": models.policy_logprobs_and_entropy(hidden, part.tokens, at)[0]}

    return columns_by_parts(models, features, parts, ["logprobs"], of_part, by_length=by_length)["logprobs"]


def measure_part(models: PolicyModels, features: Features, *, exact_kl: bool) -> dict[str, Tensor]:
    """Columns of `Measured`, (B, T) each, of one micro-batch."""
    tokens, at, hidden = features.tokens, features.response_positions(), models.policy_hidden(features)
    old, entropy = models.policy_logprobs_and_entropy(hidden, tokens, at)
    reference_hidden = models.reference_hidden(features)
    reference = models.reference_logprobs(reference_hidden, tokens, at)
    columns = {"old_logprobs": old, "reference_logprobs": reference, "entropy": entropy}
    if models.critic:
        columns["values"] = models.values_on(hidden) if models.value_on_policy else models.values(features)
    if exact_kl:
        columns["exact_kl"] = models.exact_kl(hidden, reference_hidden, tokens, at)
    return columns


@torch.no_grad()
def features_at(
    models: PolicyModels, rollouts: Rollouts, rows: Tensor, rows_per_pass: int, *, by_length: bool
) -> Features:
    """The whole texts with the trunk's output of these rows, 0 in others; None where there is no trunk.

    Args:
        rows: int64 vector on the CPU.
        by_length: neighbours in length go together, without their padding.
    """
    texts = features_of(rollouts)
    trunk: Tensor | None = None
    for index in micro_batches(rows, texts, rows_per_pass, by_length=by_length):
        part = rollouts.rows(index)
        features = models.features(part.trimmed() if by_length else part)
        if features.hidden is None:
            return texts
        if trunk is None:
            trunk = features.hidden.new_zeros(*texts.input_ids.shape, features.hidden.shape[-1])
        first, rows_on_device = texts.prompt_width - features.prompt_width, on_device(index, trunk.device)
        trunk[rows_on_device, first : first + features.hidden.shape[1]] = features.hidden
    return dataclasses.replace(texts, hidden=trunk)


def training_batch(
    algorithm: Algorithm,
    rollouts: Rollouts,
    measured: Measured,
    scores: Tensor,
    kl_coef: float,
    references: Tensor | None = None,
) -> TrainingBatch:
    """Token rewards, and what the algorithm makes of them, over the whole rollout batch.

    Args:
        scores: (B,), scaled and clipped.
        kl_coef: beta of the KL penalty in the reward.
        references: (B, N), of the initial policy's responses to the same prompts, scaled and clipped as `scores`; None
            where the algorithm asks for none.
    """
    mask = rollouts.mask
    token_kl = measured.exact_kl
    if token_kl is None:
        estimator = ESTIMATORS[algorithm.config.penalty_estimator]
        start = measured.old_logprobs if measured.start_logprobs is None else measured.start_logprobs
        token_kl = estimator(start, measured.reference_logprobs)
    rewards = token_rewards(scores.to(mask.device), token_kl, mask, kl_coef)
    # A class of one's own that asks for no references need not take them.
    more = {} if references is None else {"references": references}
    signal = algorithm.signal(rewards, measured.values, mask, **more)
    return TrainingBatch(
        rows_in_rollout=torch.arange(len(mask)),
        mask=mask,
        old_logprobs=measured.old_logprobs,
        reference_logprobs=measured.reference_logprobs,
        start_logprobs=measured.start_logprobs,
        old_values=measured.values,
        **vars(signal),
    )
