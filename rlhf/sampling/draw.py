"""One token a row from logits and a uniform, by the inverse of the cumulative distribution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 128
"""Tokens whose probabilities are summed before any cumulative sum: it runs over V / 128 sums and one chunk."""


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative probability first exceeds the uniform, and its log-probability.

    One pass over the vocabulary, in float32; sums are in float64, so that rare tokens keep their share of a vocabulary
    of 50,000. A token of probability 0 is never drawn.

    Args:
        logits: (B, V) float32 at the sampling temperature; -inf where the policy never goes.
        uniforms: (B,) float64 in [0, 1).

    Returns:
        (B,) int64 and (B,) float32.
    """
    rows, vocabulary = logits.shape
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    if vocabulary % CHUNK:
        weights = F.pad(weights, (0, -vocabulary % CHUNK))
    chunks = weights.view(rows, -1, CHUNK)
    sums = chunks.sum(-1, dtype=torch.float64)
    through = sums.cumsum(-1)
    total = through[:, -1:]
    target = _below(uniforms.unsqueeze(-1) * total, total)
    # Logits that are not finite draw any token: the update will say so, a device-side assert would end the process.
    chunk = torch.searchsorted(through, target, right=True).clamp_(max=through.shape[-1] - 1)
    target = target - (through - sums).gather(-1, chunk)
    inside = chunks.gather(1, chunk.unsqueeze(-1).expand(-1, -1, CHUNK)).squeeze(1).double().cumsum(-1)
    place = torch.searchsorted(inside, _below(target, inside[:, -1:]), right=True)
    tokens = (chunk * CHUNK + place).clamp_(max=vocabulary - 1)
    logprobs = (logits.gather(-1, tokens) - peak).double() - total.log()
    return tokens.squeeze(-1), logprobs.squeeze(-1).float()


def _below(target: Tensor, total: Tensor) -> Tensor:
    """What rounding has put outside [0, total), back in."""
    return torch.minimum(target.clamp(min=0.0), torch.nextafter(total, torch.zeros_like(total)))
