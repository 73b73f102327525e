"""Optimizer steps whose loss or gradient is not finite: left out, counted, their batches kept, up to a limit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlhf.files import write_whole
from rlhf.finite import NotFinite, check_weights

FOLDER = "bad_steps"
KEPT = 16
"""Batches kept in a run folder, the first ones: what they have in common shows in a few."""


@dataclass
class BadSteps:
    """The bad steps of one run. Every rank calls `skip` at the same place, for a step that is bad on all of them."""

    folder: Path
    """The run's."""
    option: str
    """Of the config, which holds `allowed`, as "sft.max_bad_steps"."""
    allowed: int
    """Steps that may be left out in the whole run."""
    write: Callable[[Callable[[], object]], None]
    """`RunContext.write`."""
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
        file = self.folder / FOLDER / f"{optimizer_step:08d}.json"
        kept = self.count <= KEPT or self.count > self.allowed
        if kept:
            self.write(lambda: _keep(file, {"step": optimizer_step, "problem": problem, "batch": [*describe()]}))
        check_weights(parameters, f"at optimizer step {optimizer_step}", remedy)
        if self.count > self.allowed:
            raise NotFinite(
                f"{problem}, bad step {self.count} of this run, and {self.option}={self.allowed} may be left out; its "
                f"batch is in {file}; try {remedy}"
            ) from error


def _keep(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    write_whole(file, json.dumps(_spelled(content), ensure_ascii=False, indent=1))


def _spelled(value: Any) -> Any:
    """The same with "nan", "inf" and "-inf" as texts: JSON has no such numbers, and they are what is looked for."""
    if isinstance(value, Tensor):
        return _spelled(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _spelled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(inner) for inner in value]
    return value
