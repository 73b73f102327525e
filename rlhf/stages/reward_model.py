"""Reward-model training: preference pairs -> a score, by the Bradley-Terry likelihood."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from torch import Tensor

from rlhf.batches import PreferenceBatch
from rlhf.chat import with_template
from rlhf.control_tokens import add_padding
from rlhf.data.examples import TextData
from rlhf.data.tokenize import Preferences, prompt_report
from rlhf.models.layers import QUANTISED, FrozenWeights
from rlhf.models.loading import (
    frozen_weights,
    load_base,
    load_pretrained,
    load_tokenizer,
    moved,
    own_code_of,
)
from rlhf.models.network import recomputing_model
from rlhf.models.reward_model import new_reward_model
from rlhf.models.saving import merge_adapters, save_model, write_folder
from rlhf.models.sharding import sharded, whole_weights
from rlhf.random import seed_torch
from rlhf.scorers import mean_and_std, parts_with_references, reference_answers
from rlhf.stages.context import RunContext
from rlhf.stages.supervised import SupervisedTask, select_parameters, train

CONFIDENCE_BINS = 10
"""Of [0.5, 1], in which a calibration compares confidence and accuracy."""


def preference_loss(chosen: Tensor, rejected: Tensor, center_coef: float, margin: float) -> Tensor:
    """Sum over pairs of -log sigmoid(r_chosen - r_rejected - margin) + center_coef (r_chosen + r_rejected)^2.

    Args:
        chosen, rejected: (B,) raw scores at the last token of each text.
    """
    return (-F.logsigmoid(chosen - rejected - margin) + center_coef * (chosen + rejected).square()).sum()


def preference_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """How well the scores predict which answer is preferred, p = sigmoid(r_chosen - r_rejected) being their prediction.

    Args:
        chosen, rejected: (B,) raw scores.

    Returns:
        accuracy: pairs with the higher score on the preferred answer.
        calibration_error: |share of pairs that are right - mean confidence max(p, 1 - p)| in each of ten bins of
            confidence, weighted by the pairs in it; a tie is half right.
        brier: mean of (1 - p)^2.
    """
    p = torch.sigmoid((chosen - rejected).double())
    confidence = torch.maximum(p, 1 - p)
    right = (p > 0.5).double() + 0.5 * (p == 0.5).double()
    bins = ((confidence - 0.5) * 2 * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1)
    gaps = torch.zeros(CONFIDENCE_BINS, dtype=torch.float64, device=p.device).index_add_(0, bins, right - confidence)
    return {
        "eval/accuracy": float((chosen > rejected).double().mean()),
        "eval/calibration_error": float(gaps.abs().sum()) / len(p),
        "eval/brier": float((1 - p).square().mean()),
    }


def run_reward_model(context: RunContext) -> dict[str, float]:
    """Train from the SFT policy, evaluate on held-out pairs, normalise on reference answers, write final/."""
    config = context.config
    settings = config.reward_model
    data = context.read_data("pairs", "test_pairs", *parts_with_references(settings.normalize))
    limits = {name: getattr(config.dataset, name) for name in ("max_prompt_tokens", "max_new_tokens")}
    frozen = frozen_weights(config, settings.train, context.device)
    policy = _initial_policy(context, data, frozen)
    tokenizer = load_tokenizer(policy, own_code_of(config.model))
    if settings.train.mode != "lora" or settings.train.merge_adapters:  # whose base has no place for it
        add_padding(tokenizer)
    data = with_template(config.dataset, data, tokenizer)
    context.say(prompt_report(config.dataset, tokenizer, data.pairs, data.dropped))
    seed_torch(settings.seed, "reward model")
    reward_model = new_reward_model(policy, tokenizer, frozen, own_code_of(config.model), **limits)
    moved(reward_model.model, context.device)
    parameters = select_parameters(reward_model.model, settings.train, "reward_model.train")
    parameters = sharded(parameters, reward_model.model, settings.train, config.hardware)
    running = copy.copy(reward_model)
    if config.hardware.gradient_checkpointing:
        running.model = recomputing_model(reward_model.model)
    pairs, test_pairs = (Preferences(tokenizer, part, **limits) for part in (data.pairs, data.test_pairs))

    def scores(batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        batch = batch.to(context.device)
        with context.autocast():
            return (
                running.raw_scores(batch.chosen_ids, batch.chosen_mask),
                running.raw_scores(batch.rejected_ids, batch.rejected_mask),
            )

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return preference_loss(chosen, rejected, settings.center_coef, settings.margin)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        parts = [
            scores(test_pairs.rows(rows)) for rows in torch.arange(len(test_pairs)).split(settings.micro_batch_size)
        ]
        chosen, rejected = (torch.cat(side) for side in zip(*parts, strict=True))
        return {"eval/loss": float(loss(chosen, rejected)) / len(chosen), **preference_metrics(chosen, rejected)}

    task = SupervisedTask(
        settings=settings,
        parameters=parameters,
        size=len(pairs),
        step=lambda rows: (float(len(rows)), lambda places: loss(*scores(pairs.rows(rows[places])))),
        evaluate=evaluate,
        option="reward_model",
        describe=lambda rows: [vars(data.pairs[row]) for row in rows.tolist()],
    )
    metrics = train(context, task)
    if settings.train.merge_adapters:
        merge_adapters(reward_model.model, "default")
    if settings.normalize != "none":
        references = reference_answers(data, settings.seed)
        reward_model.mean, reward_model.std = mean_and_std(reward_model, references, settings.normalize)
    final, weights = context.folder.final, whole_weights(reward_model.model)
    context.folder.write(lambda: write_folder(final, lambda to: reward_model.save(to, settings.train, weights)))
    return metrics


def _initial_policy(context: RunContext, data: TextData, frozen: FrozenWeights) -> Path:
    """A folder with the policy to start from. It is written here where there is none of whole weights, and an adapter
    of the reward model would have to refer to it."""
    config, policy = context.config, context.inputs.get("sft")
    train = config.reward_model.train
    refers = train.mode == "lora" and not train.merge_adapters
    if policy is not None and not (refers and (policy / ADAPTER_CONFIG).is_file()):
        return policy
    if frozen.weights in QUANTISED:  # which are made of whole ones when they are loaded
        frozen = dataclasses.replace(frozen, weights="bfloat16")
    if policy is not None:
        base, tokenizer = load_pretrained(policy, frozen, own_code=own_code_of(config.model))
    else:  # the weights have been through SFT elsewhere
        seed_torch(config.sft.seed, "sft model")
        base, tokenizer = load_base(
            config.model, data.words, config.dataset.max_total_length, context.cache_dir, frozen
        )
    context.folder.write(lambda: save_model(base, tokenizer, context.folder.path / "initial"))
    return context.folder.path / "initial"
