"""A base model as it is measured and trained: whole texts in, the states that the response's logits are made of out.

By its own layers where `families` knows them: no padding mask where nothing is padded, and of the last block, which
holds much of what is trained, the response's columns alone. Else by the model's own forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.distributed import is_sharded
from rlhf.models.decoder import Decoder, attention
from rlhf.models.families import decoder_of
from rlhf.models.features import Features, before_response, positions_of, run_base
from rlhf.models.recompute import recomputing
from rlhf.models.trial import agree, in_float32, tried

Again = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class _Layers:
    decoder: Decoder | None
    reason: str
    """Why there is none."""


class Network:
    """(features) -> (B, T, d) states before the response tokens, or (B, L, d) states of all columns.

    Args:
        base: without a head.
        top: the base is the last blocks alone, which go on from the trunk's output.
        whole: all columns' states are wanted, those of padding too, which mean nothing: the base is a trunk.
        again: activations are not kept but computed again in the backward pass, within this context.
    """

    def __init__(self, base: nn.Module, *, top: bool = False, whole: bool = False, again: Again | None = None) -> None:
        self.base = base
        self.top = top
        self.whole = whole
        self.again = again
        self._own_pass = base if again is None else recomputing(base, again)
        self._found: _Layers | None = None
        self._finding = threading.Lock()

    def __call__(self, features: Features) -> Tensor:
        start = features.hidden if self.top else None
        decoder = self._layers.decoder
        if decoder is None:
            hidden = run_base(self._own_pass, features, start)
            return hidden if self.whole else before_response(hidden, features)
        return states(decoder, features, start, self.again, whole=self.whole)

    @property
    def own_pass(self) -> str:
        """Why the model's own forward pass is used; empty where it is not."""
        return self._layers.reason

    @property
    def _layers(self) -> _Layers:
        # As late as this: weights are cut up among ranks and adapters put in after a network is made.
        if (found := self._found) is not None:
            return found
        with self._finding:
            found = self._found or _layers_of(self)
            self._found = found
            return found


def states(
    decoder: Decoder, features: Features, start: Tensor | None, again: Again | None = None, *, whole: bool = False
) -> Tensor:
    """`Network` by a model's own layers.

    Args:
        start: the trunk's output; None: from the tokens.
    """
    mask, width = features.mask, features.mask.shape[1]
    wanted = slice(None) if whole else slice(features.prompt_width - 1, width - 1)
    padded = int(features.prompt_lengths.min()) < features.prompt_width
    seen = decoder.masks(mask if padded else None, mask.device, width, wanted)

    def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention(queries.to(values.dtype), keys.to(values.dtype), values, seen(number), decoder.scale)

    # Made anew each time, so that what an angle is depends on the batch's shape alone.
    rotation = decoder.rotation_at(width, mask.device)
    angles = None
    if rotation is not None:
        angles = rotation.of(positions_of(mask)) if padded else rotation.first(width)
    if start is None:
        start = decoder.embed(features.input_ids, positions_of(mask))
    return decoder.through(start, angles, attend, wanted, again)


def _layers_of(network: Network) -> _Layers:
    """The base's layers, if on two short texts they compute what its own forward pass does.

    Windows and angles of long texts are beyond such texts; the tests have them.
    """
    base = network.base
    if is_sharded(base):
        return _Layers(None, "its weights are cut up among ranks")
    name, device = type(base).__name__, next(base.parameters()).device
    decoder, reason = tried(name, lambda: decoder_of(base))
    if decoder is None:
        return _Layers(None, reason)
    with torch.no_grad(), in_float32(base), torch.autocast(device.type, enabled=False):
        for texts in _texts(base, device):
            start = _trunk_like(base, texts) if network.top else None
            expected = run_base(base, texts, start)
            found, reason = tried(
                name, lambda texts=texts, start=start: states(decoder, texts, start, whole=network.whole)
            )
            if found is None:
                return _Layers(None, reason)
            if network.whole:
                expected, found = expected[texts.mask], found[texts.mask]
            else:
                expected = before_response(expected, texts)
            if not agree(expected.float(), found.float()):
                return _Layers(None, f"{name} computes something else than the layers it is known for")
    return _Layers(decoder, "")


def _texts(base: Any, device: torch.device) -> list[Features]:
    ids = (torch.arange(20, device=device).view(2, 10) * 7 + 3) % base.config.vocab_size
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :3] = False
    both = Features(
        input_ids=ids,
        mask=mask,
        hidden=None,
        prompt_width=6,
        prompt_lengths=torch.tensor([6, 3]),
        response_lengths=torch.tensor([4, 4]),
    )
    return [both, both.rows(torch.tensor([0]))]


def _trunk_like(base: Any, texts: Features) -> Tensor:
    """States of size 1 that differ from column to column; no random state is used."""
    rows, columns = texts.mask.shape
    numbers = torch.arange(rows * columns * base.config.hidden_size, device=texts.mask.device)
    return (numbers.float() * 0.7).sin().view(rows, columns, -1)
