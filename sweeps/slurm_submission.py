"""Runs -> sbatch, by submitit: job arrays with frozen configs, each noted beside its run at once."""

from __future__ import annotations

import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig, SlurmConfig
from rlhf.config.identity import run_folder, run_id, sweep_folder
from rlhf.summary import times_emptied
from sweeps.local_launcher import ROOT
from sweeps.records import JOBS, outcome_path, stop_path, write_record
from sweeps.resources import thread_environment
from sweeps.runs import STOP_SIGNALS
from sweeps.slurm_job import PackedRuns

# Parts of what sbatch says where the same command may succeed a little later.
PASSING = ("Unable to contact", "timed out", "Connection", "SubmitJobLimit", "temporarily", "not responding")


class SubmissionError(RuntimeError):
    """sbatch refused; the message is its own."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.passing = any(part in said for part in PASSING)


def slurm_of(run: RunConfig) -> SlurmConfig:
    assert run.hardware.slurm is not None
    return run.hardware.slurm


def packs_of(runs: Sequence[RunConfig], target: str) -> list[PackedRuns]:
    """Runs of equal hardware, `pack` to a job."""
    size = slurm_of(runs[0]).pack
    parts = [list(runs[i : i + size]) for i in range(0, len(runs), size)]
    return [
        PackedRuns(part, target, [run_id(run) for run in part], [times_emptied(run_folder(run)) for run in part])
        for part in parts
    ]


def arrays_of(packs: Sequence[PackedRuns]) -> list[Sequence[PackedRuns]]:
    """Parts as large as the cluster takes an array."""
    most = _largest_array()
    return [packs[i : i + most] for i in range(0, len(packs), most)]


def submit(packs: Sequence[PackedRuns], at_a_time: int, dependency: str | None) -> list[str]:
    """Submit one job, or one array; returns the jobs' numbers, 12 or 12_3.

    Raises:
        SubmissionError: sbatch refused.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    first = packs[0].runs[0]
    folder = sweep_folder(first).absolute() / JOBS / "submitit"
    # A warning that comes while python still starts would end it: it is ignored until the job listens.
    python = f"""bash -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""
    executor = SlurmExecutor(folder=folder, python=python)
    executor.update_parameters(**parameters(first, len(packs[0].runs), at_a_time, dependency))
    for run in (run for pack in packs for run in pack.runs):
        outcome_path(run).unlink(missing_ok=True)
        stop_path(run).unlink(missing_ok=True)
    submitted_at = time.time()
    with _undisturbed():
        try:
            jobs = executor.map_array(PackedRuns.__call__, packs)
        except (FailedJobError, FailedSubmissionError) as error:
            said = [line.strip() for line in str(error).splitlines() if "error:" in line]
            raise SubmissionError("; ".join(dict.fromkeys(said)) or str(error).strip().partition("\n")[0]) from error
        for pack, job in zip(packs, jobs, strict=True):
            for run in pack.runs:
                write_record(run, pack.target, job_id=job.job_id, submitted_at=submitted_at)
    return [job.job_id for job in jobs]


def parameters(run: RunConfig, packed: int, at_a_time: int, dependency: str | None) -> dict[str, Any]:
    """submitit's parameters for jobs of `packed` runs like `run`."""
    slurm = slurm_of(run)
    cpus = slurm.cpus_per_task or run.hardware.threads * packed
    exports = [f"export {name}={value}" for name, value in thread_environment(run.hardware.threads).items()]
    exports.append(f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}")
    conditions = [one for one in (slurm.dependency, dependency) if one]
    further = {name: value for name, _, value in (option.lstrip("-").partition("=") for option in slurm.sbatch)}
    given = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "dependency": ",".join(conditions) or None,
        "exclusive": slurm.exclusive or None,
        "mail_user": slurm.mail_user,
        "mail_type": slurm.mail_type,
        "gpus_per_node": slurm.gpus_per_node,
        "mem": None if slurm.memory_gb is None else f"{math.ceil(slurm.memory_gb * 1024)}M",
    }
    return {
        **{name: value for name, value in given.items() if value is not None},
        "job_name": run.sweep_name,
        "wckey": None,  # submitit's own would be refused where keys are enforced
        "time": slurm.time_minutes,
        "nodes": slurm.nodes,
        "ntasks_per_node": slurm.tasks_per_node,
        "cpus_per_task": cpus,
        # srun does not take it over from sbatch since SLURM 22.05; one rank that dies ends the others
        "srun_args": [f"--cpus-per-task={cpus}", *(["--kill-on-bad-exit=1"] if run.hardware.ranks > 1 else [])],
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": max(1, at_a_time // packed),
        "setup": [*exports, *slurm.setup],
        "additional_parameters": {
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            **{name: value if value else True for name, value in further.items()},
        },
    }


def job_log(run: RunConfig, number: str) -> Path:
    """What the job itself prints; the run's own prints are in `sweeps.runs.log_path`."""
    return sweep_folder(run) / JOBS / "submitit" / f"{number}_0_log.err"


def _largest_array() -> int:
    """MaxArraySize is one more than the largest index."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 1000  # SLURM's default
    found = [line.partition("=")[2].strip() for line in shown.splitlines() if line.startswith("MaxArraySize")]
    return max(1, int(found[0]) - 1) if found and found[0].isdigit() else 1000


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back what would end us, or sbatch, between a submission and its note."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
