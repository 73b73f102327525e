"""A base model as it is measured and trained: whole texts in, the states that the response's logits are made of out.

By its own layers where `families` knows them: no padding mask where nothing is padded, and of the last block, which
holds much of what is trained, the response's columns alone. Else by the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.distributed import is_sharded
from rlhf.models.decoder import Decoder
from rlhf.models.families import Unknown, decoder_of
from rlhf.models.features import Features, before_response, positions_of, run_base
from rlhf.models.recompute import recomputing
from rlhf.models.rotation import Rotation
from rlhf.models.trial import agree, in_float32


class Network:
    """(features) -> (B, T, d) states before the response tokens.

    Args:
        base: without a head; the whole of it, or a top that goes on from the trunk's output.
        again: activations are not kept but computed again in the backward pass, within this context.
    """

    def __init__(self, base: nn.Module, again: Callable[[], AbstractContextManager[object]] | None = None) -> None:
        self.base = base
        self.again = again
        self._whole = base if again is None else recomputing(base, again)
        self._decoder: Decoder | None = None
        self._tried = False
        self._rotation: Rotation | None = None

    def __call__(self, features: Features, hidden: Tensor | None) -> Tensor:
        """
        Args:
            hidden: the trunk's output, where the base is a top.
        """
        if not self._tried:
            # As late as this, since weights are cut up among ranks and adapters put in after a network is made.
            self._decoder, self._tried = _known(self.base, features, hidden), True
        if self._decoder is None:
            return before_response(run_base(self._whole, features, hidden), features)
        width = features.mask.shape[1]
        if self._rotation is None or len(self._rotation.cos) < width:
            self._rotation = self._decoder.turning(width, features.mask.device)
        return response_states(self._decoder, features, hidden, self._rotation, self.again)


def response_states(
    decoder: Decoder,
    features: Features,
    hidden: Tensor | None,
    rotation: Rotation | None,
    again: Callable[[], AbstractContextManager[object]] | None = None,
) -> Tensor:
    """`Network` by a model's own layers.

    Heads turn by their columns: under left padding all of a row's positions are off by the same, and attention sees
    their differences alone.

    Args:
        rotation: of at least as many positions as the texts have columns.
    """
    width, device = features.mask.shape[1], features.mask.device
    wanted = slice(features.prompt_width - 1, width - 1)
    padded = int(features.prompt_lengths.min()) < features.prompt_width
    seen = decoder.seen(features.mask if padded else None, device, width, wanted)

    def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mask = seen(number)
        return F.scaled_dot_product_attention(
            queries.to(values.dtype),
            keys.to(values.dtype),
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=decoder.scale,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )

    start = decoder.embed(features.input_ids, positions_of(features.mask)) if hidden is None else hidden
    angles = None if rotation is None else rotation.first(width)
    return decoder.through(start, angles, attend, wanted, again)


def _known(base: nn.Module, features: Features, hidden: Tensor | None) -> Decoder | None:
    """The base's layers if they compute what its own forward pass does."""
    if is_sharded(base):
        return None
    device = features.mask.device
    texts = _two_texts(base, device)
    width = texts.mask.shape[1]
    start = (
        None
        if hidden is None
        else torch.linspace(-2, 2, hidden.shape[-1], device=device)
        .outer(torch.arange(1.0, 2 * width + 1, device=device))
        .sin()
        .t()
        .reshape(2, width, -1)
    )
    try:
        decoder = decoder_of(base)
        with torch.no_grad(), in_float32(base), torch.autocast(device.type, enabled=False):
            expected = before_response(run_base(base, texts, start), texts)
            found = response_states(decoder, texts, start, decoder.turning(width, device))
    except (Unknown, AttributeError, TypeError, RuntimeError):
        return None
    return decoder if agree(expected.float(), found.float()) else None


def _two_texts(base: Any, device: torch.device) -> Features:
    """Of 10 tokens, the second left-padded."""
    ids = (torch.arange(20, device=device).view(2, 10) * 7 + 3) % base.config.vocab_size
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :3] = False
    return Features(
        input_ids=ids,
        mask=mask,
        hidden=None,
        prompt_width=6,
        prompt_lengths=torch.tensor([6, 3]),
        response_lengths=torch.tensor([4, 4]),
    )
