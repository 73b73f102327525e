"""The ranks of one run at work together: who does which rows, and how the parts become a whole again.

Every rank holds the whole iteration; it samples, scores, measures and differentiates its own rows alone. What is a
mean, a moment or a draw over all rows is worked out by each rank from the same whole, so that nothing but gradients
and the parts themselves is sent. With one rank every function here gives back what it was given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf.processes import RankFailed

T = TypeVar("T")

BUCKET_NUMBERS = 2**24
"""Gradients are added up so many numbers at a time: 64 MiB in float32."""


def count() -> int:
    """Ranks of this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this process is; 0 alone writes, logs and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def own_rows(total: int) -> Tensor:
    """The rows of range(total) that this rank does, one after the other, as many on each rank.

    Where `total` does not divide, the last row is done more than once; `gathered` drops it again.
    """
    each = -(-total // count())
    return (torch.arange(each) + rank() * each).clamp(max=total - 1)


def gathered(part: T, total: int) -> T:
    """All ranks' parts as one, in the order of `own_rows(total)`.

    Args:
        part: a tensor or list whose first dimension is the row, or a dataclass of such, None and plain numbers.
    """
    if count() == 1:
        return part
    whole: Any = part
    if isinstance(part, Tensor):
        whole = _gathered_tensor(part)[:total]
    elif isinstance(part, list):
        parts: list[Any] = [None] * count()
        distributed.all_gather_object(parts, part)
        whole = [row for rows in parts for row in rows][:total]
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        whole = type(part)(**{name: gathered(value, total) for name, value in fields.items()})
    return whole


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
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET_NUMBERS:
            _sum_bucket(bucket)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def is_sharded(model: object) -> bool:
    """Whether a forward pass of `model` is one of all ranks together."""
    return isinstance(model, nn.Module) and any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All ranks' parts of a tensor, on the CPU of rank 0, which writes it; nothing elsewhere."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return torch.empty(0) if rank() else full.cpu()


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut up as `like` is."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def first_says(function: Callable[[], T]) -> T:
    """What `function` gives on rank 0, which alone calls it, on every rank; what it raises, on every rank.

    The others wait, so that what rank 0 has written is there when they go on.
    """
    if count() == 1:
        return function()
    said: list[Any] = [None, None]
    if rank() == 0:
        try:
            said[0] = function()
        except Exception as error:
            distributed.broadcast_object_list([None, f"rank 0: {type(error).__name__}: {error}"])
            raise
    distributed.broadcast_object_list(said)
    if said[1] is not None:
        raise RankFailed(said[1])
    return said[0]


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    if count() == 1:
        return number
    total = torch.tensor(number)
    distributed.all_reduce(total, distributed.ReduceOp.MAX)
    return int(total)
