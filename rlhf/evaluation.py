"""Fixed prompts, fixed draws -> reward, exact KL to the initial policy, entropy, length, samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batches import PromptBatch, Rollouts
from rlhf.config import RunConfig
from rlhf.data.examples import GoldScorer
from rlhf.kl import exact_kl
from rlhf.masked import entropy, masked_mean
from rlhf.models import PolicyModels
from rlhf.random import sampling_uniforms
from rlhf.rewards import score_responses
from rlhf.rollout import generate
from rlhf.scorers import Scorer


@dataclass(frozen=True)
class Evaluator:
    """Measures policies on the same prompts with the same uniforms, so that evaluations differ by the policy."""

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptBatch
    """B prompts in the data set's order; even and odd ones are the two halves of the KL efficiency."""
    scorer: Scorer
    gold: GoldScorer | None

    def run(self, models: PolicyModels) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """eval/* metrics of the architecture, and the first responses as samples."""
        config = self.config
        count = len(self.prompts.texts)
        uniforms = sampling_uniforms(config.evaluation.seed, "evaluation", 0, count, config.dataset.max_new_tokens)
        rollouts = generate(
            models,
            self.tokenizer,
            self.prompts,
            uniforms,
            batch_size=config.rollout.batch_size,
            temperature=config.rollout.temperature,
            stop_strings=config.dataset.stop_strings,
        )
        scores = score_responses(self.scorer, rollouts, config.reward.missing_eos_score).double()
        token_kl, token_entropy = policy_distance(models, rollouts, config.optimization.micro_batch_size)
        metrics = {
            "eval/reward": float(scores.mean()),
            "eval/reward_std": float(scores.std()),
            "eval/reward_even": float(scores[0::2].mean()),
            "eval/reward_odd": float(scores[1::2].mean()),
            "eval/kl": float(token_kl.sum(1).mean()),
            "eval/entropy": float(masked_mean(token_entropy, rollouts.mask)),
            "eval/response_length": float(rollouts.lengths.double().mean()),
            "eval/eos_rate": float(rollouts.ended.double().mean()),
        }
        gold = None if self.gold is None else self.gold(rollouts.prompts, rollouts.responses)
        if gold is not None:
            metrics["eval/gold_reward"] = sum(gold) / count
        return metrics, self._samples(rollouts, scores, gold)

    def _samples(self, rollouts: Rollouts, scores: Tensor, gold: list[float] | None) -> list[dict[str, Any]]:
        rows = []
        for i in range(min(self.config.evaluation.samples, len(scores))):
            row: dict[str, Any] = {
                "prompt": rollouts.prompts[i],
                "response": rollouts.responses[i],
                "reference": rollouts.references[i],
                "reward": float(scores[i]),
                "ended": bool(rollouts.ended[i]),
            }
            rows.append(row if gold is None else {**row, "gold_reward": gold[i]})
        return rows


@torch.no_grad()
def policy_distance(models: PolicyModels, rollouts: Rollouts, batch_size: int) -> tuple[Tensor, Tensor]:
    """Exact KL to the initial policy and entropy at every response token, in nats.

    Returns:
        (B, T) and (B, T) float64 and float32 on the policy's device, 0 on padding.
    """
    kls, entropies = [], []
    for rows in torch.arange(len(rollouts.mask)).split(batch_size):
        part = rollouts.rows(rows)
        features = models.features(part)
        logits = models.policy_logits(features)
        kls.append(torch.where(part.mask, exact_kl(logits, models.reference_logits(features)), 0.0))
        entropies.append(torch.where(part.mask, entropy(logits), 0.0))
    return torch.cat(kls).double(), torch.cat(entropies)


def sample_rows(samples: list[dict[str, Any]], where: Mapping[str, int]) -> list[dict[str, Any]]:
    """Samples with the step and iteration that they were drawn at."""
    return [{**where, **sample} for sample in samples]
