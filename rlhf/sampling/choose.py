"""Whether the fast sampler computes what a model's own forward pass does: known by its class, then tried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.config import RunConfig
from rlhf.distributed import is_sharded
from rlhf.models import positions_of
from rlhf.models.decoder import Decoder
from rlhf.models.families import decoder_of
from rlhf.models.few_rows import for_few_rows
from rlhf.models.policy import Sampler
from rlhf.models.trial import agree, in_float32, tried
from rlhf.sampling.fast import FastSampler, ShortWeights

_TRIED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def unfit(model: PreTrainedModel) -> str:
    """Why `rollout=fast` cannot sample from the model; empty where it can. Tried once for each model."""
    if model not in _TRIED:
        _TRIED[model] = _try(model)
    return _TRIED[model]


def say_where_plain(config: RunConfig, model: PreTrainedModel, say: Callable[[str], None]) -> None:
    """One line where `rollout=fast` does not fit the model."""
    if config.rollout.sampling == "fast" and (reason := unfit(model)):
        say(f"rollout=plain: {reason}")


def fast_sampler(
    sampler: Sampler, *, rows: int, prompt_width: int, response_width: int, eos_id: int, pad_id: int
) -> FastSampler:
    """The fast sampler of a policy that it fits; see `FastSampler` for the arguments.

    Where steps are captured it stays on the policy's shelf, graphs, cache and all, and serves later rollouts too.
    """
    kept = sampler.shelf.kept
    if isinstance(kept, FastSampler) and kept.serves(rows, prompt_width, response_width, eos_id, pad_id):
        kept.short.refresh()
        return kept
    kept = sampler.shelf.kept = None  # what it holds makes room first
    model = sampler.model
    device = next(model.parameters()).device
    cast = torch.is_autocast_enabled(device.type)
    short = ShortWeights(model.base_model, torch.get_autocast_dtype(device.type) if cast else None)
    made = FastSampler(
        sampler,
        decoder_of(short.module if cast else for_few_rows(short.module)),
        short,
        rows=rows,
        prompt_width=prompt_width,
        response_width=response_width,
        eos_id=eos_id,
        pad_id=pad_id,
        device=device,
    )
    if made.graphs is not None:
        sampler.shelf.kept = made
    return made


def _try(model: PreTrainedModel) -> str:
    if is_sharded(model):
        return "its weights are cut up among ranks"
    name = type(model).__name__

    def run() -> tuple[Tensor, Tensor]:
        with in_float32(model):
            return both_ways(model, decoder_of(model.base_model))

    pair, reason = tried(name, run)
    if pair is None:
        return reason
    if not agree(*pair):
        return f"{name} computes something else than the layers it is known for"
    return ""


@torch.no_grad()
def both_ways(model: PreTrainedModel, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Last hidden states of two short texts, one of them left-padded, by the model itself and token by token."""
    base: Any = model.base_model
    device = next(model.parameters()).device
    prompt, whole = 7, 10
    ids = (torch.arange(2 * whole, device=device).view(2, whole) * 7 + 3) % model.config.vocab_size
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :4] = False
    positions = positions_of(mask)
    with torch.autocast(device.type, enabled=False):
        output = base(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False)
        cache, rotation = decoder.new_cache(2, whole, torch.float32, device), decoder.rotation_at(whole, device)
        hidden = decoder.prefill(ids[:, :prompt], mask[:, :prompt], positions[:, :prompt], rotation, cache)
        for column in range(prompt, whole):
            token, position = ids[:, column : column + 1], positions[:, column : column + 1]
            at, seen = torch.tensor([column], device=device), mask[:, : column + 1]
            hidden = decoder.step(token, position, rotation, cache, at, seen, column + 1)
    return output.last_hidden_state[:, -1].float(), hidden.float()
