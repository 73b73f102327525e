"""Trying out whether our layers compute what a model's own forward pass does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3
"""Of the hidden states' norm; another architecture is off by much more, rounding by less."""


def agree(expected: Tensor, found: Tensor) -> bool:
    return bool(float((expected - found).norm()) <= TOLERANCE * float(expected.norm()))


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """int4 layers compute in what hardware.precision says, whose rounding is larger than what is looked for."""
    before = {module: module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")}
    try:
        for module in before:
            module.compute_dtype = torch.float32  # type: ignore[assignment]
        yield
    finally:
        for module, dtype in before.items():
            module.compute_dtype = dtype
