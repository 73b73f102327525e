"""Reward-model training: preference pairs -> a score, by the Bradley-Terry likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.batches import PreferenceBatch
from rlhf.data import load_text_data
from rlhf.data.examples import Demonstration
from rlhf.data.tokenize import encode_preferences
from rlhf.models.loading import load_base, load_tokenizer, moved
from rlhf.models.reward_model import RewardModel, new_reward_model
from rlhf.models.saving import save_model, write_folder
from rlhf.random import endless_order, seed_torch
from rlhf.stages.context import RunContext
from rlhf.stages.supervised import SupervisedTask, merge_adapters, select_parameters, train

NUM_REFERENCES = 256
"""Reference answers whose scores give the normalisation: their mean to 1/16 of a standard deviation."""


def preference_loss(chosen: Tensor, rejected: Tensor, center_coef: float) -> Tensor:
    """Sum over pairs of -log sigmoid(r_chosen - r_rejected) + center_coef (r_chosen + r_rejected)^2.

    Args:
        chosen, rejected: (B,) raw scores at the last token of each text.
    """
    return (-F.logsigmoid(chosen - rejected) + center_coef * (chosen + rejected).square()).sum()


def run_reward_model(context: RunContext) -> dict[str, float]:
    """Train from the SFT policy, evaluate on held-out pairs, normalise on reference answers, write final/."""
    config, data = context.config, load_text_data(context.config.dataset)
    settings = config.reward_model
    limits = {
        "max_prompt_tokens": config.dataset.max_prompt_tokens,
        "max_new_tokens": config.dataset.max_new_tokens,
    }
    policy = context.inputs.get("sft")
    if policy is None:  # the weights have been through SFT elsewhere
        seed_torch(config.sft.seed, "sft model")
        base, tokenizer = load_base(config.model, data.words, sum(limits.values()), context.cache_dir)
        policy = save_model(base, tokenizer, context.folder / "initial")
    tokenizer = load_tokenizer(policy)
    seed_torch(settings.seed, "reward model")
    reward_model = new_reward_model(policy, tokenizer, **limits)
    moved(reward_model.model, context.device)
    parameters = select_parameters(reward_model.model, settings.train)
    pairs = encode_preferences(tokenizer, data.pairs, **limits)
    test_pairs = encode_preferences(tokenizer, data.test_pairs, **limits)

    def scores(batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        batch = batch.to(context.device)
        with context.autocast():
            return (
                reward_model.raw_scores(batch.chosen_ids, batch.chosen_mask),
                reward_model.raw_scores(batch.rejected_ids, batch.rejected_mask),
            )

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        parts = [
            scores(test_pairs.rows(rows).trimmed())
            for rows in torch.arange(len(test_pairs.chosen_mask)).split(settings.micro_batch_size)
        ]
        chosen, rejected = (torch.cat(side) for side in zip(*parts, strict=True))
        return {
            "eval/loss": float(preference_loss(chosen, rejected, settings.center_coef)) / len(chosen),
            "eval/accuracy": float((chosen > rejected).double().mean()),
        }

    task = SupervisedTask(
        settings=settings,
        parameters=parameters,
        size=len(pairs.chosen_mask),
        weight=lambda rows: float(len(rows)),
        loss=lambda rows: preference_loss(*scores(pairs.rows(rows).trimmed()), settings.center_coef),
        evaluate=evaluate,
    )
    metrics = train(context, task)
    merge_adapters(reward_model.model)
    references = [example for example in data.prompts if example.response] or list(data.sft)
    if settings.normalize != "none":
        chosen = endless_order(settings.seed, "references", 0, min(NUM_REFERENCES, len(references)), len(references))
        normalise(reward_model, [references[i] for i in chosen.tolist()], settings.normalize)
    context.lock.check()
    write_folder(context.folder / "final", reward_model.save)
    return metrics


def normalise(reward_model: RewardModel, references: Sequence[Demonstration], how: str) -> None:
    """Shift scores so that reference answers average 0, and scale them to unit standard deviation ("mean_std")."""
    scores = reward_model.score([e.prompt for e in references], [e.response for e in references]).double()
    reward_model.mean = float(scores.mean())
    if how == "mean_std":
        # One reference, or the same score for all: nothing to scale by.
        reward_model.std = float(scores.std(correction=0)) or 1.0
