"""What SLURM's commands say and do: squeue, scancel, scontrol, and why sbatch refuses a job.

sacct, which many clusters lack, is never asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rlhf.config.build import ConfigError
from rlhf.errors import UserError, printable, reason
from rlhf.terminal import complain

# A busy controller is not asked more often.
ASK_EVERY_SECONDS = 4.0
BUSY_FACTOR = 20.0
ANSWER_WITHIN_SECONDS = 60.0
AWAIT_SECONDS = 120.0

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
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%N|%r"]
        try:
            rows = [line.split("|", 3) for line in _output(command).splitlines() if line.count("|") >= 3]
        except (OSError, subprocess.SubprocessError) as error:
            self.trouble = said_by(error)
        else:
            self.jobs = {number.strip(): JobState(state, node, reason) for number, state, node, reason in rows}
            self.answers += 1
            self.answered_at = now
            self.trouble = ""
        self.asked_at = time.monotonic()
        self.took = self.asked_at - began

    def await_answer(self) -> None:
        """Without the queue it cannot be told which runs an earlier command submitted.

        Raises:
            ConfigError: squeue fails for two minutes, or because no cluster is set up here.
        """
        deadline = time.monotonic() + AWAIT_SECONDS
        self.refresh()
        if not self.answers and "fatal" not in self.trouble:
            complain(f"{self.complaint} for {AWAIT_SECONDS:.0f} s")
        while not self.answers:
            if time.monotonic() > deadline or "fatal" in self.trouble:
                raise ConfigError([f"hardware.slurm: squeue fails ({self.trouble}); nothing was submitted"])
            time.sleep(2.0)
            self.refresh()

    @property
    def complaint(self) -> str:
        return f"squeue does not answer ({self.trouble}); asking on"

    @property
    def held(self) -> set[str]:
        """Jobs that wait for something that may never come: a hold, an account's limit."""
        waiting = {number: job for number, job in self.jobs.items() if job.state == "PENDING"}
        return {number for number, job in waiting.items() if job.reason not in ORDINARY_REASONS}


def _output(command: Sequence[str], tries: int = 1) -> str:
    """What a command prints; a busy controller is asked again after two seconds.

    Raises:
        OSError, subprocess.SubprocessError: the controller does not answer, or refuses.
    """
    # A user's SQUEUE_* would hide jobs.
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    for left in reversed(range(tries)):
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=ANSWER_WITHIN_SECONDS, env=env
            ).stdout
        except (OSError, subprocess.SubprocessError):
            if not left:
                raise
            time.sleep(2.0)
    raise AssertionError(tries)


def said_by(error: Exception) -> str:
    """What a command that failed complained of."""
    return printable(str(getattr(error, "stderr", None) or "")) or reason(error)


def scancel(jobs: Collection[str]) -> str:
    """End these jobs; those that have ended meanwhile do not matter. Returns what scancel complained of."""
    complaints, ordered = [], sorted(jobs)
    for start in range(0, len(ordered), SCANCEL_AT_ONCE):
        try:
            _output(["scancel", *ordered[start : start + SCANCEL_AT_ONCE]])
        except (OSError, subprocess.SubprocessError) as error:
            complaints.append(said_by(error))
    return "; ".join(dict.fromkeys(complaints))


def scontrol(*words: str, tries: int = 1) -> str:
    """What it prints; raises as `_output` does."""
    return _output(["scontrol", *words], tries)


def has_slurm() -> bool:
    return all(shutil.which(command) for command in ("sbatch", "squeue", "scancel", "scontrol", "srun"))


def largest_array() -> int:
    """MaxArraySize is one more than the largest index."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if size := re.search(r"(?m)^MaxArraySize\s*=\s*(\d+)", scontrol("show", "config")):
            return max(1, int(size[1]) - 1)
    return 1000  # SLURM's default


@contextlib.contextmanager
def umask(mask: int) -> Iterator[int]:
    """Files that are made in this context have these permissions masked; gives the umask from before."""
    before = os.umask(mask)
    try:
        yield before
    finally:
        os.umask(before)


# The same command may succeed a little later: a controller that is busy or gone.
_BUSY = re.compile(
    "Unable to contact|[Tt]imed out|Connection|temporarily|not responding|queue full|try again", re.IGNORECASE
)

# Fewer jobs may be let in, or the same number once others have ended. MaxArraySize may be lower for some partitions.
_TOO_MANY = re.compile("SubmitJob|Submit.*Limit|job array specification|temporarily unable to accept|queue full")

# What old versions of SLURM say of every limit of an account or a quality of service, without its name.
_SOME_LIMIT = "accounting/QOS policy"

# A job with such a reason to wait never starts: it asks for more than a job may have.
_NEVER_STARTS = re.compile("PartitionTimeLimit|Per(Job|Node)(Limit)?$|Invalid(Account|QOS)|(Account|QOS)NotAllowed")

# Part of what SLURM says -> the options of hardware.slurm to look at; the first that fits counts.
_OPTIONS = {
    "qos spec|InvalidQOS|QOSNotAllowed": "qos",
    "[Ii]nvalid ?[Aa]ccount|AccountNotAllowed": "account",
    "time limit is invalid|WallDuration|TimeLimit": "time_minutes",
    "partition": "partition",
    "feature": "constraint",
    "dependency": "dependency",
    "reservation|unrecognized|option": "sbatch",
    "gres|GRES|generic resource|G[Pp][Uu]": "gpus_per_node",
    "Memory|Mem": "memory_gb",
    "Node count|Node": "nodes",
    "C[Pp][Uu]|processors": "cpus_per_task",
    "node configuration is not available": "nodes, tasks_per_node, cpus_per_task, gpus_per_node or memory_gb",
}


class SubmissionError(UserError):
    """sbatch refused, or takes jobs that it will never start."""

    def __init__(self, output: str, what: str = "sbatch refused") -> None:
        """Args: output: what sbatch printed, or squeue gives as the reason to wait."""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        from_slurm = [line for line in lines if re.match(r"s(batch|lurm\w*): ", line)] or lines[:1]
        words = [re.sub(r"^(s\w+: )?(error: )?(Batch job submission failed: )?", "", line) for line in from_slurm]
        self.said = printable("; ".join(dict.fromkeys(words))) or "without a reason"
        super().__init__(f"{option_named_by(self.said)}: {what} ({self.said})")

    @property
    def too_many(self) -> bool:
        """Whether fewer jobs might be taken."""
        return bool(_TOO_MANY.search(self.said)) or self.said.startswith("Job violates " + _SOME_LIMIT)

    @property
    def passing(self) -> bool:
        """Whether the same may succeed later."""
        return bool(_BUSY.search(self.said) or re.search("SubmitJob|Submit.*Limit", self.said))


def never_starts(reason: str) -> bool:
    """Whether a job that squeue says waits for `reason` waits in vain."""
    return bool(_NEVER_STARTS.search(reason))


def option_named_by(said: str) -> str:
    """The option, or options, that SLURM's words are about."""
    option = next((option for part, option in _OPTIONS.items() if re.search(part, said)), "")
    return f"hardware.slurm.{option}" if option else "hardware.slurm"
