"""Random numbers as functions of what they are for.

No draw depends on how many draws came before it: a resumed run, another batch size and another number of ranks use
the same numbers, and a checkpoint needs no generator's state.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for (seed, purpose, index); `index` is an iteration, an epoch or the like."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def sampling_uniforms(seed: int, purpose: str, iteration: int, responses: int, tokens: int) -> Tensor:
    """(responses, tokens) float64 uniforms in [0, 1): row i serves response i of the iteration, whoever samples it."""
    return torch.rand(responses, tokens, dtype=torch.float64, generator=generator(seed, purpose, iteration))


def permutation(seed: int, purpose: str, index: int, size: int) -> Tensor:
    """A random order of range(size), int64."""
    return torch.randperm(size, generator=generator(seed, purpose, index))


def endless_order(seed: int, purpose: str, start: int, count: int, size: int) -> Tensor:
    """Entries start .. start + count - 1 of the sequence that lists range(size) in a fresh random order each epoch."""
    first, last = start // size, (start + count - 1) // size
    orders = torch.cat([permutation(seed, purpose, epoch, size) for epoch in range(first, last + 1)])
    return orders[start - first * size :][:count]


def compute_the_same_again(on: bool) -> None:
    """Algorithms that give the same bits each time, or torch's choice."""
    torch.use_deterministic_algorithms(on)
    # It would write every new tensor once more, for the sake of programs that read what they have not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def seed_torch(seed: int, purpose: str) -> None:
    """Seed the global generator, which random heads and adapters draw from when they are built."""
    torch.manual_seed(generator(seed, purpose).initial_seed())
