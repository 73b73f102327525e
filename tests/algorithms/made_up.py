"""Algorithms as conf/algo has them with some settings changed, and minibatches of made-up numbers, for the tests beside
this."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import yaml
from torch import Tensor

from rlhf.algorithms import ALGORITHMS, Algorithm
from rlhf.batches import LossOutput, Totals, TrainingBatch
from rlhf.config import ALGO_CONFIGS, AdvantagesConfig, AlgoConfig
from rlhf.config.build import CONF, build_group
from rlhf.random import generator

RAW = AdvantagesConfig(gamma=1.0, gae_lambda=1.0, whiten="none", whiten_over="rollout")


@functools.cache
def settings(name: str) -> AlgoConfig:
    """Those of conf/algo."""
    return build_group(ALGO_CONFIGS[name], yaml.safe_load((CONF / "algo" / f"{name}.yaml").read_text()), "algo")


def algorithm(name: str, **changes: Any) -> Algorithm:
    config = dataclasses.replace(settings(name), **changes)
    assert config.problems(config.stages[0]) == []
    return ALGORITHMS[name](config, RAW)


def batch_of(
    algo: Algorithm,
    rewards: Tensor,
    mask: Tensor,
    old: Tensor,
    reference: Tensor,
    *,
    values: Tensor | None = None,
    references: Tensor | None = None,
) -> TrainingBatch:
    """The minibatch of what `algo` makes of token rewards (B, T)."""
    signal = algo.signal(rewards, values, mask, references)
    return TrainingBatch(torch.arange(len(mask)), mask, old, reference, old_values=values, **vars(signal))


def loss_of(algo: Algorithm, batch: TrainingBatch, logprobs: Tensor) -> LossOutput:
    return algo.loss(batch, logprobs, Totals(batch.mask.sum(), len(batch.mask)))


def gradient(algo: Algorithm, batch: TrainingBatch, logprobs: Tensor) -> Tensor:
    """d L / d logprobs, (B, T)."""
    logprobs = logprobs.clone().requires_grad_()
    return torch.autograd.grad(loss_of(algo, batch, logprobs).loss, logprobs)[0]


@dataclasses.dataclass
class Numbers:
    """Eight responses of 1 to 5 tokens in float64, 0 on padding: two groups of four, or four pairs."""

    mask: Tensor
    rewards: Tensor
    old: Tensor
    reference: Tensor
    new: Tensor

    def batch(self, algo: Algorithm, **more: Tensor) -> TrainingBatch:
        return batch_of(algo, self.rewards, self.mask, self.old, self.reference, **more)


def numbers(seed: int = 0, lengths: tuple[int, ...] = (3, 1, 5, 2, 4, 4, 2, 5)) -> Numbers:
    draws = generator(seed, "family")
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]

    def noise(scale: float, shift: float = 0.0) -> Tensor:
        made = torch.randn(mask.shape, generator=draws, dtype=torch.float64) * scale + shift
        return torch.where(mask, made, 0.0)

    old = noise(0.5, -2.0)
    return Numbers(mask, noise(1.0), old, old + noise(0.4), old + noise(0.05))
