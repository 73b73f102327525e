"""Sampling responses: policy + prompts -> Rollouts.

The sampler is unmodified on purpose: temperature alone, no top-k, no top-p, no minimal length, no penalty. Any of
these makes log pi_theta another distribution than the one that was sampled, and the KL negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from rlhf.batches import PromptBatch, Rollouts
from rlhf.data.tokenize import decode, eos_id, pad_id
from rlhf.distributed import is_sharded, largest
from rlhf.masked import mask_through_first
from rlhf.models import positions_of
from rlhf.models.policy import Policy


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative probability first exceeds the uniform: one draw a row.

    Args:
        probabilities: (B, V) float64, not necessarily normalised.
        uniforms: (B,) float64 in [0, 1).

    Returns:
        (B,) int64.
    """
    cumulative = probabilities.cumsum(-1)
    threshold = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return tokens.clamp(max=probabilities.shape[-1] - 1)


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


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    uniforms: Tensor,
    *,
    eos_id: int,
    pad_id: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Tokens and the sampler's logprobs, through a key-value cache.

    Args:
        model: called as a causal language model of transformers; gives logits and past_key_values.
        prompt_ids, prompt_mask: (B, P), left-padded.
        uniforms: (B, T) float64, T the longest response.

    Returns:
        (B, T) int64, pad after the first EOS; (B, T) float32, 0 there.
    """
    rows, width = uniforms.shape
    tokens = torch.full((rows, width), pad_id, dtype=torch.int64, device=prompt_ids.device)
    logprobs = torch.zeros(rows, width, device=prompt_ids.device)
    finished = torch.zeros(rows, dtype=torch.bool, device=prompt_ids.device)
    together = is_sharded(model)
    mask = torch.cat([prompt_mask, torch.ones_like(uniforms, dtype=torch.bool)], 1).long()
    positions = positions_of(mask.bool())
    start = prompt_ids.shape[1]
    ids, cache = prompt_ids, _short_cache(model, prompt_ids.device)
    for t in range(width):
        seen = start + t
        arguments: dict[str, Any] = {"logits_to_keep": 1, "use_cache": True}
        output = model(
            input_ids=ids,
            attention_mask=mask[:, :seen],
            position_ids=positions[:, seen - ids.shape[1] : seen],
            past_key_values=cache,
            **arguments,
        )
        cache = output.past_key_values
        step = (output.logits[:, -1].double() / temperature).log_softmax(-1)
        drawn = inverse_cdf(step.exp(), uniforms[:, t])
        drawn = torch.where(finished, pad_id, drawn)
        tokens[:, t] = drawn
        logprobs[:, t] = torch.where(finished, 0.0, step.gather(-1, drawn[:, None]).squeeze(-1).float())
        finished = finished | (drawn == eos_id)
        going = int(not bool(finished.all()))
        if not (largest(going) if together else going):  # sharded weights are gathered by all ranks or none
            break
        ids = drawn[:, None]
    return tokens, logprobs


def generate(
    models: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptBatch,
    uniforms: Tensor,
    *,
    batch_size: int,
    temperature: float,
    stop_strings: Sequence[str],
) -> Rollouts:
    """A response for every prompt; `batch_size` rows are sampled at once, which changes no draw.

    Args:
        prompts: B prompts.
        uniforms: (B, T) float64; row i belongs to prompt i.
    """
    eos, padding, device = eos_id(tokenizer), pad_id(tokenizer), models.device
    parts = []
    with models.sampling() as model:
        for first in range(0, len(uniforms), batch_size):
            rows = slice(first, first + batch_size)
            ids, mask = prompts.input_ids[rows].to(device), prompts.mask[rows].to(device)
            parts.append(
                sample(
                    model,
                    ids,
                    mask,
                    uniforms[rows].to(device),
                    eos_id=eos,
                    pad_id=padding,
                    temperature=temperature,
                )
            )
    tokens = torch.cat([part[0] for part in parts])
    mask, ended = mask_through_first(tokens, eos)
    lengths, stopped, texts = read_responses(tokenizer, tokens, mask, stop_strings)
    mask = mask & (torch.arange(tokens.shape[1], device=device) < lengths[:, None].to(device))
    return Rollouts(
        prompt_ids=prompts.input_ids.to(device),
        prompt_mask=prompts.mask.to(device),
        response_ids=torch.where(mask, tokens, padding),
        mask=mask,
        ended=ended | stopped.to(device),
        prompts=prompts.texts,
        references=prompts.references,
        responses=texts,
        sampler_logprobs=torch.where(mask, torch.cat([part[1] for part in parts]), 0.0),
    )


def read_responses(
    tokenizer: PreTrainedTokenizerBase, tokens: Tensor, mask: Tensor, stop_strings: Sequence[str]
) -> tuple[Tensor, Tensor, list[str]]:
    """Where each response ends, whether a stop string ended it, and the text to be scored.

    The token that completes a stop string still belongs to the response (dropping sampled tokens would bias every
    KL); the scored text stops before the stop string. No text is tokenised again.

    Args:
        tokens, mask: (B, T), up to the first EOS.

    Returns:
        (B,) int64 lengths, (B,) bool, B texts.
    """
    eos = eos_id(tokenizer)
    lengths, stopped, texts = [], [], []
    for row, length in zip(tokens.tolist(), mask.sum(1).tolist(), strict=True):
        kept = row[:length]
        text = decode(tokenizer, [token for token in kept if token != eos])
        end = _first_stop(text, stop_strings)
        if end is not None:
            length = _tokens_until(tokenizer, kept, stop_strings)
            text = decode(tokenizer, kept[:length])  # what comes later may hold an earlier start of another one
            text = text[: _first_stop(text, stop_strings)].rstrip()
        lengths.append(length)
        stopped.append(end is not None)
        texts.append(text)
    return torch.tensor(lengths), torch.tensor(stopped, dtype=torch.bool), texts


def _first_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    found = [text.find(stop) for stop in stop_strings if stop in text]
    return min(found) if found else None


def _tokens_until(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop_strings: Sequence[str]) -> int:
    """Fewest leading tokens whose text holds a stop string (it stays in, once there: bisection)."""
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if _first_stop(decode(tokenizer, tokens[:middle]), stop_strings) is None:
            low = middle + 1
        else:
            high = middle
    return low
