"""The optimizer, its schedule, minibatches, and one gradient step over micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn


class NotFinite(ArithmeticError):
    """A loss or gradient that is NaN or infinite; the message says where and what to try."""


def adamw(
    groups: list[tuple[Iterable[nn.Parameter], float]], *, betas: list[float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over (parameters, learning rate) groups; the schedule scales the `initial_lr` kept in each group."""
    return torch.optim.AdamW(
        [{"params": list(parameters), "lr": rate, "initial_lr": rate} for parameters, rate in groups if parameters],
        betas=(betas[0], betas[1]),
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
    )


def schedule_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """What the learning rate is multiplied by at optimizer step `step` (from 0) of `total`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate becomes its initial one times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def minibatches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive pieces of a shuffled index vector, all of length `size` (config checks that it divides)."""
    for first in range(0, len(order), size):
        yield order[first : first + size]


def clip_and_step(
    optimizer: torch.optim.Optimizer, networks: Mapping[str, list[nn.Parameter]], max_grad_norm: float, step: int
) -> dict[str, float]:
    """Scale each network's gradient down to `max_grad_norm`, step, and forget the gradients.

    Networks are clipped apart, so that a large value gradient never shortens the policy's step.

    Returns:
        The norm before clipping by network.

    Raises:
        NotFinite: a gradient is not finite; parameters are as before.
    """
    norms = {}
    for name, parameters in networks.items():
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not bool(norm.isfinite()):
            raise NotFinite(
                f"the {name} gradient is {float(norm)} at optimizer step {step}; "
                "try a smaller optimization.learning_rate, or a larger algo.lam for apa and awr"
            )
        norms[name] = float(norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norms
