"""The ranks of one run at work together: who does which rows, and how the parts become a whole again.

Every rank holds the whole iteration; it samples, scores, measures and differentiates its own rows alone. What is a
mean, a moment or a draw over all rows is worked out by each rank from the same whole, so that nothing but gradients
and the parts themselves is sent. With one rank every function here gives back what it was given.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf.processes import RankFailed
from rlhf.waiting import Interrupted, stop_requested

T = TypeVar("T")


BUCKET_NUMBERS = 2**24
"""Gradients are added up so many numbers at a time: 64 MiB in float32."""


def count() -> int:
    """Ranks of this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this process is; 0 alone writes, logs and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def own_rows(total: int, group_size: int = 1) -> Tensor:
    """The rows of range(total) that this rank does, one after the other, as many on each rank.

    Where `total` does not divide, the last row is done more than once; `gathered` drops it again.

    Args:
        group_size: so many neighbouring rows stay on one rank.
    """
    each = -(-total // count())
    assert each % group_size == 0, "a group would be cut between ranks; checked in rlhf.config.check"
    return (torch.arange(each) + rank() * each).clamp(max=total - 1)


def gathered(part: T, total: int) -> T:
    """All ranks' parts as one, in the order of `own_rows(total)`.

    Args:
        part: a tensor or list whose first dimension is the row, a dict of lists with the same names on each rank, or a
            dataclass of such, None and plain numbers.
    """
    rows: Any = part
    if count() == 1:
        return part
    if isinstance(part, Tensor):
        rows = _gathered_tensor(part)[:total]
    elif isinstance(part, list):
        parts: list[Any] = [None] * count()
        distributed.all_gather_object(parts, part)
        rows = [row for part in parts for row in part][:total]
    elif isinstance(part, dict):
        rows = {name: gathered(entries, total) for name, entries in part.items()}
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        rows = type(part)(**{name: gathered(value, total) for name, value in fields.items()})
    return rows


def _gathered_tensor(part: Tensor) -> Tensor:
    sent = part.contiguous()
    if part.dtype == torch.bool:  # which not every backend sends
        sent = sent.to(torch.uint8)
    parts = [torch.empty_like(sent) for _ in range(count())]
    distributed.all_gather(parts, sent)
    return torch.cat(parts).to(part.dtype)


def sum_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """Each number added up over the ranks, which all give the same names."""
    if count() == 1:
        return dict(numbers)
    total = torch.tensor(list(numbers.values()), dtype=torch.float64)
    distributed.all_reduce(total)
    return dict(zip(numbers, total.tolist(), strict=True))


def sum_rows(tensor: Tensor) -> Tensor:
    """Rows that each rank has worked out for itself, the others' being 0, put together."""
    total = tensor.contiguous()
    distributed.all_reduce(total)
    return total


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add the gradients up over the ranks, in place. Those of sharded weights have been, in the backward pass."""
    if count() == 1:
        return
    buckets: list[list[Tensor]] = []
    numbers = BUCKET_NUMBERS + 1  # the first gradient opens a bucket
    for gradient in (p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)):
        if numbers + gradient.numel() > BUCKET_NUMBERS:
            buckets.append([])
            numbers = 0
        buckets[-1].append(gradient)
        numbers += gradient.numel()
    for bucket in buckets:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def is_sharded(model: object) -> bool:
    """Whether a forward pass of `model` is one of all ranks together."""
    return isinstance(model, nn.Module) and any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """All ranks' shards of a tensor, on the CPU of rank 0, which writes it; nothing elsewhere."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return torch.empty(0) if rank() else full.cpu()


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a full tensor, cut up as `like` is."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def on_first_rank(function: Callable[[], T]) -> T:
    """What `function` gives on rank 0, which alone calls it, on every rank; what it raises, on every rank.

    The others wait, so that what rank 0 has written is there when they go on. A request to stop is heard by all.

    Raises:
        Interrupted: rank 0 was asked to stop while it waited.
        RankFailed: on the other ranks, where `function` raised anything else.
    """
    if count() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Interrupted as stop:
            outcome[1] = Interrupted(str(stop))
        except Exception as error:
            distributed.broadcast_object_list([None, RankFailed(f"rank 0: {type(error).__name__}: {error}")])
            raise
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def asked_to_stop() -> str | None:
    """Name of the signal that asked any of the ranks to stop; all of them call this at the same place."""
    name = stop_requested()
    if count() == 1:
        return name
    number = largest(signal.Signals[name] if name else 0)
    return signal.Signals(number).name if number else None


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    if count() == 1:
        return number
    total = torch.tensor(number)
    distributed.all_reduce(total, distributed.ReduceOp.MAX)
    return int(total)
