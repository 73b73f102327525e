"""Trying out whether our layers compute what a model's own forward pass does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from rlhf.errors import reason
from rlhf.models.names import Unknown

T = TypeVar("T")

TOLERANCE = 1e-3
"""Of the hidden states' norm; another architecture is off by much more, rounding by less."""


OTHERWISE_BUILT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What modules of the same names, and functions of transformers, raise that are put together in another way."""


def tried(name: str, work: Callable[[], T]) -> tuple[T | None, str]:
    """What `work` gives, or why it gives nothing.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError: which say nothing of the model called `name`.
    """
    try:
        return work(), ""
    except Unknown as unknown:
        return None, str(unknown)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except OTHERWISE_BUILT as error:
        return None, f"{name}: {reason(error)}"


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
