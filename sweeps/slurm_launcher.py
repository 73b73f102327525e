"""Runs as SLURM jobs, submitted by submitit with their configs frozen; how a run ended is told by its own files."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf.config import RunConfig, SlurmConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_folder, sweep_folder
from sweeps.driver import finished, read_summary
from sweeps.local_launcher import ROOT
from sweeps.records import JOBS, outcome_path, read_json, record_path, stop_path, write_record
from sweeps.resources import thread_environment
from sweeps.runs import OVER, Outcome
from sweeps.slurm_job import PackedRuns
from sweeps.slurm_queue import Queue, has_slurm, scancel

# Jobs at a time where hardware.parallel_runs does not say.
MANY = 1000

# Between a job's end and the sight of its last files through a network file system.
FILES_WITHIN_SECONDS = 10.0
LOOK_EVERY_SECONDS = 0.5


class SubmissionError(RuntimeError):
    """sbatch refused; the message is its own."""


@dataclass
class _Job:
    run: RunConfig
    folder: Path
    number: str
    stopping: bool = False
    """Whether this run was asked to stop, so that "interrupted" is its end and not a requeue."""
    gone_at: float | None = None
    """When the queue was first seen without it."""


@dataclass
class SlurmRuns:
    """The SLURM `RunLauncher`: runs go on without the driver; one whose job is in the queue is not submitted twice."""

    target: str = "rlhf.run:execute"
    leaves_on_interrupt: bool = True
    queue: Queue = field(default_factory=Queue)
    _unsent: list[RunConfig] = field(default_factory=list)
    _jobs: list[_Job] = field(default_factory=list)
    _dropped: list[Outcome] = field(default_factory=list)
    _slots: int = MANY
    _looked_at: float = 0.0

    def open(self, runs: Sequence[RunConfig]) -> str:
        """Raises: ConfigError: no SLURM here, or more ranks than the target can use."""
        slurm = slurm_of(runs[0])
        if not has_slurm():
            raise ConfigError(
                ["hardware.slurm: no sbatch, squeue and srun here; type this on the cluster's login node"]
            )
        if slurm.nodes * slurm.tasks_per_node > 1 and self.target == "rlhf.run:execute":
            raise ConfigError(
                ["hardware.slurm.nodes: training in several processes is not there yet; one node, one task"]
            )
        self._slots = runs[0].hardware.parallel_runs or MANY
        packed = "" if slurm.pack == 1 else f", {slurm.pack} runs in each"
        return f"SLURM jobs{packed}, at most {self._slots} runs at a time"

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def trouble(self) -> str:
        return f"squeue does not answer ({self.queue.trouble}); asking on" if self.queue.trouble else ""

    @property
    def busy(self) -> bool:
        return bool(self._unsent or self._jobs or self._dropped)

    @property
    def running(self) -> list[Path]:
        states = self.queue.jobs
        return [job.folder for job in self._jobs if job.number in states and states[job.number].state == "RUNNING"]

    def announce(self, run: RunConfig) -> None:
        if self.job_in_queue(run) is None:
            write_record(run, self.target)

    def submit(self, run: RunConfig) -> None:
        if number := self.job_in_queue(run):
            self._jobs.append(_Job(run, run_folder(run), number))
        else:
            self._unsent.append(run)

    def job_in_queue(self, run: RunConfig) -> str | None:
        """The job of an earlier command that still has this run to do."""
        number = str(read_json(record_path(run)).get("job_id", ""))
        if not number or run.overwrite:
            return None
        self.queue.refresh()
        state = self.queue.jobs.get(number)
        return None if state is None or state.ended else number

    def send(self, dependency: str | None = None) -> list[str]:
        """Submit what was gathered, as one array where it is more than one job; returns the jobs' numbers.

        Raises:
            SubmissionError: sbatch refused.
        """
        numbers = []
        for _, same in itertools.groupby(self._unsent, key=lambda run: run.hardware.threads):
            runs = list(same)
            size = slurm_of(runs[0]).pack
            packs = [PackedRuns(runs[i : i + size], self.target) for i in range(0, len(runs), size)]
            for pack, number in zip(packs, _sbatch(packs, self._slots, dependency), strict=True):
                self._jobs += [_Job(run, run_folder(run), number) for run in pack.runs]
                numbers.append(number)
        self._unsent.clear()
        return numbers

    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        self.send()
        if wait := max(0.0, min(timeout, LOOK_EVERY_SECONDS - (time.monotonic() - self._looked_at))):
            time.sleep(wait)
        if time.monotonic() - self._looked_at < LOOK_EVERY_SECONDS and not self._dropped:
            return []
        self._looked_at = time.monotonic()
        self.queue.refresh()
        ended, self._dropped = self._dropped, []
        for job in list(self._jobs):
            if outcome := self._ended(job):
                self._jobs.remove(job)
                ended.append(outcome)
        return ended

    def cancel(self, folders: Collection[Path] | None = None, *, kill: bool = False) -> None:
        chosen = [run for run in self._unsent if folders is None or run_folder(run) in folders]
        self._dropped += [Outcome(run, "interrupted") for run in chosen]
        self._unsent = [run for run in self._unsent if run not in chosen]
        jobs = [job for job in self._jobs if folders is None or job.folder in folders]
        running = self.running
        for job in jobs:
            job.stopping = True
            stop_path(job.run).touch()
        chosen_folders = {job.folder for job in jobs}
        whole = [
            job.number
            for job in jobs
            if all(other.folder in chosen_folders for other in self._jobs if other.number == job.number)
        ]
        scancel({job.number for job in jobs if job.number in whole and (kill or job.folder not in running)})

    def _ended(self, job: _Job) -> Outcome | None:
        """How the run ended, if it did; "interrupted" is no end while its job will run again."""
        told = read_json(outcome_path(job.run))
        status = told.get("status", "")
        if status in OVER or status == "failed" or (status == "interrupted" and job.stopping):
            return self._outcome(job, status, told.get("reason", ""))
        state = self.queue.jobs.get(job.number)
        if self.queue.trouble or (state is not None and not state.ended):
            job.gone_at = None
            return None
        if job.gone_at is None:
            job.gone_at = time.monotonic()
        if time.monotonic() - job.gone_at < FILES_WITHIN_SECONDS:
            return None
        word = "gone from the queue" if state is None else state.state
        return self._end_without_word(job, word)

    def _end_without_word(self, job: _Job, state: str) -> Outcome:
        """Of a job that SLURM ended before it could say how its run ended."""
        summary = read_summary(job.folder)
        since = read_json(record_path(job.run)).get("submitted_at", 0.0)
        if summary.get("status") in OVER and summary.get("finished_at", since) >= since:
            return self._outcome(job, summary["status"], "")
        logs = f"log: {log_files(job.run, job.number)}"
        if state == "CANCELLED" or job.stopping:
            return Outcome(job.run, "interrupted", f"its job {job.number} was cancelled ({logs})")
        return Outcome(job.run, "failed", f"its job {job.number} ended without a result: {state} ({logs})")

    @staticmethod
    def _outcome(job: _Job, status: str, reason: str) -> Outcome:
        summary = read_summary(job.folder)
        return Outcome(job.run, status, reason, summary if summary.get("status") == status else {})


def slurm_of(run: RunConfig) -> SlurmConfig:
    assert run.hardware.slurm is not None
    return run.hardware.slurm


def log_files(run: RunConfig, number: str) -> Path:
    """The job's own prints; the run's are in `sweeps.runs.log_path`."""
    return sweep_folder(run) / JOBS / "submitit" / f"{number}_0_log.err"


def submit_and_leave(todo: Sequence[RunConfig], launcher: SlurmRuns, console: Console) -> None:
    """Submit the runs, each after the inputs it needs, and say how to look at them."""
    after: dict[Path, str] = {}
    for needed in {run_folder(need): need for run in todo for need in input_runs(run)}.values():
        if finished(needed) is None:
            before = [after[run_folder(one)] for one in input_runs(needed) if run_folder(one) in after]
            after[run_folder(needed)] = launcher.job_in_queue(needed) or _send_one(needed, launcher, before)
    earlier = [number for run in todo if (number := launcher.job_in_queue(run))]
    for run in todo:
        if launcher.job_in_queue(run) is None:
            launcher.submit(run)
    numbers = launcher.send(_after_all(list(after.values())))
    submitted = [*after.values(), *numbers]
    if submitted:
        console.print(f"submitted as jobs {', '.join(dict.fromkeys(one.partition('_')[0] for one in submitted))}")
    if earlier:
        console.print(f"{len(earlier)} runs are in the queue since an earlier command")
    folder = sweep_folder(todo[0])
    console.print(f"python -m sweeps status {folder} shows them; the same command with wait=true picks the results up")


def _send_one(run: RunConfig, launcher: SlurmRuns, after: list[str]) -> str:
    launcher.submit(run)
    return launcher.send(_after_all(after))[0]


def _after_all(numbers: Sequence[str]) -> str | None:
    return f"afterok:{':'.join(numbers)}" if numbers else None


def _sbatch(packs: Sequence[PackedRuns], at_a_time: int, dependency: str | None) -> list[str]:
    """Submit one job, or an array of them, and note it beside the runs; returns the jobs' numbers."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    first = packs[0].runs[0]
    folder = sweep_folder(first).absolute() / JOBS / "submitit"
    executor = SlurmExecutor(folder=folder)
    executor.update_parameters(**parameters(first, len(packs[0].runs), at_a_time, dependency))
    for run in (run for pack in packs for run in pack.runs):
        outcome_path(run).unlink(missing_ok=True)
        stop_path(run).unlink(missing_ok=True)
    submitted_at = time.time()
    try:
        jobs = executor.map_array(PackedRuns.__call__, packs)
    except (FailedJobError, FailedSubmissionError) as error:
        said = [line.strip() for line in str(error).splitlines() if "error:" in line]
        raise SubmissionError(said[-1] if said else str(error).strip()) from error
    for pack, job in zip(packs, jobs, strict=True):
        for run in pack.runs:
            write_record(
                run, pack.target, job_id=job.job_id, submitted_at=submitted_at, log=str(log_files(run, job.job_id))
            )
    return [job.job_id for job in jobs]


def parameters(run: RunConfig, packed: int, at_a_time: int, dependency: str | None) -> dict[str, Any]:
    """submitit's parameters for jobs of `packed` runs like `run`."""
    slurm = slurm_of(run)
    cpus = slurm.cpus_per_task or run.hardware.threads * packed
    exports = {**thread_environment(run.hardware.threads), "PYTHONPATH": f"{ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"}
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
        "srun_args": [f"--cpus-per-task={cpus}"],  # srun does not take it over from sbatch since SLURM 22.05
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": max(1, at_a_time // packed),
        "setup": [f'export {name}="{value}"' for name, value in exports.items()] + list(slurm.setup),
        "additional_parameters": {
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            **{name: value if value else True for name, value in further.items()},
        },
    }
