"""Checkpoints: whole or not at all, without pickle, the last two kept.

checkpoints/<step>/ holds tensors.safetensors (trained parameters, optimizer moments) and
state.json (counters, KL controller, reward moments, lengths of the log files). A folder appears under its name by one
rename after everything in it was flushed to disk, and state.json carries the tensors' checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.distributed import part_of, whole
from rlhf.errors import UserError, reason
from rlhf.files import flush_to_disk, remedy_for
from rlhf.finite import not_finite
from rlhf.terminal import say as say_line

KEPT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each parameter."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be read or written; the message names the folder and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Mapping[str, Any]]:
        """The state, for a body that takes its values.

        Raises:
            CheckpointError: it lacks one, or has another kind of value.
        """
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
        raise CheckpointError(f"cannot write checkpoint {final} ({error}); {remedy_for(error)}") from error
    for old in _steps(parent)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path, say: Callable[[str], None] = say_line) -> Checkpoint | None:
    """The newest readable checkpoint of a run folder; None where there is none.

    Args:
        say: told, in one line, of each damaged one that is passed over; it is renamed, so that this happens once.

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
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            problems.append(f"{path.name}: {reason(error)}")
            unreadable.append(path)
            continue
        except OSError as error:  # which may pass, while to go on from an older one could not be undone
            raise CheckpointError(f"cannot read checkpoint {path} ({error}); type the command again") from error
        for damaged in unreadable:  # the logs are now cut back to before it: it must never be gone on from
            damaged.rename(damaged.with_name(f"damaged-{damaged.name}-{os.getpid()}"))
        if problems:
            say(f"damaged checkpoint in {folder / 'checkpoints'} ({'; '.join(problems)}); going on from {path.name}")
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
    """The optimizer's moments and step counters, by parameter number; zeros, as it begins with, where it has none."""
    tensors: dict[str, Tensor] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter, {})
        for name in MOMENTS:
            start = torch.zeros(()) if name == "step" else torch.zeros(parameter.shape)
            tensors[f"optimizer.{number}.{name}"] = whole(state.get(name, start))
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; learning rates and the like stay those of the config.

    Raises:
        CheckpointError: moments are missing, of another shape, or not finite.
    """
    parameters = _parameters(optimizer)
    expected = {
        f"optimizer.{number}.{name}": torch.Size() if name == "step" else parameter.shape
        for number, parameter in enumerate(parameters)
        for name in MOMENTS
    }
    saved = {key: tensor for key, tensor in tensors.items() if key.startswith("optimizer.")}
    _check_tensors(saved, expected, "optimizer states", "the optimizer")
    state: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(parameters))}
    for key, value in saved.items():
        _, number, name = key.split(".")
        if name != "exp_avg" and bool((value < 0).any()):
            raise CheckpointError(f"the checkpoint's {key} is below 0; overwrite=true starts afresh")
        part = value if name == "step" else part_of(value, parameters[int(number)])  # steps are counted whole
        state[int(number)][name] = part
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order of their numbers in the optimizer's state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_tensors(saved: Mapping[str, Tensor], expected: Mapping[str, torch.Size], what: str, owner: str) -> None:
    """Refuse tensors of a checkpoint that are not, name by name and shape by shape, what its reader has.

    Raises:
        CheckpointError: they are not, or hold a number that is not finite.
    """
    if odd := sorted(set(saved) ^ set(expected)):
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise CheckpointError(f"the checkpoint holds other {what} than {owner} ({odd[0]}{more})")
    for name, tensor in saved.items():
        if tensor.shape != expected[name]:
            raise CheckpointError(f"the checkpoint's {name} has shape {list(tensor.shape)}, not {list(expected[name])}")
    if name := not_finite(saved):
        raise CheckpointError(f"the checkpoint's {name} is not finite; overwrite=true starts afresh")


def parameter_tensors(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {f"parameter.{name}": whole(parameter.data) for name, parameter in parameters.items()}


@torch.no_grad()
def load_parameter_tensors(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Undo `parameter_tensors`.

    Raises:
        CheckpointError: the checkpoint was made with other trained parameters, or they are not finite.
    """
    saved = {key.removeprefix("parameter."): t for key, t in tensors.items() if key.startswith("parameter.")}
    expected = {name: parameter.shape for name, parameter in parameters.items()}
    _check_tensors(saved, expected, "parameters", "the model")
    for name, parameter in parameters.items():
        parameter.copy_(part_of(saved[name], parameter))


def _steps(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("[0-9]*") if path.is_dir())


def _state_sha256(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
