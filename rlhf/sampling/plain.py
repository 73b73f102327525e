"""Sampling by the forward pass of transformers and its growing cache, which any architecture can do; and one draw."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from rlhf.distributed import is_sharded, largest
from rlhf.models import positions_of
from rlhf.models.policy import Sampler

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


class _ShortCache(DynamicCache):
    """Keys and values in what autocast computes attention in; the model's own cache takes the keys' float32, which
    rotary positions on a float32 residual stream make of them, for both."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(key_states.device.type)
        return super().update(key_states.to(dtype), value_states.to(dtype), layer_idx, *args, **kwargs)


def cache_argument(base: Any) -> str:
    """What the model's forward pass calls its cache, as its output does; transformers has begun to rename it."""
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


@torch.no_grad()
def sample_plain(
    sampler: Sampler, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor, *, eos_id: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Tokens and the sampler's logprobs.

    Args:
        prompt_ids, prompt_mask: (B, P), left-padded.
        uniforms: (B, T) float64, T the longest response.

    Returns:
        (B, T) int64, pad after the first EOS; (B, T) float32, 0 there.
    """
    rows, width = uniforms.shape
    tokens = torch.full((rows, width), pad_id, dtype=torch.int64, device=prompt_ids.device)
    logprobs = torch.zeros(rows, width, device=prompt_ids.device)
    finished = torch.zeros(rows, dtype=torch.bool, device=prompt_ids.device)
    base: Any = sampler.model.base_model
    together = is_sharded(base)
    mask = torch.cat([prompt_mask, torch.ones_like(uniforms, dtype=torch.bool)], 1).long()
    positions = positions_of(mask.bool())
    start = prompt_ids.shape[1]
    ids, name = prompt_ids, cache_argument(base)
    # None, for the model to make its own, where nothing is computed in fewer bits.
    cache = _ShortCache(config=base.config) if torch.is_autocast_enabled(prompt_ids.device.type) else None
    for t in range(width):
        seen = start + t
        output = base(
            input_ids=ids,
            attention_mask=mask[:, :seen],
            position_ids=positions[:, seen - ids.shape[1] : seen],
            use_cache=True,
            **{name: cache},
        )
        cache = output[name]
        drawn, logprob = draw(sampler.logits(output.last_hidden_state[:, -1]), uniforms[:, t])
        drawn = torch.where(finished, pad_id, drawn)
        tokens[:, t] = drawn
        logprobs[:, t] = torch.where(finished, 0.0, logprob)
        finished = finished | (drawn == eos_id)
        going = int(not bool(finished.all()))
        if not (largest(going) if together else going):  # sharded weights are gathered by all ranks or none
            break
        ids = drawn[:, None]
    return tokens, logprobs
