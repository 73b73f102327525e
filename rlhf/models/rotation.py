"""Rotary positions: each pair of a head's coordinates turns by an angle that grows with the position.

Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding". The two of a pair lie `shift` apart:
half of the part that turns where it turns by halves, 1 where it turns by neighbours. So a turned head is the sum of
three products, of the head and of the head shifted both ways, with a factor of 0 where there is no such partner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Angles:
    """For heads of h coordinates at n positions. (B or 1, 1, n h) float32 each."""

    cos: Tensor
    up: Tensor
    """Minus the sine in the first of a pair, by which it takes from its partner `shift` further up; 0 elsewhere."""
    down: Tensor
    """The sine in the second of a pair, by which it takes from its partner further down; 0 elsewhere."""
    shift: int


@dataclass(frozen=True)
class Rotation:
    """The angles of all positions, (positions, h) float32 each; see `Angles`."""

    cos: Tensor
    up: Tensor
    down: Tensor
    shift: int

    @staticmethod
    def by_halves(cos: Tensor, sin: Tensor, size: int) -> Rotation:
        """Cosine and sine (positions, r), both halves alike, of the first r of `size` coordinates."""
        half = sin.shape[-1] // 2
        none = torch.zeros_like(sin[:, :half])
        up, down = torch.cat((-sin[:, :half], none), -1), torch.cat((none, sin[:, half:]), -1)
        return Rotation(_wide(cos, size, 1.0), _wide(up, size, 0.0), _wide(down, size, 0.0), half)

    @staticmethod
    def by_neighbours(cos: Tensor, sin: Tensor, size: int) -> Rotation:
        """Cosine and sine (positions, r / 2), one for each pair of the first r of `size` coordinates."""
        none = torch.zeros_like(sin)
        up, down = torch.stack((-sin, none), -1).flatten(1), torch.stack((none, sin), -1).flatten(1)
        wide = _wide(cos.repeat_interleave(2, -1), size, 1.0)
        return Rotation(wide, _wide(up, size, 0.0), _wide(down, size, 0.0), 1)

    def of(self, positions: Tensor) -> Angles:
        """At positions (B, n) of each row's own."""

        def at(table: Tensor) -> Tensor:
            return F.embedding(positions, table).flatten(1)[:, None]

        return Angles(at(self.cos), at(self.up), at(self.down), self.shift)

    def first(self, count: int) -> Angles:
        """At positions 0 .. count - 1, of all rows alike."""

        def at(table: Tensor) -> Tensor:
            return table[:count].reshape(1, 1, -1)

        return Angles(at(self.cos), at(self.up), at(self.down), self.shift)


def turn(heads: Tensor, angles: Angles) -> Tensor:
    """(B, H, n, h) of queries or keys, turned; float32, as the angles are."""
    if torch.is_grad_enabled() and heads.requires_grad:
        return _Turn.apply(heads, angles)  # type: ignore[no-any-return]
    return _turned(heads, angles, 1.0)


class _Turn(torch.autograd.Function):
    """The gradient is turned back; autograd by itself would keep and add up the shifted pieces."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, angles: Angles) -> Tensor:
        ctx.angles, ctx.dtype = angles, heads.dtype
        return _turned(heads, angles, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _turned(gradients[0], ctx.angles, -1.0).to(ctx.dtype), None


def _turned(heads: Tensor, angles: Angles, direction: float) -> Tensor:
    # Neighbouring positions lie side by side; the factors of 0 keep finite ones apart.
    flat, shift = heads.to(angles.cos.dtype).flatten(2), angles.shift
    turned = flat * angles.cos
    turned[..., :-shift].addcmul_(flat[..., shift:], angles.up[..., :-shift], value=direction)
    turned[..., shift:].addcmul_(flat[..., :-shift], angles.down[..., shift:], value=direction)
    return turned.view(heads.shape)


def _wide(table: Tensor, size: int, rest: float) -> Tensor:
    return F.pad(table.float(), (0, size - table.shape[-1]), value=rest)
