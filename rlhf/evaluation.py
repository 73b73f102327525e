"""Fixed prompts, fixed draws -> reward, exact KL to the initial policy, entropy, length, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.algorithms import Algorithm
from rlhf.batches import PromptBatch, Rollouts, on_device
from rlhf.config import RunConfig
from rlhf.config.reward import RIGHT_OR_WRONG
from rlhf.control_tokens import control_spans
from rlhf.data.examples import GoldScorer
from rlhf.distributed import gathered, own_rows
from rlhf.kl import exact_kl
from rlhf.masked import entropy, masked_mean
from rlhf.models.features import features_of, micro_batches
from rlhf.models.policy import Policy
from rlhf.random import sampling_uniforms
from rlhf.rewards import score_responses
from rlhf.rollout import generate
from rlhf.scorers import Scorer
from rlhf.token_logprobs import chosen, spread


@dataclass(frozen=True)
class Evaluated:
    """What one evaluation found."""

    metrics: dict[str, float]
    """eval/*, means over prompts and responses."""
    by_prompt: dict[str, list[float]]
    """`reward`, `kl` (nats) and, where the data set has a gold scorer, `gold_reward` of each of the B prompts, in their
    order: means over the responses to it."""
    samples: list[dict[str, Any]]
    """The first response to each of the first prompts."""


@dataclass(frozen=True)
class Evaluator:
    """Measures policies on the same prompts with the same uniforms, so that evaluations differ by the policy."""

    config: RunConfig
    algorithm: Algorithm
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptBatch
    """B prompts in the data set's order; even and odd ones are the two halves of the KL efficiency."""
    scorer: Scorer
    gold: GoldScorer | None
    stop_strings: Sequence[str] = field(default=(), kw_only=True)
    """What ends a response besides its EOS."""

    def run(self, models: Policy) -> Evaluated:
        """eval/* metrics of the architecture, the numbers of each prompt, and the first responses as samples.

        An algorithm may have several samplers (`Algorithm.policies`): the first is the headline, in eval/*, and the one
        whose prompts and samples are kept; eval/<name>/* has each of them.
        """
        first: Evaluated | None = None
        more: dict[str, float] = {}
        for name, policy in self.algorithm.policies(models).items():
            found = self.measure(policy)
            first = first or found
            if name:
                more |= {f"eval/{name}/{metric.removeprefix('eval/')}": x for metric, x in found.metrics.items()}
        assert first is not None
        return replace(first, metrics={**first.metrics, **more})

    def measure(self, models: Policy) -> Evaluated:
        """`run` for one sampler."""
        config = self.config
        each = config.evaluation.responses_per_prompt
        prompts = self.prompts.rows(torch.arange(len(self.prompts.texts)).repeat_interleave(each))
        count = len(prompts.texts)
        uniforms = sampling_uniforms(config.evaluation.seed, "evaluation", 0, count, config.dataset.max_new_tokens)
        rows = own_rows(count)
        rollouts = generate(
            models,
            self.tokenizer,
            prompts.rows(rows),
            uniforms[rows],
            sampling=config.rollout.sampling,
            batch_size=config.rollout.batch_size,
            stop_strings=self.stop_strings,
        )
        scores = score_responses(self.scorer, rollouts, config.reward.missing_eos_score).double()
        token_kl, token_entropy = policy_distance(models, rollouts, config.rollout.batch_size)
        rollouts, scores = gathered(rollouts, count), gathered(scores, count)
        token_kl, token_entropy = gathered(token_kl, count), gathered(token_entropy, count)
        reward, kl = (values.view(-1, each).mean(1).cpu() for values in (scores, token_kl.sum(1)))
        metrics = {
            "eval/reward": float(scores.mean()),
            "eval/reward_std": float(scores.std()),
            "eval/reward_even": float(reward[0::2].mean()),
            "eval/reward_odd": float(reward[1::2].mean()),
            "eval/kl": float(token_kl.sum(1).mean()),
            "eval/entropy": float(masked_mean(token_entropy, rollouts.mask)),
            "eval/response_length": float(rollouts.lengths.double().mean()),
            "eval/eos_rate": float(rollouts.ended.double().mean()),
        }
        if config.reward.name in RIGHT_OR_WRONG and config.reward.normalize == "none":
            ended = rollouts.ended.cpu() if config.reward.missing_eos_score is not None else torch.ones(count).bool()
            metrics |= accuracy(scores.cpu(), ended, each)
        by_prompt = {"reward": reward.tolist(), "kl": kl.tolist()}
        gold = None if self.gold is None else self.gold(rollouts.prompts, rollouts.responses)
        if gold is not None:
            metrics["eval/gold_reward"] = sum(gold) / count
            by_prompt["gold_reward"] = torch.tensor(gold, dtype=torch.float64).view(-1, each).mean(1).tolist()
        first = torch.arange(0, count, each)
        golds = None if gold is None else gold[::each]
        return Evaluated(metrics, by_prompt, self._samples(rollouts.rows(first), scores[first], golds))

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
            if rollouts.columns:
                row["columns"] = {name: column[i] for name, column in rollouts.columns.items()}
            row |= control_places(row)
            rows.append(row if gold is None else {**row, "gold_reward": gold[i]})
        return rows


def accuracy(scores: Tensor, counted: Tensor, each: int) -> dict[str, float]:
    """`eval/accuracy`, the share of right responses, and `eval/pass_at_<k>`, the share of prompts with a right one
    among k responses, for k = 2, 4, ... up to `each`; nothing where a score is neither 0 nor 1.

    1 - C(n - c, k) / C(n, k) for c right ones of n: unbiased (Chen et al. 2021).

    Args:
        scores: (B each,), the responses to one prompt being neighbours.
        counted: (B each,) bool; False where a response is wrong whatever its score, since it never ended.
    """
    right = (scores == 1) & counted
    if not bool((right | (scores == 0) | ~counted).all()):
        return {}
    found = {"eval/accuracy": float(right.double().mean())}
    for k in (2**power for power in range(1, each.bit_length())):
        failing = [math.comb(each - c, k) / math.comb(each, k) for c in right.view(-1, each).sum(1).tolist()]
        found[f"eval/pass_at_{k}"] = 1.0 - sum(failing) / len(failing)
    return found


@torch.no_grad()
def policy_distance(models: Policy, rollouts: Rollouts, batch_size: int) -> tuple[Tensor, Tensor]:
    """Exact KL to the initial policy and entropy at every response token, in nats.

    Returns:
        (B, T) and (B, T) float64 and float32 on the policy's device, 0 on padding.
    """
    texts = features_of(rollouts)
    kl = torch.zeros(rollouts.mask.shape, dtype=torch.float64, device=rollouts.mask.device)
    entropies = torch.zeros(rollouts.mask.shape, device=rollouts.mask.device)
    for rows in micro_batches(torch.arange(len(rollouts.mask)), texts, batch_size, by_length=True):
        part = rollouts.rows(rows).trimmed()
        features = models.features(part)
        at = features.response_positions()
        hidden, initial = chosen(models.policy_hidden(features), at), chosen(models.reference_hidden(features), at)
        width, pairs = part.mask.shape[1], []
        for piece in models.pieces(len(hidden)):
            logits = models.policy_head(hidden[piece])
            pairs.append((exact_kl(logits, models.reference_head(initial[piece])), entropy(logits)))
        columns = [torch.cat(column) for column in zip(*pairs, strict=True)]
        place = on_device(rows, kl.device)
        kl[place, :width] = spread(columns[0].double(), part.mask, at)
        entropies[place, :width] = spread(columns[1], part.mask, at)
    return kl, entropies


def control_places(sample: Mapping[str, Any]) -> dict[str, Any]:
    """`prompt_control` and the like: which characters of a text are a control token, as [first, end] of each.

    The same characters elsewhere are somebody's words. A text without a control token has no such entry.
    """
    spans = {name: control_spans(sample[name]) for name in ("prompt", "response", "reference")}
    return {f"{name}_control": [list(span) for span in places] for name, places in spans.items() if places}
