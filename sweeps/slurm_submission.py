"""Runs -> sbatch, by submitit: job arrays with frozen configs, each noted beside its run at once.

Each submission has a folder of its own, which its owner alone can read: what is in it holds the runs' whole configs.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig, SlurmConfig
from rlhf.config.identity import run_folder, run_id, sweep_folder
from rlhf.errors import printable
from rlhf.files import file_errors
from rlhf.processes import HELD_SIGNALS, ROOT
from rlhf.runs.state import times_emptied
from sweeps.records import JOBS, outcome_path, stop_path, write_record
from sweeps.resources import thread_environment
from sweeps.slurm_job import UMASK, PackedRuns
from sweeps.slurm_refusals import SubmissionError
from sweeps.slurm_setup import checked_setup, setup_failure

SUBMITTED = "submitit"
"""The folder of all submissions, beside the runs' records."""


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


def submit(packs: Sequence[PackedRuns], at_a_time: int, dependency: str | None) -> list[str]:
    """Submit one job, or one array; returns the jobs' numbers, 12 or 12_3.

    Raises:
        SubmissionError: sbatch refused.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    first = packs[0].runs[0]
    folder = _new_folder(first)
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
            # submitit prints what sbatch complained of, which is in its error, too.
            with _private_files(), contextlib.redirect_stderr(io.StringIO()):
                jobs = executor.map_array(PackedRuns.__call__, packs)
        except (FailedJobError, FailedSubmissionError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SubmissionError(str(error)) from error
        for pack, job in zip(packs, jobs, strict=True):
            for run in pack.runs:
                write_record(run, pack.target, job_id=job.job_id, submitted_at=submitted_at)
    return [job.job_id for job in jobs]


def parameters(run: RunConfig, packed: int, at_a_time: int, dependency: str | None) -> dict[str, Any]:
    """submitit's parameters for jobs of `packed` runs like `run`."""
    slurm = slurm_of(run)
    cpus = slurm.cpus_per_task or run.hardware.threads * packed
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
        "srun_args": _srun_options(cpus, run.hardware.ranks),
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": max(1, at_a_time // packed),
        "setup": [*_exports(run.hardware.threads), *_with_users_umask(checked_setup(slurm.setup))],
        "additional_parameters": {
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            **{name: value if value else True for name, value in further.items()},
        },
    }


def _srun_options(cpus: int, ranks: int) -> list[str]:
    # What the script has set reaches the runs where the site, or an option, lets sbatch pass nothing on (export=NONE);
    # srun does not take over sbatch's CPUs since SLURM 22.05.
    options = ["--export=ALL", f"--cpus-per-task={cpus}"]
    # One rank that dies ends the others; one that ends well waits for them, whatever the site's default.
    return [*options, "--kill-on-bad-exit=1", "--wait=0"] if ranks > 1 else options


def _exports(threads: int) -> list[str]:
    """Lines of the job script. Without the user's environment a script has a PATH that it does not pass on, and in
    which SLURM's own commands may be missing."""
    srun = shutil.which("srun")
    commands = f":{shlex.quote(str(Path(srun).parent))}" if srun else ""
    lines = [f"export {name}={value}" for name, value in thread_environment(threads).items()]
    lines.append(f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return [*lines, f'export PATH="${{PATH:-/usr/local/bin:/usr/bin:/bin}}"{commands}']


def _with_users_umask(lines: Sequence[str]) -> list[str]:
    """The setup as if submitted with the user's umask; what it leaves is that of the runs, and not of submitit."""
    umask = os.umask(0o077)  # to read it is to set it
    os.umask(umask)
    return [f"umask {umask:04o}", *lines, f'export {UMASK}="$(umask)"', "umask 0077"]


def job_log(run: RunConfig, number: str) -> Path:
    """What the job itself prints; the run's own prints are in `sweeps.runs.log_path`."""
    name, folder = f"{number}_0_log.err", sweep_folder(run) / JOBS / SUBMITTED
    return next(folder.parent.glob(f"{SUBMITTED}*/*/{name}"), folder / name)


def why_job_ended(run: RunConfig, number: str) -> str:
    """The setup line that ended the job; else the last that its log says; empty where that is nothing."""
    with contextlib.suppress(OSError), job_log(run, number).open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return setup_failure(lines) or (printable(lines[-1])[:200] if lines else "")
    return ""


def _new_folder(run: RunConfig) -> Path:
    """For the files of one submission; where several users share a sweep or its inputs, each has such folders."""
    parent = sweep_folder(run).absolute() / JOBS / SUBMITTED
    with file_errors(parent, "make it"):
        if parent.exists() and parent.stat().st_uid != os.getuid():
            parent = parent.with_name(f"{SUBMITTED}-{os.getuid()}")
        parent.mkdir(parents=True, exist_ok=True)
        parent.chmod(0o700)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent))


@contextmanager
def _private_files() -> Iterator[None]:
    """Files that are made here are for their owner alone; and the job's log, since SLURM hands the umask on."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def largest_array() -> int:
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
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
