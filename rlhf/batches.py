"""What flows between the stages. Shapes are written here, once.

B responses (or prompts), P prompt tokens (left-padded), T response tokens (right-padded), d hidden size.
Masks are by position: padding is where the mask is False, whatever token id stands there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class _RowBatch:
    """Dataclass of tensors and lists whose first dimension is the row."""

    def rows(self, index: Tensor) -> Self:
        """The rows that `index` (an int64 vector) names, in its order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        at = on_devices(index, values.values())
        picked = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                picked[name] = value[at[value.device]]
            elif isinstance(value, dict):
                picked[name] = {column: [entries[i] for i in index.tolist()] for column, entries in value.items()}
            else:
                picked[name] = None if value is None else [value[i] for i in index.tolist()]
        return type(self)(**picked)

    def to(self, device: torch.device) -> Self:
        """The same rows with every tensor on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


def on_devices(index: Tensor, values: Iterable[object]) -> dict[torch.device, Tensor]:
    """An int64 vector on the device of every tensor among `values`, brought there once."""
    devices = {value.device for value in values if isinstance(value, Tensor)}
    return {device: on_device(index, device) for device in devices}


def on_device(index: Tensor, device: torch.device) -> Tensor:
    """An int64 vector to index tensors of `device` with.

    A GPU indexed by a vector in ordinary memory waits for all its work first.
    """
    if device.type == "cuda" and index.device.type == "cpu":
        return index.pin_memory().to(device, non_blocking=True)
    return index.to(device)


@dataclass(frozen=True)
class PromptBatch(_RowBatch):
    input_ids: Tensor
    """(B, P) int64; pad id on the left."""
    mask: Tensor
    """(B, P) bool; False on padding."""
    texts: list[str]
    """B prompts as text, after the cut to max_prompt_tokens."""
    references: list[str]
    """B reference answers; "" where there is none."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """What else the B rows of the data have, by column."""

    def __post_init__(self) -> None:
        assert self.input_ids.shape == self.mask.shape == (len(self.texts), self.input_ids.shape[1])
        assert len(self.references) == len(self.texts)

    @property
    def digest(self) -> str:
        """Which prompts they are: the same for the same texts in the same order."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:16]

    def trimmed(self) -> PromptBatch:
        """Without the leading columns in which every row is padding."""
        start = self.input_ids.shape[1] - int(self.mask.sum(1).max())
        return replace(self, input_ids=self.input_ids[:, start:], mask=self.mask[:, start:])


@dataclass(frozen=True)
class Rollouts(_RowBatch):
    """Prompts with the responses that the policy sampled for them."""

    prompt_ids: Tensor
    """(B, P) int64; pad id on the left."""
    prompt_mask: Tensor
    """(B, P) bool."""
    response_ids: Tensor
    """(B, T) int64; pad id after the end."""
    mask: Tensor
    """(B, T) bool; True up to and including the EOS or the token that completes a stop string."""
    ended: Tensor
    """(B,) bool; False where the response was cut at max_new_tokens."""
    prompts: list[str]
    references: list[str]
    responses: list[str]
    """B texts to be scored: without EOS and without the stop string."""
    sampler_logprobs: Tensor
    """(B, T) float32; the sampler's own, for diagnosis alone; 0 on padding."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """As `PromptBatch` has them."""

    def __post_init__(self) -> None:
        rows, width = self.response_ids.shape
        assert self.mask.shape == self.sampler_logprobs.shape == (rows, width)
        assert self.prompt_ids.shape == self.prompt_mask.shape and len(self.prompt_ids) == rows
        assert len(self.prompts) == len(self.responses) == len(self.references) == rows == len(self.ended)

    def trimmed(self) -> Rollouts:
        """Without the columns in which every row is padding."""
        start = self.prompt_ids.shape[1] - int(self.prompt_mask.sum(1).max())
        width = int(self.lengths.max())
        return replace(
            self,
            prompt_ids=self.prompt_ids[:, start:],
            prompt_mask=self.prompt_mask[:, start:],
            response_ids=self.response_ids[:, :width],
            mask=self.mask[:, :width],
            sampler_logprobs=self.sampler_logprobs[:, :width],
        )

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: tokens of each response."""
        return self.mask.sum(1)


