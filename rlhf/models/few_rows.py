"""Matrix products of few rows on a CPU, as when one token a row is sampled: the weight's reading is what costs.

MKL reads a weight as nn.Linear keeps it at half of its speed or less for 8 to 48 rows; as the left factor it does not
(tests/benchmarks/README.md).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.models.held import widened
from rlhf.models.split import replaced_modules

ROWS = range(8, 49)
LEAST = 2**16 + 1
"""Numbers of a weight from which on it pays; smaller ones stay in the cache."""


class FewRowsLinear(nn.Linear):
    """nn.Linear to rounding, whose rows lie apart in memory where they are few."""

    def forward(self, input: Tensor) -> Tensor:
        # Flat, since a product of three dimensions would go row by row where another has left the rows apart.
        rows = input.reshape(-1, self.in_features)
        if len(rows) not in ROWS or self.weight.numel() < LEAST:
            product = F.linear(rows, self.weight, self.bias)
        else:
            product = torch.mm(self.weight, rows.t()).t()
            if self.bias is not None:
                product += self.bias
        return product.view(*input.shape[:-1], self.weight.shape[0])


def sampling_head(layer: nn.Module) -> nn.Module:
    """A language head as tokens are drawn by it, one a row: a float32 twin, cast once."""
    return for_few_rows(widened(layer))


def for_few_rows(module: nn.Module) -> nn.Module:
    """A twin, for no gradients, that shares every tensor."""
    if not torch.backends.mkl.is_available():
        return module

    def twin(layer: nn.Module) -> nn.Module:
        if type(layer) is not nn.Linear or layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
            return layer
        other = copy.copy(layer)
        other.__class__ = FewRowsLinear
        return other

    return replaced_modules(module, twin)
