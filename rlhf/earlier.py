"""The policy as it was some iterations ago: who samples under rollout.lag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rlhf.models.policy import Parameters


class EarlierPolicies:
    """The trained parameters as they were when each of the last `lag` iterations began, in ordinary memory.

    They are swapped into the policy for as long as somebody samples or measures by them: frozen tensors are not held
    twice.
    """

    def __init__(self, parameters: Parameters, lag: int) -> None:
        """
        Args:
            parameters: the policy's, which training moves in place.
            lag: rollout.lag.
        """
        self.parameters, self.lag = parameters, lag
        self.kept: list[dict[str, Tensor]] = []
        """At most `lag`, the oldest first."""

    def remember(self) -> None:
        """Keep the policy as it is; called once an iteration, before the update."""
        if self.lag:
            self.kept = [*self.kept, self._copy()][-self.lag :]

    @contextlib.contextmanager
    def as_sampler(self) -> Iterator[None]:
        """The policy is the one that samples: `lag` iterations old, or the initial one where there were not so many."""
        with self._swapped_in(self.kept[0]) if self.kept else contextlib.nullcontext():
            yield

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps, by name."""
        return {f"lag.{i}.{name}": x for i, kept in enumerate(self.kept) for name, x in kept.items()}

    def make_room(self, iteration: int) -> None:
        """Let `tensors` be those of a checkpoint after this iteration, for it to be read into them."""
        self.kept = [self._copy() for _ in range(min(self.lag, iteration))]

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}

    @contextlib.contextmanager
    def _swapped_in(self, earlier: Mapping[str, Tensor]) -> Iterator[None]:
        now = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._set(earlier)
        try:
            yield
        finally:
            self._set(now)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
