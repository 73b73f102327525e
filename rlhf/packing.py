"""Several texts in one row instead of padding: each attends to itself alone, and its positions start at 0.

transformers tells texts apart by their position ids, where it is given no attention mask; whether an architecture does
is tried out once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.batches import DemonstrationBatch
from rlhf.models.loading import ModelError


@dataclass(frozen=True)
class PackedBatch:
    """Texts one behind the other, R rows of L tokens; what is left of a row is one more text, which nobody reads."""

    input_ids: Tensor
    """(R, L) int64."""
    positions: Tensor
    """(R, L) int64, from 0 in each text."""
    loss_mask: Tensor
    """(R, L) bool; True on the tokens whose cross entropy is the loss, never on the first of a text."""

    def __post_init__(self) -> None:
        assert self.input_ids.shape == self.positions.shape == self.loss_mask.shape
        assert not bool((self.loss_mask & (self.positions == 0)).any()), "loss on what nothing predicts"

    def to(self, device: torch.device) -> PackedBatch:
        return PackedBatch(self.input_ids.to(device), self.positions.to(device), self.loss_mask.to(device))


def pack(batch: DemonstrationBatch, width: int) -> PackedBatch:
    """The batch's texts in rows of at most `width` tokens, the longest first, each where it first fits.

    Args:
        width: at least the longest text.
    """
    lengths = batch.mask.sum(1).tolist()
    rows: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((row for row, left in enumerate(room) if left >= lengths[text]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(width)
        rows[place].append(text)
        room[place] -= lengths[text]
    shape = len(rows), width - min(room)
    ids, loss_mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    positions = torch.arange(shape[1]).repeat(len(rows), 1)
    for row, texts in enumerate(rows):
        start = 0
        for text in texts:
            end = start + lengths[text]
            ids[row, start:end] = batch.input_ids[text, : lengths[text]]
            loss_mask[row, start:end] = batch.loss_mask[text, : lengths[text]]
            positions[row, start:] = torch.arange(shape[1] - start)
            start = end
        positions[row, start:] = torch.arange(shape[1] - start)
    return PackedBatch(ids, positions, loss_mask)


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Run two short texts in one row and apart.

    Raises:
        ModelError: they are not the same; the model does not keep texts of one row apart.
    """
    base, device = model.base_model, next(model.parameters()).device
    ids = torch.arange(2, 14, device=device)[None] % model.config.vocab_size
    positions = torch.tensor([[*range(7), *range(5)]], device=device)
    together = base(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    apart = [base(input_ids=part, use_cache=False).last_hidden_state for part in ids.split([7, 5], dim=1)]
    if not torch.allclose(together, torch.cat(apart, 1), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"sft.packing: {type(model).__name__} does not keep the texts of one row apart; use sft.packing=false"
        )
