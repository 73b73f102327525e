"""Checkpoints: whole or not at all, without pickle, the last two kept.

checkpoints/<step>/ holds tensors.safetensors (trained parameters, optimizer moments) and state.json (counters, KL
controller, reward moments, lengths of the log files). A folder appears under its name by one rename after everything
in it was flushed to disk, and state.json carries the tensors' checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.distributed import full_tensor, shard_like
from rlhf.errors import FileError, UserError, reason
from rlhf.files import write_folder
from rlhf.finite import not_finite
from rlhf.runs.state import CHECKPOINTS
from rlhf.terminal import say

KEPT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each parameter."""


REMEDY = "overwrite=true starts afresh"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be read or written; the message names the folder and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Mapping[str, Any]]:
        """The state, for a body that takes its values; CheckpointError where it lacks one, or has another kind."""
        try:
            yield self.state
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise CheckpointError(
                f"the checkpoint's {STATE} is not of this program ({reason(error)}); overwrite=true starts afresh"
            ) from error


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write checkpoints/<step> below the run folder and drop all but the last two.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """

    def write(into: Path) -> None:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, into / TENSORS)
        content = {**state, "tensors_sha256": _sha256(into / TENSORS)}
        (into / STATE).write_text(json.dumps({**content, "state_sha256": _state_sha256(content)}))

    final = folder / CHECKPOINTS / f"{step:08d}"
    try:
        write_folder(final, write)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    except SafetensorError as error:
        raise CheckpointError(f"{final}: cannot write it ({reason(error)}); type the command again") from error
    for old in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """What `find_checkpoint` finds, with its tensors."""
    newest = find_checkpoint(folder)
    return newest and read_checkpoint(*newest)


def read_checkpoint(path: Path, state: dict[str, Any]) -> Checkpoint:
    """A checkpoint of which rank 0 has found that it is as it was written."""
    return Checkpoint(load_file(path / TENSORS), state)


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Folder and state of a run's newest checkpoint that is as it was written; None where there is none.

    One line tells of each damaged one that is passed over; it is renamed, so that this happens once.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged or the newest cannot be read now.
    """
    problems: dict[Path, str] = {}
    for path in reversed(_checkpoints(folder)):
        try:
            state = _checked_state(path)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems[path] = f"{path.name}: {reason(error)}"
            continue
        except OSError as error:  # which may pass, while to go on from an older one could not be undone
            raise CheckpointError(f"cannot read checkpoint {path} ({error}); type the command again") from error
        for damaged in problems:  # the logs are now cut back to before it: it must never be gone on from
            damaged.rename(damaged.with_name(f"damaged-{damaged.name}-{os.getpid()}"))
        if problems:
            all_of_them = "; ".join(problems.values())
            say(f"damaged checkpoint in {path.parent} ({all_of_them}); going on from {path.name}")
        return path, state
    if problems:
        raise CheckpointError(
            f"no readable checkpoint in {folder / CHECKPOINTS} ({'; '.join(problems.values())}); "
            "overwrite=true starts afresh"
        )
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.is_dir())


def _checked_state(path: Path) -> dict[str, Any]:
    state = json.loads((path / STATE).read_text())
    if _state_sha256({k: v for k, v in state.items() if k != "state_sha256"}) != state["state_sha256"]:
        raise ValueError("the state does not match its checksum")
    if _sha256(path / TENSORS) != state["tensors_sha256"]:
        raise ValueError("the tensors do not match their checksum")
    return state


def _state_sha256(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def training_tensors(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters, and the optimizer's moments and step counters by parameter number: zeros, as it begins with, where
    it has none."""
    tensors = {f"parameter.{name}": full_tensor(parameter.data) for name, parameter in parameters.items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter, {})
        for name in MOMENTS:
            start = torch.zeros(() if name == "step" else parameter.shape)
            tensors[f"optimizer.{number}.{name}"] = full_tensor(state.get(name, start))
    return tensors


@torch.no_grad()
def load_training(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Undo `training_tensors`; learning rates and the like stay those of the config.

    Raises:
        CheckpointError: tensors are missing, too many, of another shape or not finite, or a square moment is below 0.
    """
    optimized = _parameters(optimizer)
    shapes = {f"parameter.{name}": parameter.shape for name, parameter in parameters.items()}
    for number, parameter in enumerate(optimized):
        shapes |= {f"optimizer.{number}.{name}": torch.Size() if name == "step" else parameter.shape for name in MOMENTS}
    if odd := sorted(set(tensors) ^ set(shapes)):
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise CheckpointError(f"the checkpoint holds other tensors than this run trains ({odd[0]}{more}); {REMEDY}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise CheckpointError(f"the checkpoint's {name} has shape {list(tensor.shape)}, not {list(shapes[name])}; {REMEDY}")
        if name.startswith("optimizer.") and not name.endswith(".exp_avg") and bool((tensor < 0).any()):
            raise CheckpointError(f"the checkpoint's {name} is below 0; {REMEDY}")
    if name := not_finite(tensors):
        raise CheckpointError(f"the checkpoint's {name} is not finite; {REMEDY}")
    state: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(optimized))}
    for key, tensor in tensors.items():
        kind, name = key.split(".", 1)
        if kind == "parameter":
            parameters[name].copy_(shard_like(tensor, parameters[name]))
            continue
        number, moment = name.split(".")
        # Steps are no tensor of the parameter's shape and never sharded.
        state[int(number)][moment] = tensor if moment == "step" else shard_like(tensor, optimized[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order of their numbers in the optimizer's state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
