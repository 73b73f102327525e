"""What a stage is given to work with: the config, its run folder, and the means to log, checkpoint and stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.bad_steps import BadSteps
from rlhf.checkpoint import Checkpoint, save_checkpoint
from rlhf.config import RunConfig
from rlhf.config.identity import fingerprint
from rlhf.data import load_text_data
from rlhf.data.examples import TextData
from rlhf.distributed import count, first_says, largest, rank
from rlhf.finite import check_saved
from rlhf.lock import RunLock
from rlhf.precision import autocast
from rlhf.terminal import say
from rlhf.tracking import Tracker
from rlhf.waiting import Interrupted, StopFlag


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
        """The CPU, or this rank's GPU, which `rlhf.ranks.joined` has made the current one."""
        return torch.device(self.config.hardware.device)

    @property
    def cache_dir(self) -> Path:
        return Path(self.config.cache_dir)

    def autocast(self) -> torch.autocast:
        """Forward passes in what hardware.precision asks for."""
        return autocast(self.device, self.config.hardware.precision)

    def go_on_from(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        if checkpoint is not None:
            with checkpoint.reading() as state:
                self._seconds_before = float(state["seconds"])

    def take_checkpoint(self) -> Checkpoint | None:
        """Where to go on from, None at the beginning; handed out once, so that its tensors are not kept in memory."""
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint

    def say(self, text: str) -> None:
        """Into the run's log, once for all ranks."""
        if rank() == 0:
            say(text)

    def read_data(self) -> TextData:
        """The run's data set; where it was read from stands in the log.

        Raises:
            DataError: files or hub have not what the config asks for.
        """
        data = load_text_data(self.config.dataset)
        for line in data.sources:
            self.say(line)
        return data

    def seconds(self) -> float:
        """Seconds that this run has worked, interruptions left out."""
        return self._seconds_before + time.monotonic() - self._started

    def bad_steps(self, option: str, allowed: int) -> BadSteps:
        """The count of this run's bad optimizer steps.

        Args:
            option: of the config, which says how many are `allowed`.
        """
        return BadSteps(self.folder, option, allowed, self.write)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Checkpoint after everything up to `step` was logged, then let the mirror have those rows.

        No random state is among it: every draw is a function of (seed, purpose, index), see rlhf/random.py.

        Raises:
            NotFinite: a number is NaN or infinite.
        """

        def write() -> None:
            check_saved(tensors, state, step)
            common = {
                "seconds": self.seconds(),
                "log_lengths": self.tracker.lengths(),
                "inputs": input_fingerprints(self.inputs),
            }
            save_checkpoint(self.folder, step, tensors, {**state, **common})
            self.tracker.covered()

        self.write(write)

    def write(self, write: Callable[[], object]) -> None:
        """Let rank 0 write into the folder, if it is still this run's; the others go on when that is done."""

        def checked() -> None:
            self.lock.check()
            write()

        first_says(checked)

    def asked_to_stop(self) -> bool:
        """Whether a signal came in, at any rank: all ranks ask this at the same place."""
        if count() == 1:
            return self.stop.requested is not None
        number = largest(signal.Signals[self.stop.requested] if self.stop.requested else 0)
        if number:
            self.stop.requested = signal.Signals(number).name
        return number > 0

    def stop_if_asked(self) -> None:
        """Call right after `save`.

        Raises:
            Interrupted: a signal came in.
        """
        if self.asked_to_stop():
            raise Interrupted(f"stopped by {self.stop.requested}, checkpointed; type the command again to go on")
