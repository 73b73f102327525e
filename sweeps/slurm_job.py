"""What a SLURM job does: its runs as children, side by side; warned of its end they checkpoint, and it is requeued."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder, run_id
from sweeps.local_launcher import LocalRuns
from sweeps.records import outcome_path, stop_path, write_json
from sweeps.resources import Room, visible_gpus
from sweeps.runs import Outcome

# sbatch --signal and preemption send it while there is time to checkpoint; the job then asks to be queued again.
WARNING = signal.SIGUSR2
# Sent when the end is close: by scancel, a requeue from outside, or preemption where the site's grace period has no
# warning of its own. In the last case alone SLURM still calls the job RUNNING, and would book its exit as a failure.
END = signal.SIGTERM

# The lowest of the ports that ranks meet at; the job's number picks one.
FIRST_PORT, PORTS = 20000, 20000


class JobFailed(RuntimeError):
    """Makes SLURM's own state FAILED where a run failed."""


@dataclass(frozen=True)
class PackedRuns:
    """The runs of one job, with their frozen configs."""

    runs: list[RunConfig]
    target: str

    def _own_runs(self) -> list[RunConfig]:
        """What this start of the job does: one that was requeued goes on even where it was to start afresh."""
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
            return self.runs
        return [dataclasses.replace(run, overwrite=False) for run in self.runs]

    def __call__(self) -> dict[str, str]:
        """Do the runs; returns how each ended.

        Raises:
            JobFailed: one of them failed.
        """
        requests: list[int] = []
        for number in (WARNING, END, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, lambda number, _: requests.append(number))
        outcomes = self._drive(requests)
        statuses = {run_id(outcome.run): outcome.status for outcome in outcomes}
        print(f"runs: {statuses}", flush=True)
        warned = WARNING in requests or END in requests
        if warned and "interrupted" in statuses.values() and _rank() == 0 and _still_running():
            _requeue()
        failed = [f"{run_id(outcome.run)}: {outcome.reason}" for outcome in outcomes if outcome.status == "failed"]
        if failed:
            raise JobFailed("; ".join(failed))
        return statuses

    def _drive(self, requests: list[int]) -> list[Outcome]:
        threads = sum(run.hardware.threads for run in self.runs)
        gpus = visible_gpus() if len(self.runs) > 1 else ()
        local = LocalRuns(self.target, environment=rank_environment(), room=Room(len(self.runs), threads, gpus))
        outcomes: list[Outcome] = []
        heard = 0
        for run in self._own_runs():
            if _rank() == 0:
                outcome_path(run).unlink(missing_ok=True)
            local.submit(run)
        while local.busy:
            if len(requests) > heard:
                heard = len(requests)
                local.cancel()
            local.cancel([run_folder(run) for run in self.runs if stop_path(run).exists()])
            for outcome in local.poll(1.0):
                outcomes.append(outcome)
                if _rank() == 0:
                    told = {"status": outcome.status, "reason": outcome.reason}
                    write_json(outcome_path(outcome.run), told)
        return outcomes


def rank_environment() -> Mapping[str, str]:
    """What torch.distributed's env:// rendezvous reads, in a job of several tasks.

    The address is the one by which SLURM itself reaches the first node: node names need not resolve.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks == 1:
        return {}
    first = _scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    fields = dict(word.split("=", 1) for word in _scontrol("show", "node", "-o", first).split() if "=" in word)
    address = fields.get("NodeAddr", first)
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
    return "JobState=RUNNING" in _scontrol("show", "job", job_name_in_queue())


def _requeue() -> None:
    """SLURM ends this process right after; where it refuses, it is requeueing the job already."""
    done = subprocess.run(["scontrol", "requeue", job_name_in_queue()], capture_output=True, text=True, check=False)
    print(f"requeue: {done.stderr.strip() or 'asked'}", file=sys.stderr, flush=True)


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True, timeout=60).stdout
