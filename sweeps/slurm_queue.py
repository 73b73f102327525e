"""What squeue, scontrol and scancel tell and do; sacct, which many clusters lack, is never asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from rlhf.errors import printable, reason

# A busy controller is not asked more often.
ASK_EVERY_SECONDS = 4.0
BUSY_FACTOR = 20.0
ANSWER_WITHIN_SECONDS = 60.0

SCANCEL_AT_ONCE = 200

# squeue's states of a job that will not run again; during a requeue it is COMPLETING, then PENDING.
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
ENDED += ("REVOKED", "TIMEOUT")

# Reasons to wait that pass by themselves; any other is worth a word.
ORDINARY_REASONS = ("None", "Priority", "Resources", "Dependency", "JobArrayTaskLimit", "BeginTime", "Cleaning")


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
    answered_at: float = 0.0
    """When it was asked for its last answer, in seconds since the epoch."""
    took: float = 0.0
    """Seconds of the last answer."""
    trouble: str = ""
    """Why the last question had no answer."""

    def refresh(self, every: float = ASK_EVERY_SECONDS) -> None:
        if time.monotonic() - self.asked_at < max(every, BUSY_FACTOR * self.took):
            return
        began, now = time.monotonic(), time.time()
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
        command += ["--format=%i|%T|%N|%r"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=ANSWER_WITHIN_SECONDS, env=_environment()
            )
        except (OSError, subprocess.SubprocessError) as error:
            self.trouble = printable(str(getattr(error, "stderr", None) or "")) or reason(error)
        else:
            rows = (line.split("|", 3) for line in done.stdout.splitlines() if line.count("|") >= 3)
            self.jobs = {number.strip(): JobState(state, node, reason) for number, state, node, reason in rows}
            self.answers += 1
            self.answered_at = now
            self.trouble = ""
        self.asked_at = time.monotonic()
        self.took = self.asked_at - began

    @property
    def held(self) -> set[str]:
        """Jobs that wait for something that may never come: a hold, an account's limit."""
        waiting = {number: job for number, job in self.jobs.items() if job.state == "PENDING"}
        return {number for number, job in waiting.items() if job.reason not in ORDINARY_REASONS}


def scancel(jobs: Collection[str]) -> str:
    """End these jobs; those that have ended meanwhile do not matter. Returns what scancel complained of."""
    complaints = []
    ordered = sorted(jobs)
    for part in (ordered[i : i + SCANCEL_AT_ONCE] for i in range(0, len(ordered), SCANCEL_AT_ONCE)):
        command = ["scancel", *part]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_WITHIN_SECONDS)
            complaints += done.stderr.strip().splitlines()
        except (OSError, subprocess.SubprocessError) as error:
            complaints.append(str(error))
    return "; ".join(dict.fromkeys(complaints))


def _environment() -> dict[str, str]:
    """A user's SQUEUE_* would hide jobs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}


def has_slurm() -> bool:
    return all(shutil.which(command) for command in ("sbatch", "squeue", "scancel", "scontrol", "srun"))
