"""The progress of a run, read from its metrics.jsonl while it grows."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.identity import INPUTS, run_folder, run_id
from rlhf.runs.state import OVER

STATE_STYLES = {"failed": "red", "lost": "red", "interrupted": "yellow", "running": "green"}

# Speed and time left are measured over so many logged rows.
RECENT_ROWS = 6


class RunProgress:
    """What metrics.jsonl tells of one run so far."""

    def __init__(self, run: RunConfig) -> None:
        self.name = run_id(run)
        self.state = "queued"
        self.folder = run_folder(run)
        self.total, self.unit = {
            **dict.fromkeys(RL_STAGES, (run.rollout.iterations, "iteration")),
            "evaluate": (1, "evaluation"),
            "reference_samples": (run.evaluation.reference_responses, "step"),
            "sft": (run.sft.steps, "step"),
            "reward_model": (run.reward_model.steps, "step"),
        }[run.stage.name]
        self.rl = run.stage.name in RL_STAGES
        self.is_input = run.sweep_name == INPUTS
        self.latest: dict[str, float] = {}
        """The last value of each metric."""
        self.first: dict[str, float] = {}
        """The first one: of eval/*, the initial policy's."""
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_ROWS)
        self._read = 0
        # What an earlier command left is not this run's progress when it starts afresh.
        self._fresh_after = time.time() if run.overwrite else 0.0

    def look(self) -> None:
        """Read the rows that were added; from the top again where a resumed run cut its file back."""
        try:
            self._read_rows(self.folder / "metrics.jsonl")
        except OSError:  # deleted between two looks, or the file system stalls
            return
        except ValueError:  # cut back and grown again since: what was read is no longer there
            self._read = 0

    def _read_rows(self, file: Path) -> None:
        if not file.is_file() or file.stat().st_mtime < self._fresh_after:
            return
        if file.stat().st_size < self._read:
            self._read = 0
            self._recent.clear()
            self.latest.clear()
            self.first.clear()
        with file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # half written
                self._read += len(line)
                row = _numbers(json.loads(line))
                self.latest |= row
                self.first = row | self.first
                if not self._recent or row.get(self.unit, 0) > self._recent[-1].get(self.unit, 0):
                    self._recent.append(row)

    @property
    def done(self) -> int:
        return int(self.latest.get(self.unit, 0))

    @property
    def reward(self) -> float | None:
        """The latest of training and evaluation; of a run that is over, the last evaluation's."""
        return self._latest("reward")

    @property
    def kl(self) -> float | None:
        return self._latest("kl")

    @property
    def first_reward(self) -> float | None:
        """The initial policy's."""
        return self.first.get("eval/reward")

    def _latest(self, name: str) -> float | None:
        places = (f"eval/{name}",) if self.state == "finished" else (f"train/{name}", f"eval/{name}")
        return next((self.latest[place] for place in places if place in self.latest), None)

    @property
    def responses_per_second(self) -> float | None:
        """Of a run at work; SFT and reward models count the examples of their batches."""
        return self._speed("samples") if self.state == "running" else None

    @property
    def seconds_per_unit(self) -> float | None:
        """Of an iteration, or a step."""
        speed = self._speed(self.unit)
        return None if speed is None else 1.0 / speed

    @property
    def total_seconds(self) -> float | None:
        """Of the whole run, by its speed so far, or as it was."""
        if self.state in OVER:
            return self.latest.get("seconds")
        each = self.seconds_per_unit
        return None if each is None else each * self.total

    @property
    def seconds_left(self) -> float | None:
        speed = self._speed(self.unit)
        return (self.total - self.done) / speed if speed and self.state == "running" else None

    def _speed(self, quantity: str) -> float | None:
        if len(self._recent) < 2:
            return None
        first, last = self._recent[0], self._recent[-1]
        seconds = last.get("seconds", 0) - first.get("seconds", 0)
        gained = last.get(quantity, 0) - first.get(quantity, 0)
        return gained / seconds if seconds > 0 and gained > 0 else None

    def described(self) -> str:
        """The run in a line; SFT and reward models have no reward, and count the examples of their batches."""
        known = {" reward": self.reward, " KL": self.kl}
        numbers = "".join(f"{name} {value:.3f}" for name, value in known.items() if value is not None)
        if (speed := self.responses_per_second) is not None:
            numbers += f" {speed:.1f} {'responses' if numbers else 'examples'}/s"
        left = f", {duration(self.seconds_left)} left" if self.seconds_left is not None else ""
        return f"{self.name} {self.done}/{self.total}{numbers}{left}" if self.latest else f"{self.name} starting"


def duration(seconds: float | None) -> str:
    """1:02:03 or 2:03; a dash where it is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _numbers(row: Any) -> dict[str, float]:
    """What a row says of metrics; nothing of a line that is something else."""
    pairs = row.items() if isinstance(row, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, int | float) and not isinstance(value, bool)}
