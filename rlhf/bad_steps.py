"""Optimizer steps whose loss or gradient is not finite: left out, counted, their batches kept, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlhf.finite import NotFinite, check_weights
from rlhf.runs.folder import RunFolder

KEPT = 16
"""Batches kept in a run folder, the first ones: what they have in common shows in a few."""


@dataclass
class BadSteps:
    """The bad steps of one run. Every rank calls `skip` at the same place, for a step that is bad on all of them."""

    folder: RunFolder
    option: str
    """Of the config, which holds `allowed`, as "sft.max_bad_steps"."""
    allowed: int
    """Steps that may be left out in the whole run."""
    count: int = 0
    """Left out so far; a checkpoint keeps it."""

    def skip(
        self,
        error: NotFinite,
        optimizer_step: int,
        parameters: Mapping[str, nn.Parameter],
        describe: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        """Take note of a step that was left out.

        Args:
            error: what was not finite; the step itself has changed nothing.
            parameters: the trained ones, which a further batch cannot mend once they are not finite.
            describe: -> what is written down of the step's examples.

        Raises:
            NotFinite: too many steps were bad, or the weights are.
        """
        problem, _, remedy = str(error).partition("; try ")
        self.count += 1
        file = None
        if self.count <= KEPT or self.count > self.allowed:
            content = {"step": optimizer_step, "problem": problem}
            file = self.folder.keep_bad_step(optimizer_step, lambda: {**content, "batch": describe()})
        check_weights(parameters, f"at optimizer step {optimizer_step}", remedy)
        if self.count > self.allowed:
            raise NotFinite(
                f"{problem}, bad step {self.count} of this run, and {self.option}={self.allowed} may be left out; its "
                f"batch is in {file}; try {remedy}"
            ) from error
