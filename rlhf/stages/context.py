"""What a stage is given to work with: the config, its run folder, and the means to go on, checkpoint and stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.config.identity import fingerprint
from rlhf.data import load_text_data
from rlhf.data.examples import TextData
from rlhf.distributed import asked_to_stop, rank
from rlhf.precision import autocast
from rlhf.runs.checkpoint import Checkpoint
from rlhf.runs.folder import RunFolder
from rlhf.terminal import say
from rlhf.waiting import Interrupted


@dataclass
class RunContext:
    config: RunConfig
    folder: RunFolder
    inputs: Mapping[str, Path]
    """Folder of final weights by stage: "sft", "reward_model", where that stage ran before."""
    _checkpoint: Checkpoint | None = None
    _seconds_before: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The CPU, or this rank's GPU, which `rlhf.ranks.joined` has made the current one."""
        return torch.device(self.config.hardware.device)

    @property
    def cache_dir(self) -> Path:
        return Path(self.config.cache_dir)

    def autocast(self) -> torch.autocast:
        """Forward passes in what hardware.precision asks for."""
        return autocast(self.device, self.config.hardware.precision)

    def begin(self) -> None:
        """Make the folder as the stage expects it, and take up the newest checkpoint."""
        self._checkpoint = self.folder.begin(self.config, self._input_fingerprints())
        if self._checkpoint is not None:
            with self._checkpoint.reading() as state:
                self._seconds_before = float(state["seconds"])

    def take_checkpoint(self) -> Checkpoint | None:
        """Where to go on from, None at the beginning; handed out once, so that its tensors are not kept in memory."""
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint

    def say(self, text: str) -> None:
        """Into the run's log, once for all ranks."""
        if rank() == 0:
            say(text)

    def read_data(self, *parts: str) -> TextData:
        """These parts of the run's data set; the log says where from. DataError: they are not as configured."""
        data = load_text_data(self.config.dataset, parts)
        for line in data.sources:
            self.say(line)
        return data

    def seconds(self) -> float:
        """Seconds that this run has worked, interruptions left out."""
        return self._seconds_before + time.monotonic() - self._started

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Checkpoint after everything up to `step` was logged; NotFinite where a number is NaN or infinite.

        No random state is among it: every draw is a function of (seed, purpose, index), see rlhf/random.py.
        """
        common = {"seconds": self.seconds(), "inputs": self._input_fingerprints()}
        self.folder.save(step, tensors, {**state, **common})

    def _input_fingerprints(self) -> dict[str, str]:
        """What the frozen tensors, which no checkpoint holds, were made of."""
        return {stage: fingerprint(str(folder)) for stage, folder in self.inputs.items()}

    def asked_to_stop(self) -> bool:
        """Whether a signal came in, at any rank: all ranks ask this at the same place."""
        return asked_to_stop() is not None

    def stop_if_asked(self) -> None:
        """Raise Interrupted where a signal came in; call right after `save`."""
        if (name := asked_to_stop()) is not None:
            raise Interrupted(f"stopped by {name}, checkpointed; type the command again to go on")
