"""Runs -> sbatch, by submitit: job arrays with frozen configs, each noted beside its run at once.

Each submission has a folder of its own, which its owner alone can read: what is in it holds the runs' whole configs.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig, SlurmConfig
from rlhf.config.identity import run_folder, run_id, sweep_folder
from rlhf.errors import printable
from rlhf.files import file_errors
from rlhf.processes import ROOT, signals_held
from rlhf.runs.state import times_emptied
from sweeps.machine import thread_environment
from sweeps.runs import JOBS, outcome_path, stop_path, write_record
from sweeps.slurm_commands import SubmissionError, umask
from sweeps.slurm_job import UMASK, PackedRuns

SUBMITTED = "submitit"
"""The folder of all submissions, beside the runs' records."""

SETUP_FAILED = "hardware.slurm.setup: "
"""What the line begins with that such a job leaves in its log."""

# bash runs this where a command of the script itself fails, not one inside a file that is sourced or a function, nor
# one that is tested (if, &&, ||). `set -e` would end sites' own scripts; 141 is a program whose reader had enough.
_ON_FAILURE = (
    'rlhf_status=$?; [ "$rlhf_status" -eq 141 ] || [ "${#BASH_SOURCE[@]}" -gt 1 ] || '
    f'{{ echo "{SETUP_FAILED}status $rlhf_status of: $(sed -n "${{LINENO}}p" "${{BASH_SOURCE[0]}}")" >&2; exit 1; }}'
)

# A pipe, and neither || nor >|.
_PIPE = re.compile(r"(?<![|>])\|(?!\|)")


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
    with signals_held():
        try:
            # For their owner alone, and the job's log too, since SLURM hands the umask on. submitit prints what sbatch
            # complained of, which is in its error as well.
            with umask(0o077), contextlib.redirect_stderr(io.StringIO()):
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
    conditions = [condition for condition in (slurm.dependency, dependency) if condition]
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
    with umask(0o077) as users:  # to read it is to set it
        return [f"umask {users:04o}", *lines, f'export {UMASK}="$(umask)"', "umask 0077"]


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


def setup_problem(lines: Sequence[str]) -> str:
    """What bash would not understand in them; empty where there is nothing."""
    try:
        done = subprocess.run(["bash", "-n"], input="\n".join([*lines, ""]), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""  # no bash here says nothing about the nodes
    return "" if done.returncode == 0 else printable(re.sub(r"(?m)^bash: ", "", done.stderr))


def checked_setup(lines: Sequence[str]) -> list[str]:
    """The lines, and around them what ends the job where one fails."""
    if not lines:
        return []
    guarded = []
    # Between two lines of one command, or of a text that is given to one, nothing can be put.
    divided = any("<<" in line or line.endswith("\\") or "pipefail" in line for line in lines)
    for line in lines:
        pipes = not divided and _PIPE.search(line) is not None and not setup_problem([line])
        guarded += ["set -o pipefail", line, "set +o pipefail"] if pipes else [line]
    return [f"trap '{_ON_FAILURE}' ERR", *guarded, "trap - ERR"]


def setup_failure(log: Sequence[str]) -> str:
    """The line of the setup that ended a job, as the last lines of its log tell it; empty where none did."""
    for line in log[-3:]:
        if line.startswith(SETUP_FAILED):
            return f"{printable(line)} (append '|| true' where that does not matter)"
    return ""