@dataclass(frozen=True)
class TrainingBatch(_RowBatch):
    """What a loss sees beside the fresh logprobs and values; the rows of a group are neighbours. 0 on padding."""

    rows_in_rollout: Tensor
    """(B,) int64: which response of the iteration this row is (finds its cached features)."""
    mask: Tensor
    """(B, T) bool."""
    old_logprobs: Tensor
    """(B, T) float32: log pi of the sampled tokens by the policy that sampled."""
    reference_logprobs: Tensor
    """(B, T) float32: log pi_init of the same tokens."""
    advantages: Tensor | None = None
    """(B, T) float32, or (B,) where an algorithm has one for each response; None where its loss takes rewards."""
    old_values: Tensor | None = None
    """(B, T) float32: V of the state before each token, at rollout time; None without a critic."""
    returns: Tensor | None = None
    """(B, T) float32: what V learns; None without a critic."""
    rewards: Tensor | None = None
    """(B, T) float32: token rewards, for a loss that takes them; None elsewhere."""
    exact_kl: Tensor | None = None
    """(B, T) float32 nats: KL(pi || pi_init) over the vocabulary at each token, with gradient; None but in a loss that
    takes it."""
    start_logprobs: Tensor | None = None
    """(B, T) float32: log pi of the same tokens as the update begins, where an older policy sampled
    (rollout.lag); None: old_logprobs."""

    def __post_init__(self) -> None:
        shape = self.mask.shape
        for name, column in self.numbers().items():
            assert column.shape == shape or (name == "advantages" and column.shape == shape[:1]), name

    def numbers(self) -> dict[str, Tensor]:
        """What a loss is made of, by name."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return {name: column for name, column in columns.items() if column is not None}

    def first_columns(self, width: int) -> TrainingBatch:
        """The first `width` response tokens."""
        columns = {name: column[:, :width] for name, column in self.numbers().items() if column.dim() == 2}
        return replace(self, mask=self.mask[:, :width], **columns)


@dataclass(frozen=True)
class LossOutput:
    loss: Tensor
    """() float32, with gradient."""
    metrics: dict[str, Tensor]
    """Sums over this micro-batch divided by the minibatch's `Totals`: they add up over micro-batches."""


@dataclass(frozen=True)
class Totals:
    """What the means of a loss divide by: counts of the whole minibatch, so that its parts add up."""

    tokens: Tensor
    """() int64: valid response tokens."""
    responses: int


@dataclass(frozen=True)
class Signal:
    """What a rollout batch teaches, by `Algorithm.signal`: the fields of `TrainingBatch` of these names."""

    advantages: Tensor | None = None
    returns: Tensor | None = None
    rewards: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.advantages is not None or self.rewards is not None, "a signal has advantages or rewards"


@dataclass(frozen=True)
class PreferenceBatch(_RowBatch):
    """Whole texts prompt + answer + EOS, right-padded, L tokens."""

    chosen_ids: Tensor
    """(B, L) int64."""
    chosen_mask: Tensor
    """(B, L) bool."""
    rejected_ids: Tensor
    """(B, L) int64."""
    rejected_mask: Tensor
    """(B, L) bool."""

    def __post_init__(self) -> None:
        assert self.chosen_ids.shape == self.chosen_mask.shape
        assert self.rejected_ids.shape == self.rejected_mask.shape

    def trimmed(self) -> PreferenceBatch:
        """Without the trailing columns in which every row is padding."""
        chosen, rejected = int(self.chosen_mask.sum(1).max()), int(self.rejected_mask.sum(1).max())
        return PreferenceBatch(
            self.chosen_ids[:, :chosen],
            self.chosen_mask[:, :chosen],
            self.rejected_ids[:, :rejected],
            self.rejected_mask[:, :rejected],
        )


@dataclass(frozen=True)
class DemonstrationBatch(_RowBatch):
    """Whole texts prompt + response + EOS, right-padded, L tokens."""

    input_ids: Tensor
    """(B, L) int64."""
    mask: Tensor
    """(B, L) bool; False on padding."""
    loss_mask: Tensor
    """(B, L) bool; True on the tokens whose cross entropy is the loss."""

    def __post_init__(self) -> None:
        assert self.input_ids.shape == self.mask.shape == self.loss_mask.shape
        assert not bool((self.loss_mask & ~self.mask).any()), "loss on padding"

    def trimmed(self) -> DemonstrationBatch:
        """Without the trailing columns in which every row is padding."""
        width = int(self.mask.sum(1).max())
        return DemonstrationBatch(self.input_ids[:, :width], self.mask[:, :width], self.loss_mask[:, :width])


def pad(rows: list[list[int]], value: int, *, left: bool, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Token lists -> (B, W) ids and mask, W the longest or `width`; padding on the left or the right."""
    size = max(map(len, rows)) if width is None else width
    ids = torch.full((len(rows), size), value, dtype=torch.int64)
    mask = torch.zeros((len(rows), size), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(size - len(row), size) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.int64)
        mask[i, where] = True
    return ids, mask
