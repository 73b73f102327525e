"""What squeue, scontrol and scancel tell and do; sacct, which many clusters lack, is never asked."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, field

# A busy controller is not asked more often.
ASK_EVERY_SECONDS = 4.0
ANSWER_WITHIN_SECONDS = 60.0

# squeue's states of a job that will not run again; during a requeue it is COMPLETING, then PENDING.
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


@dataclass(frozen=True)
class JobState:
    state: str
    """squeue's word: PENDING, RUNNING, COMPLETED ..."""
    node: str = ""
    reason: str = ""
    """Why it waits."""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass
class Queue:
    """This user's jobs, asked for again once the last answer is a few seconds old."""

    jobs: dict[str, JobState] = field(default_factory=dict)
    """By number, 12 or 12_3."""
    asked_at: float = float("-inf")
    answers: int = 0
    """How often the controller has answered."""
    trouble: str = ""
    """Why the last question had no answer."""

    def refresh(self, every: float = ASK_EVERY_SECONDS) -> None:
        if time.monotonic() - self.asked_at < every:
            return
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}"]
        command += ["--format=%i|%T|%N|%r"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_WITHIN_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
            self.trouble = lines[-1] if lines else type(error).__name__
        else:
            rows = (line.split("|", 3) for line in done.stdout.splitlines() if line.count("|") >= 3)
            self.jobs = {number.strip(): JobState(state, node, reason) for number, state, node, reason in rows}
            self.answers += 1
            self.trouble = ""
        self.asked_at = time.monotonic()


def scancel(jobs: Collection[str]) -> None:
    """End these jobs; those that have ended meanwhile do not matter."""
    if jobs:
        subprocess.run(["scancel", *sorted(jobs)], capture_output=True, check=False, timeout=ANSWER_WITHIN_SECONDS)


def has_slurm() -> bool:
    return all(shutil.which(command) for command in ("sbatch", "squeue", "scancel", "scontrol", "srun"))
