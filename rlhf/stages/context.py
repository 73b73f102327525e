"""What a stage is given to work with: the config, its run folder, and the means to log, checkpoint and stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.checkpoint import Checkpoint, save_checkpoint
from rlhf.config import RunConfig
from rlhf.config.identity import fingerprint
from rlhf.lock import RunLock
from rlhf.tracking import Tracker


class Interrupted(Exception):
    """The run was asked to stop and has checkpointed; typing the command again goes on."""


@dataclass
class StopFlag:
    """Set by a signal handler, read where a stage can stop."""

    requested: str | None = None
    """Name of the signal."""


def input_fingerprints(inputs: Mapping[str, Path]) -> dict[str, str]:
    """What the frozen tensors, which no checkpoint holds, were made of."""
    return {stage: fingerprint(str(folder)) for stage, folder in inputs.items()}


@dataclass
class RunContext:
    config: RunConfig
    folder: Path
    inputs: Mapping[str, Path]
    """Folder of final weights by stage: "sft", "reward_model", where that stage ran before."""
    lock: RunLock
    tracker: Tracker
    stop: StopFlag
    _checkpoint: Checkpoint | None = None
    _seconds_before: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.hardware.device)

    @property
    def cache_dir(self) -> Path:
        return Path(self.config.cache_dir)

    def autocast(self) -> torch.autocast:
        """bfloat16 forward passes where hardware.precision asks for them."""
        enabled = self.config.hardware.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def go_on_from(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        if checkpoint is not None:
            self._seconds_before = float(checkpoint.state["seconds"])

    def take_checkpoint(self) -> Checkpoint | None:
        """Where to go on from, None at the beginning; handed out once, so that its tensors are not kept in memory."""
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint

    def seconds(self) -> float:
        """Seconds that this run has worked, interruptions left out."""
        return self._seconds_before + time.monotonic() - self._started

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Checkpoint after everything up to `step` was logged, then let the mirror have those rows.

        No random state is among it: every draw is a function of (seed, purpose, index), see rlhf/random.py.
        """
        self.lock.check()
        common = {
            "seconds": self.seconds(),
            "log_lengths": self.tracker.lengths(),
            "inputs": input_fingerprints(self.inputs),
        }
        save_checkpoint(self.folder, step, tensors, {**state, **common})
        self.tracker.covered()

    def stop_if_asked(self) -> None:
        """Call right after `save`.

        Raises:
            Interrupted: a signal came in.
        """
        if self.stop.requested:
            raise Interrupted(f"stopped by {self.stop.requested}, checkpointed; type the command again to go on")
