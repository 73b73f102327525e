"""From hidden states to what is wanted of the logits, in chunks: never (B, T, V) at once.

A head that is cut up among ranks is computed at once all the same.

With V = 50,000 the logits of 16 responses of 128 tokens are 400 MB, and autograd keeps them twice.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf.masked import token_logprobs

CHUNK = 2**24
"""Numbers of a chunk of logits, at most; 64 MB."""


def pieces(count: int, vocabulary: int) -> list[slice]:
    """range(count) in pieces whose logits are a chunk."""
    size = max(1, CHUNK // vocabulary)
    return [slice(first, first + size) for first in range(0, count, size)]


def chosen(of: Tensor, at: Tensor | None) -> Tensor:
    """(B, T, ...) -> (N, ...): the positions `at` of B T, (N,) int64 without repetition; None: all of them."""
    flat = of.flatten(0, 1)
    return flat if at is None else flat.index_select(0, at)


def spread(values: Tensor, like: Tensor, at: Tensor | None) -> Tensor:
    """(N,) back to the shape (B, T) of `like`, 0 where nothing was chosen."""
    if at is None:
        return values.view(like.shape)
    return values.new_zeros(like.numel()).index_copy(0, at, values).view(like.shape)


def trained_logprobs(
    head: nn.Module, hidden: Tensor, tokens: Tensor, *, temperature: float, at: Tensor | None = None
) -> Tensor:
    """log softmax(head(hidden) / temperature) of the tokens, (B, T) float32, with gradient.

    Args:
        head: without autocast; a linear layer is computed in chunks, anything else at once.
        hidden: (B, T, d).
        tokens: (B, T) int64.
        at: (N,) int64, which of the B T positions are wanted; 0 elsewhere. None: all.
    """
    states, taken = chosen(hidden, at), chosen(tokens, at)
    with torch.autocast(hidden.device.type, enabled=False):
        if _is_plain(head):
            trains = torch.is_grad_enabled()
            logprobs = _TokenLogprobs.apply(states.float(), head.weight, head.bias, taken, temperature, trains)
        else:
            logits = head(states.float()) / temperature
            logprobs = token_logprobs(logits, taken)
    return spread(logprobs, tokens, at)  # type: ignore[arg-type]


@torch.no_grad()
def measured_logprobs(
    head: nn.Module, hidden: Tensor, tokens: Tensor, *, temperature: float, at: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `trained_logprobs`, to the bit, and the entropy of the distribution in nats."""
    states, taken = chosen(hidden, at).float(), chosen(tokens, at)
    logprobs, entropies = states.new_empty(len(states)), states.new_empty(len(states))
    with torch.autocast(hidden.device.type, enabled=False):
        weight = head.weight.to(states.dtype) if _is_plain(head) else None
        for rows in [slice(0, len(states))] if weight is None else pieces(len(states), len(weight)):
            if weight is None:
                logits = head(states[rows]) / temperature
            else:
                logits = _logits(states[rows], weight, head.bias, temperature)  # type: ignore[arg-type]
            total = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(-1, taken[rows, None]).squeeze(-1) - total
            table = logits.sub_(total[:, None])
            entropies[rows] = -(table.exp() * table).sum(-1)
    return spread(logprobs, tokens, at), spread(entropies, tokens, at)


def _is_plain(head: nn.Module) -> TypeGuard[nn.Linear]:
    """A matrix that can be multiplied in pieces."""
    return isinstance(head, nn.Linear) and head.weight.is_floating_point() and not isinstance(head.weight, DTensor)


class _TokenLogprobs(torch.autograd.Function):
    """Gradients are made where the logits are: d log p / d hidden = (W[token] - softmax W) / temperature.

    What a trained head needs, softmax, is kept where one chunk is all, and computed again otherwise.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, trains: bool
    ) -> Tensor:
        for_hidden = trains and ctx.needs_input_grad[0]
        for_head = trains and any(ctx.needs_input_grad[1:3])
        parts = pieces(len(hidden), len(weight))
        full = weight.to(hidden.dtype)
        logprobs = hidden.new_empty(len(hidden))
        slopes = torch.empty_like(hidden) if for_hidden else None
        kept = None
        for rows in parts:
            logits = _logits(hidden[rows], full, bias, temperature)
            total = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(-1, tokens[rows, None]).squeeze(-1) - total
            if not (for_hidden or for_head):
                continue
            probabilities = logits.sub_(total[:, None]).exp_()
            if slopes is not None:
                slopes[rows] = (F.embedding(tokens[rows], full) - probabilities @ full) / temperature
            kept = probabilities
        ctx.temperature = temperature
        ctx.save_for_backward(
            slopes, tokens, *((hidden, weight, bias, kept if len(parts) == 1 else None) if for_head else ())
        )
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        slopes, tokens, *head = ctx.saved_tensors
        for_hidden = None if slopes is None else gradient[:, None] * slopes
        if not head:
            return for_hidden, None, None, None, None, None
        hidden, weight, bias, kept = head
        scaled = gradient / ctx.temperature
        full = weight.to(hidden.dtype)
        for_weight = torch.zeros_like(full)
        for_bias = None if bias is None else torch.zeros_like(bias)
        for rows in pieces(len(hidden), len(weight)):
            probabilities = kept
            if probabilities is None:
                probabilities = _logits(hidden[rows], full, bias, ctx.temperature).softmax(-1)
            weighted = probabilities * scaled[rows, None]
            for_weight.addmm_(weighted.t(), hidden[rows], alpha=-1.0)
            if for_bias is not None:
                for_bias -= weighted.sum(0)
        for_weight.index_add_(0, tokens, hidden * scaled[:, None])
        if for_bias is not None:
            for_bias.index_add_(0, tokens, scaled)
        return for_hidden, for_weight.to(weight.dtype), for_bias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    return logits if temperature == 1.0 else logits.div_(temperature)
