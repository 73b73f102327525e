"""What sbatch and squeue say where SLURM does not take a job: whether that passes, and which option it is about."""

from __future__ import annotations

import re

from rlhf.errors import UserError, printable

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

    def __init__(self, output: str) -> None:
        """Args: output: what sbatch printed."""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        from_slurm = [line for line in lines if re.match(r"s(batch|lurm\w*): ", line)] or lines[:1]
        words = [re.sub(r"^(s\w+: )?(error: )?(Batch job submission failed: )?", "", line) for line in from_slurm]
        self.said = printable("; ".join(dict.fromkeys(words))) or "without a reason"
        super().__init__(f"{option_named_by(self.said)}: sbatch refused ({self.said})")

    @property
    def too_many(self) -> bool:
        """Whether fewer jobs might be taken."""
        return bool(_TOO_MANY.search(self.said)) or self.said.startswith("Job violates " + _SOME_LIMIT)

    @property
    def passing(self) -> bool:
        """Whether the same may succeed later."""
        return bool(_BUSY.search(self.said) or re.search("SubmitJob|Submit.*Limit", self.said))


class NeverStarts(SubmissionError):
    """Jobs are in the queue and will never start."""

    def __init__(self, reason: str) -> None:
        UserError.__init__(
            self, f"{option_named_by(reason)}: SLURM took the jobs and would never start them ({printable(reason)})"
        )
        self.said = reason


def never_starts(reason: str) -> bool:
    """Whether a job that squeue says waits for `reason` waits in vain."""
    return bool(_NEVER_STARTS.search(reason))


def option_named_by(said: str) -> str:
    """The option, or options, that SLURM's words are about."""
    found = (option for part, option in _OPTIONS.items() if re.search(part, said))
    option = next(found, "")
    return f"hardware.slurm.{option}" if option else "hardware.slurm"
