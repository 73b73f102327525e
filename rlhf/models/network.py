"""A base model as it is measured and trained: whole texts in, the states that the response's logits are made of out.

By the layers that `families` knows: no padding mask where nothing is padded, and of the last block, which holds much of
what is trained, the response's columns alone. Else by the model's own forward pass.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.distributed import is_sharded
from rlhf.errors import reason
from rlhf.models.decoder import Context, Decoder, recomputed
from rlhf.models.families import BLOCKS, Unknown, attribute, decoder_of
from rlhf.models.features import Features, before_response, positions_of, run_base
from rlhf.models.layers import with_modules

TOLERANCE = 1e-3
"""Of the hidden states' norm; another architecture is off by much more, rounding by less."""
_MISFITS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_TRYING = threading.Lock()


class Network:
    """(features) -> (B, T, d) states before the response tokens, or (B, L, d) states of all columns.

    Args:
        base: without a head.
        top: the base is the last blocks alone, which go on from the trunk's output.
        whole: all columns' states are wanted, those of padding too, which mean nothing: the base is a trunk.
        recompute: activations are not kept but computed again in the backward pass.
        within: makes the context in which every computation runs.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        top: bool = False,
        whole: bool = False,
        recompute: bool = False,
        within: Context = contextlib.nullcontext,
    ) -> None:
        self.base, self.top, self.whole, self.within = base, top, whole, within
        self._again = within if recompute else None
        self._fallback = recomputing(base, within) if recompute else base
        self._decoder: Decoder | None = None

    def __call__(self, features: Features) -> Tensor:
        start = features.hidden if self.top else None
        with self.within():
            if self.fallback_reason:
                hidden = run_base(self._fallback, features, start)
                return hidden if self.whole else before_response(hidden, features)
            if self._decoder is None:  # as late as this: adapters are put in after a network is made
                self._decoder = decoder_of(self.base)
            return states(self._decoder, features, start, self._again, whole=self.whole)

    @property
    def fallback_reason(self) -> str:
        """Why the model's own forward pass is used; empty where it is not."""
        return misfit(self.base)


def states(
    decoder: Decoder, features: Features, start: Tensor | None, again: Context | None = None, *, whole: bool = False
) -> Tensor:
    """`Network` by known layers.

    Args:
        start: the trunk's output; None: from the tokens.
    """
    mask, width = features.mask, features.mask.shape[1]
    wanted = slice(None) if whole else slice(features.prompt_width - 1, width - 1)
    padded = int(features.prompt_lengths.min()) < features.prompt_width
    positions = positions_of(mask)
    if start is None:
        start = decoder.embed(features.input_ids, positions)
    # Angles are made anew each time, so that what one is depends on the batch's shape alone.
    angles = decoder.angles(width, mask.device)
    return decoder.read(start, mask, positions if padded else None, angles, wanted, again=again)


def misfit(base: nn.Module) -> str:
    """Why `decoder_of` does not compute what a base model's own forward pass does; empty where it does.

    Tried on two short texts, once for each model. Windows and angles of long texts are beyond such texts; the tests
    have them.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError: which say nothing of the model.
    """
    with _TRYING:
        if base not in _MISFITS:
            _MISFITS[base] = "its weights are cut up among ranks" if is_sharded(base) else _try(base)
        return _MISFITS[base]


@torch.no_grad()
def _try(base: Any) -> str:
    name, device = type(base).__name__, next(base.parameters()).device
    ids = (torch.arange(20, device=device).view(2, 10) * 7 + 3) % base.config.vocab_size
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :3] = False
    both = Features(ids, mask, None, 6, torch.tensor([6, 3]), torch.tensor([4, 4]))
    with _in_float32(base), torch.autocast(device.type, enabled=False):
        for texts in (both, both.rows(torch.tensor([0]))):
            expected = run_base(base, texts, None)[texts.mask]
            try:
                computed = states(decoder_of(base), texts, None, whole=True)[texts.mask]
            except Unknown as unknown:
                return str(unknown)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:  # whatever modules of the same names raise that are put together in another way
                return f"{name}: {reason(error)}"
            if not float((expected - computed).norm()) <= TOLERANCE * float(expected.norm()):
                return f"{name} computes something else than the layers it is known for"
    return ""


@contextlib.contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """int4 layers compute in what hardware.precision says, whose rounding is larger than what is looked for."""
    before = {module: module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")}
    try:
        for module in before:
            module.compute_dtype = torch.float32  # type: ignore[assignment]
        yield
    finally:
        for module, dtype in before.items():
            module.compute_dtype = dtype


class _Recomputed(nn.Module):
    def __init__(self, block: nn.Module, again: Context) -> None:
        super().__init__()
        self.block, self.again = block, again

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return recomputed(self.block, self.again, *inputs, **named)


def recomputing(base: nn.Module, again: Context = contextlib.nullcontext) -> nn.Module:
    """A twin of a base model, for training alone, that shares every tensor and keeps a block's input alone.

    Raises:
        ModelError: its blocks are not known.
    """
    name = attribute(base, BLOCKS, "hardware.gradient_checkpointing=true", "use false")
    return with_modules(base, **{name: nn.ModuleList(_Recomputed(block, again) for block in getattr(base, name))})


def recomputing_model(model: PreTrainedModel) -> PreTrainedModel:
    """`recomputing` for a model with a head."""
    return with_modules(model, **{model.base_model_prefix: recomputing(model.base_model)})
