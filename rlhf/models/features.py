"""A batch of whole texts as the trained parts of a network take it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.batches import Rollouts, on_device


@dataclass(frozen=True)
class Features:
    """B rows, L = P + T positions."""

    input_ids: Tensor
    """(B, L) int64: left-padded prompt, then right-padded response."""
    mask: Tensor
    """(B, L) bool."""
    hidden: Tensor | None
    """(B, L, d) float: the trunk's output; None where nothing is shared."""
    prompt_width: int
    """P."""
    prompt_lengths: Tensor
    """(B,) int64 on the CPU, whatever the device: reading them waits for nothing."""
    response_lengths: Tensor
    """As `prompt_lengths`."""

    def rows(self, index: Tensor) -> Features:
        """The rows that `index` (an int64 vector on the CPU) names."""
        at = on_device(index, self.mask.device)
        return Features(
            input_ids=self.input_ids[at],
            mask=self.mask[at],
            hidden=None if self.hidden is None else self.hidden[at],
            prompt_width=self.prompt_width,
            prompt_lengths=self.prompt_lengths[index],
            response_lengths=self.response_lengths[index],
        )

    @property
    def tokens(self) -> Tensor:
        """(B, T) of the responses."""
        return self.input_ids[:, self.prompt_width :]

    def response_positions(self) -> Tensor | None:
        """Which of the B T positions of responses hold tokens, (N,) int64; None: all of them.

        From the lengths, which are on the CPU: whoever picks by a mask on a GPU waits for it.
        """
        columns = self.input_ids.shape[1] - self.prompt_width
        if int(self.response_lengths.min()) == columns:
            return None
        valid = torch.arange(columns) < self.response_lengths[:, None]
        return on_device(valid.flatten().nonzero().squeeze(1), self.mask.device)

    def trimmed(self) -> Features:
        """Without the columns in which every row is padding."""
        first = self.prompt_width - int(self.prompt_lengths.max())
        columns = slice(first, self.prompt_width + int(self.response_lengths.max()))
        return dataclasses.replace(
            self,
            input_ids=self.input_ids[:, columns],
            mask=self.mask[:, columns],
            hidden=None if self.hidden is None else self.hidden[:, columns],
            prompt_width=self.prompt_width - first,
        )


def micro_batches(
    index: Tensor, features: Features, size: int, *, by_length: bool, group_size: int = 1
) -> list[Tensor]:
    """Rows in pieces of at most `size`, neighbours in length together where asked for, so that little is padding.

    Args:
        index: int64 vector on the CPU of rows of `features`.
        size: a multiple of `group_size`.
        group_size: so many neighbours in `index` stay together, in their order; the longest counts.
    """
    if by_length:
        lengths = features.prompt_lengths[index] + features.response_lengths[index]
        order = lengths.view(-1, group_size).amax(1).argsort(stable=True)
        index = index.view(-1, group_size)[order].flatten()
    return list(index.split(size))


def features_of(rollouts: Rollouts) -> Features:
    """The whole texts, without a trunk's output."""
    return Features(
        input_ids=torch.cat([rollouts.prompt_ids, rollouts.response_ids], 1),
        mask=torch.cat([rollouts.prompt_mask, rollouts.mask], 1),
        hidden=None,
        prompt_width=rollouts.prompt_ids.shape[1],
        prompt_lengths=rollouts.prompt_mask.sum(1).cpu(),
        response_lengths=rollouts.mask.sum(1).cpu(),
    )


def positions_of(mask: Tensor) -> Tensor:
    """Position ids under left padding: the first real token is at 0. (B, L) bool -> (B, L) int64."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def before_response(hidden: Tensor, features: Features) -> Tensor:
    """Hidden states that predict the response tokens: (B, L, d) -> (B, T, d), contiguous (bf16 heads are slow else)."""
    return hidden[:, features.prompt_width - 1 : -1].contiguous()


def run_base(base: nn.Module, features: Features, hidden: Tensor | None) -> Tensor:
    """Final hidden states (B, L, d) of a base model, from tokens or from the trunk's output."""
    start = {"input_ids": features.input_ids} if hidden is None else {"inputs_embeds": hidden}
    return base(
        **start, attention_mask=features.mask.long(), position_ids=positions_of(features.mask), use_cache=False
    ).last_hidden_state
