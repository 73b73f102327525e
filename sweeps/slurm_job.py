"""What a SLURM job does: its runs as children, side by side; warned of its end they checkpoint, and it is requeued."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder, run_id
from rlhf.runs.state import OVER, times_emptied
from rlhf.terminal import complain, say
from sweeps.local_launcher import LocalRuns
from sweeps.machine import Room, visible_gpus
from sweeps.runs import Outcome, outcome_path, read_json, stop_path, write_json
from sweeps.slurm_commands import said_by, scontrol, umask

# sbatch --signal and preemption send it while there is time to checkpoint; the job then asks to be queued again.
WARNING = signal.SIGUSR2
# Sent when the end is close: by scancel, a requeue from outside, or preemption where the site's grace period has no
# warning of its own. In the last case alone SLURM still calls the job RUNNING, and would book its exit as a failure.
END = signal.SIGTERM

# In the environment of a job: the umask of its runs, as chmod writes it; that of the job itself keeps others out.
UMASK = "RLHF_UMASK"

# The lowest of the ports that ranks meet at; the job's number picks one.
FIRST_PORT, PORTS = 20000, 20000


# How often a busy controller is asked.
ASK_TIMES = 5

# Rank 0 says within these how the run ended, when another rank has failed; srun then ends it with the other's job step.
WORD_OF_FIRST_RANK_SECONDS = 30.0


class JobFailed(RuntimeError):
    """Makes SLURM's own state FAILED where a run failed."""


@dataclass(frozen=True)
class PackedRuns:
    """The runs of one job, with their frozen configs."""

    runs: list[RunConfig]
    target: str
    ids: list[str]
    """The runs' ids when they were submitted; code or input files that were edited since would change them."""
    emptied: list[int]
    """How often each run had been started afresh when it was submitted."""

    def _runs_left(self) -> list[RunConfig]:
        """What this start of the job does: what ended before a requeue is not done again, nor emptied twice."""
        again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        left = []
        for run, emptied in zip(self.runs, self.emptied, strict=True):
            if again and read_json(outcome_path(run)).get("status") in (*OVER, "failed"):
                continue
            begun = again and times_emptied(run_folder(run)) > emptied
            left.append(dataclasses.replace(run, overwrite=False) if begun else run)
        return left

    def __call__(self) -> dict[str, str]:
        """Do the runs; returns how each ended.

        Raises:
            JobFailed: one of them failed.
        """
        # A site may drop what the submission set: files are then as the job's own umask says.
        with umask(int(os.environ[UMASK], 8)) if UMASK in os.environ else contextlib.nullcontext():
            return self._do()

    def _do(self) -> dict[str, str]:
        requests: list[int] = []
        for number in (WARNING, END, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, lambda number, _: requests.append(number))
        # Copies, since a run comes with the id that it was submitted with.
        if [run_id(dataclasses.replace(run)) for run in self.runs] != self.ids:
            raise JobFailed(
                f"{self.ids}: the code or an input file was edited since these were submitted; submit again"
            )
        outcomes = self._drive(requests)
        statuses = {run_id(outcome.run): outcome.status for outcome in outcomes}
        say(f"runs: {statuses}")
        warned = WARNING in requests or END in requests
        if warned and "interrupted" in statuses.values() and _rank() == 0 and _still_running():
            try:  # SLURM ends this process right after; where it refuses, it is requeueing the job already
                scontrol("requeue", job_name_in_queue(), tries=ASK_TIMES)
                complain("requeue: asked")
            except (OSError, subprocess.SubprocessError) as error:
                complain(f"requeue: {said_by(error)}")
        failed = [f"{run_id(outcome.run)}: {outcome.reason}" for outcome in outcomes if outcome.status == "failed"]
        if not failed:
            return statuses
        deadline = time.monotonic() + WORD_OF_FIRST_RANK_SECONDS
        while _rank() > 0 and time.monotonic() < deadline:
            if all(outcome_path(run).exists() for run in self.runs):
                break
            time.sleep(0.5)
        raise JobFailed("; ".join(failed))

    def _drive(self, requests: list[int]) -> list[Outcome]:
        threads = sum(run.hardware.threads for run in self.runs)
        gpus = visible_gpus() if len(self.runs) > 1 else ()
        local = LocalRuns(self.target, environment=rank_environment(), room=Room(len(self.runs), threads, gpus))
        outcomes: list[Outcome] = []
        heard, left = 0, self._runs_left()
        stops = {run_folder(run): stop_path(run) for run in left}
        for run in left:
            if _rank() == 0:
                outcome_path(run).unlink(missing_ok=True)
            local.submit(run)
        while local.busy:
            if len(requests) > heard:
                heard = len(requests)
                local.cancel()
            local.cancel([folder for folder, stop in stops.items() if stop.exists()])
            for outcome in local.poll(2.0):
                outcomes.append(_as_asked(outcome, requests))
                if _rank() == 0 and outcome.cause != "locked":  # else another process has it, and will say so itself
                    with contextlib.suppress(OSError):  # a full disk must not end the others; the queue is asked then
                        last = outcomes[-1]
                        note = {"status": last.status, "reason": last.reason, "summary": last.summary}
                        write_json(outcome_path(last.run), note)
        return outcomes


def _as_asked(outcome: Outcome, requests: list[int]) -> Outcome:
    """A run that SLURM's own signal caught before it listened was stopped, and has not failed; nor has one whose other
    ranks went with their node. srun, too, ends by SIGTERM what one dead rank leaves: there the job still runs."""
    if outcome.cause == "rank failed" and _rank() == 0:
        return dataclasses.replace(outcome, status="failed" if _still_running() else "interrupted")
    caught = any(f"killed by {signal.Signals(number).name}" in outcome.reason for number in (WARNING, END))
    return dataclasses.replace(outcome, status="interrupted") if requests and caught else outcome


def rank_environment() -> Mapping[str, str]:
    """What torch.distributed's env:// rendezvous reads, in a job of several tasks.

    The address is the one by which SLURM itself reaches the first node: node names need not resolve.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks == 1:
        return {}
    address = scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    # The name alone where the controller is too busy to say: all ranks of a large job ask at the same time.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = scontrol("show", "node", "-o", address, tries=ASK_TIMES).split()
        address = dict(word.split("=", 1) for word in words if "=" in word).get("NodeAddr", address)
    environment = {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // int(os.environ["SLURM_JOB_NUM_NODES"])),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % PORTS),
    }
    return environment | ({"GLOO_SOCKET_IFNAME": "lo"} if address.startswith("127.") else {})


def job_name_in_queue() -> str:
    """The job's number as squeue -r shows it: 12, or 12_3 in an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))


def _still_running() -> bool:
    """False once SLURM has cancelled the job or queued it again by itself."""
    try:
        return "JobState=RUNNING" in scontrol("show", "job", job_name_in_queue(), tries=ASK_TIMES)
    except (OSError, subprocess.SubprocessError):
        return True  # a controller too busy to say is busy with a mass preemption
