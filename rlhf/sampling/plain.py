"""Sampling through the forward pass of transformers and its growing cache: what any architecture can do."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.distributed import is_sharded, largest
from rlhf.models import positions_of
from rlhf.models.policy import Sampler
from rlhf.sampling.draw import draw


class _ShortCache(DynamicCache):
    """Keys and values in what autocast computes attention in; the model's own cache takes the keys' float32, which
    rotary positions on a float32 residual stream make of them, for both."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(key_states.device.type)
        return super().update(key_states.to(dtype), value_states.to(dtype), layer_idx, *args, **kwargs)


def _short_cache(model: object, device: torch.device) -> DynamicCache | None:
    """None, for the model to make its own, where nothing is computed in fewer bits."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return _ShortCache(config=getattr(model, "config", None))


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
    cache = _short_cache(base, prompt_ids.device)
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
