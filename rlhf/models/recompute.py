"""hardware.gradient_checkpointing: a block's activations are computed again in the backward pass, not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf.models.names import BLOCKS
from rlhf.models.split import attribute, with_modules


class _Recomputed(nn.Module):
    def __init__(self, block: nn.Module, again: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self.block = block
        self.again = again

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return computed_again(self.block, self.again, *inputs, **named)


def computed_again(
    work: Callable[..., Any], again: Callable[[], AbstractContextManager[object]], *inputs: Any, **named: Any
) -> Any:
    """work(*inputs, **named), of which the backward pass keeps the inputs alone.

    Args:
        again: entered around the second computation, for what may have been switched since.
    """
    if not torch.is_grad_enabled():
        return work(*inputs, **named)
    contexts = lambda: (contextlib.nullcontext(), again())  # noqa: E731
    # There is no dropout, so that no random state needs to be kept.
    return checkpoint(work, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **named)


def recomputing(
    base: nn.Module, again: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
) -> nn.Module:
    """A twin of a base model, for training alone, that shares every tensor and keeps a block's input alone.

    Args:
        again: entered around the second computation, for what may have been switched since.
    """
    name = attribute(base, BLOCKS, "hardware.gradient_checkpointing=true", "use false")
    return with_modules(base, **{name: nn.ModuleList(_Recomputed(block, again) for block in getattr(base, name))})


def recomputing_model(model: PreTrainedModel) -> PreTrainedModel:
    """`recomputing` for a model with a head."""
    twin = with_modules(model, **{model.base_model_prefix: recomputing(model.base_model)})
    assert isinstance(twin, PreTrainedModel)
    return twin
