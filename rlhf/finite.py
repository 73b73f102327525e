"""Numbers that are NaN or infinite are found before they are evaluated, saved or read back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf.config.identity import INPUTS
from rlhf.distributed import largest
from rlhf.errors import UserError

_INPUT_RUN = re.compile(r"(sft|reward_model)-s\d+-[0-9a-f]{8}")
"""The folder of a run that others start from, which the program makes again."""


class NotFinite(UserError, ArithmeticError):
    """A number that is NaN or infinite; the message says which and what to try."""


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity; None where all numbers are finite.

    One pass over the memory. Of sharded tensors every rank looks at its own shard, and all get the same answer: it is
    None for all of them or for none.
    """
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    local = {name: t.to_local() if isinstance(t, DTensor) else t.detach() for name, t in tensors.items()}
    local = {name: tensor for name, tensor in local.items() if tensor.is_floating_point() and tensor.numel()}
    bad = None if _finite_norm(local.values()) else next((n for n, t in local.items() if not t.isfinite().all()), None)
    if sharded and largest(int(bad is not None)):
        return bad or "a tensor of another rank"
    return bad


def _finite_norm(tensors: Iterable[Tensor]) -> bool:
    """True proves that all numbers are finite; False may also be a norm too large for its type."""
    by_type: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return all(math.isfinite(float(nn.utils.get_total_norm(alike))) for alike in by_type.values())


def check_weights(tensors: Mapping[str, Tensor], when: str, remedy: str) -> None:
    """Raise NotFinite for weights that training has driven out of the finite numbers.

    Args:
        when: as "after optimizer step 12".
        remedy: as "a smaller sft.learning_rate".
    """
    if name := not_finite(tensors):
        raise NotFinite(f"the weights are not finite {when} ({name}); try {remedy}")


def check_metrics(metrics: Mapping[str, Any], remedy: str) -> None:
    """Raise NotFinite for an evaluation, an eval/* value, that is NaN, infinite or null."""
    for name, value in metrics.items():
        if name.startswith("eval/") and not (isinstance(value, int | float) and math.isfinite(value)):
            raise NotFinite(f"{name} is {'nan' if value is None else value}; try {remedy}")


def check_loaded(tensors: Mapping[str, Tensor], folder: str | Path, option: str) -> None:
    """Raise NotFinite for weights that were read from `folder`, which `option` of the config names."""
    if name := not_finite(tensors):
        run, problem = Path(folder).parent, f"holds weights that are not finite ({name})"
        if run.parent.name == INPUTS and _INPUT_RUN.fullmatch(run.name) and (run / "config.yaml").is_file():
            raise NotFinite(f"{folder}: {problem}; delete {run} and type the command again")
        raise NotFinite(f"{option}: {folder} {problem}; give other weights")


def check_saved(tensors: Mapping[str, Tensor], state: Mapping[str, Any], step: int) -> None:
    """Raise NotFinite for a checkpoint whose tensors or state hold NaN or infinity."""
    if name := not_finite(tensors) or next(_not_finite_in(state, "the state"), None):
        raise NotFinite(f"{name} is not finite at step {step}, and is not saved; try a smaller learning rate")


def _not_finite_in(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite_in(inner, f"{name}'s {key}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield name
