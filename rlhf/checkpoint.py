"""Checkpoints: whole or not at all, without pickle, the last two kept.

checkpoints/<step>/ holds tensors.safetensors (trained parameters, optimizer moments) and
state.json (counters, KL controller, reward moments, lengths of the log files). A folder appears under its name by one
rename after everything in it was flushed to disk, and state.json carries the tensors' checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.distributed import part_of, whole
from rlhf.errors import UserError
from rlhf.files import flush_to_disk

KEPT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be read or written; the message names the folder and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write checkpoints/<step> below the run folder and drop all but the last two.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    parent = folder / "checkpoints"
    final, temporary = parent / f"{step:08d}", parent / f".{step:08d}.tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
        sealed = {**state, "tensors_sha256": _sha256(temporary / TENSORS)}
        (temporary / STATE).write_text(json.dumps({**sealed, "state_sha256": _state_sha256(sealed)}))
        for path in (temporary / TENSORS, temporary / STATE, temporary):
            flush_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        flush_to_disk(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write checkpoint {final} ({error}); free space and type the command again"
        ) from error
    for old in _steps(parent)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest readable checkpoint of a run folder; None where there is none.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged or the newest cannot be read now.
    """
    problems: list[str] = []
    unreadable: list[Path] = []
    for path in reversed(_steps(folder / "checkpoints")):
        try:
            state = json.loads((path / STATE).read_text())
            if _state_sha256({k: v for k, v in state.items() if k != "state_sha256"}) != state["state_sha256"]:
                raise ValueError("the state does not match its checksum")
            if _sha256(path / TENSORS) != state["tensors_sha256"]:
                raise ValueError("the tensors do not match their checksum")
            checkpoint = Checkpoint(load_file(path / TENSORS), state)
        except (FileNotFoundError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            problems.append(f"{path.name}: {error}")
            unreadable.append(path)
            continue
        except OSError as error:  # which may pass, while to go on from an older one could not be undone
            raise CheckpointError(f"cannot read checkpoint {path} ({error}); type the command again") from error
        for damaged in unreadable:  # the logs are now cut back to before it: it must never be gone on from
            damaged.rename(damaged.with_name(f"damaged-{damaged.name}-{os.getpid()}"))
        return checkpoint
    if problems:
        raise CheckpointError(
            f"no readable checkpoint in {folder / 'checkpoints'} ({'; '.join(problems)}); overwrite=true starts afresh"
        )
    return None


def read_tensors(folder: Path, step: int) -> dict[str, Tensor]:
    """The tensors of a checkpoint that another rank has found to be whole."""
    return load_file(folder / "checkpoints" / f"{step:08d}" / TENSORS)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments and step counters, by parameter number."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{name}": whole(value) for number, entry in state.items() for name, value in entry.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; learning rates and the like stay those of the config."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            part = part_of(value, parameters[int(number)]) if value.dim() else value  # steps are counted whole
            state.setdefault(int(number), {})[name] = part
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def parameter_tensors(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {f"parameter.{name}": whole(parameter.data) for name, parameter in parameters.items()}


@torch.no_grad()
def load_parameter_tensors(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Undo `parameter_tensors`.

    Raises:
        CheckpointError: the checkpoint was made with other trained parameters.
    """
    saved = {key.removeprefix("parameter.") for key in tensors if key.startswith("parameter.")}
    if saved != set(parameters):
        odd = sorted(saved ^ set(parameters))
        raise CheckpointError(
            f"the checkpoint holds other parameters than the model ({odd[0]} and {len(odd) - 1} more)"
        )
    for name, parameter in parameters.items():
        saved_tensor = tensors[f"parameter.{name}"]
        if saved_tensor.shape != parameter.shape:
            raise CheckpointError(
                f"the checkpoint's {name} has shape {list(saved_tensor.shape)}, not {list(parameter.shape)}"
            )
        parameter.copy_(part_of(saved_tensor, parameter))


def _steps(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("[0-9]*") if path.is_dir())


def _state_sha256(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
