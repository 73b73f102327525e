"""The optimizer, its schedule, one step, and the steps that are left out since they are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf.finite import NotFinite, check_weights
from rlhf.precision import LossScaler

if TYPE_CHECKING:
    from rlhf.runs.folder import RunFolder

UNSCALED = LossScaler("fp32")
REMEDIES = {"policy": "a smaller optimization.learning_rate", "value": "a smaller value.learning_rate"}
"""By network, what may keep its loss and gradient finite."""


def adamw(
    groups: list[tuple[Iterable[nn.Parameter], float]], *, betas: list[float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over (parameters, learning rate) groups; the schedule scales the `initial_lr` kept in each group."""
    return torch.optim.AdamW(
        [
            {"params": kind, "lr": rate, "initial_lr": rate}
            for parameters, rate in groups
            for kind in _by_kind(parameters)
        ],
        betas=(betas[0], betas[1]),
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
    )


def _by_kind(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Plain and sharded ones, each where there are any: fused kernels take tensors of one kind."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in parameters:
        kinds[isinstance(parameter, DTensor)].append(parameter)
    return [kind for kind in kinds if kind]


def clip_gradients(parameters: Iterable[nn.Parameter], max_grad_norm: float) -> Tensor:
    """Scale the gradients down to this norm taken together; returns the norm before."""
    kinds = _by_kind(parameters)
    norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    if total.device.type != "cpu" or float(total) > max_grad_norm:  # to multiply by 1 reads and writes them all
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, max_grad_norm, total)
    return total


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


def clip_and_step(
    optimizer: torch.optim.Optimizer,
    networks: Mapping[str, list[nn.Parameter]],
    max_grad_norm: float,
    step: int,
    scaler: LossScaler = UNSCALED,
    remedies: Mapping[str, str] = REMEDIES,
) -> dict[str, float]:
    """Scale each network's gradient down to `max_grad_norm`, step, and forget the gradients.

    Each network is clipped by its own norm, so that a large value gradient never shortens the policy's step.

    Args:
        remedies: by network, what may keep its gradient finite, as "a smaller value.learning_rate".

    Returns:
        The norm before clipping by network; empty where the step was left out, as the scaler's factor was too large.

    Raises:
        NotFinite: a gradient is not finite, whatever the scaler; parameters are as before.
    """
    norms = {}
    for name, parameters in networks.items():
        scaler.unscale(parameters)
        norm = float(clip_gradients(parameters, max_grad_norm))
        if scaler.forgives(norm):
            optimizer.zero_grad(set_to_none=True)
            scaler.stepped(overflow=True)
            return {}
        if not math.isfinite(norm):
            raise NotFinite(f"the {name} gradient is {norm} at optimizer step {step}; try {remedies[name]}")
        norms[name] = norm
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    scaler.stepped(overflow=False)
    return norms


@dataclass
class BadSteps:
    """The bad optimizer steps of one run: left out, counted, their batches kept, up to a limit. Every rank calls `skip`
    at the same place, for a step that is bad on all of them."""

    KEPT = 16
    """Batches kept in a run folder, the first ones: what they have in common shows in a few."""

    folder: RunFolder
    option: str
    """Of the config, which holds `allowed`, as "sft.max_bad_steps"."""
    allowed: int
    """Steps that may be left out in the whole run."""
    count: int = 0
    """Left out so far; a checkpoint keeps it."""

    def skip(
        self,
        error: NotFinite,
        optimizer_step: int,
        parameters: Mapping[str, nn.Parameter],
        describe: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        """Take note of a step that was left out.

        Args:
            error: what was not finite; the step itself has changed nothing.
            parameters: the trained ones, which a further batch cannot mend once they are not finite.
            describe: -> what is written down of the step's examples.

        Raises:
            NotFinite: too many steps were bad, or the weights are.
        """
        problem, _, remedy = str(error).partition("; try ")
        self.count += 1
        file = None
        if self.count <= self.KEPT or self.count > self.allowed:
            content = {"step": optimizer_step, "problem": problem}
            file = self.folder.keep_bad_step(optimizer_step, lambda: {**content, "batch": describe()})
        check_weights(parameters, f"at optimizer step {optimizer_step}", remedy)
        if self.count > self.allowed:
            raise NotFinite(
                f"{problem}, bad step {self.count} of this run, and {self.option}={self.allowed} may be left out; its "
                f"batch is in {file}; try {remedy}"
            ) from error
