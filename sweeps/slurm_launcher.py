"""Runs as SLURM jobs; how a run ended is told by its job's own files, and by the queue only where they are silent."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_folder, sweep_folder
from rlhf.runs.state import OVER, finished, read_summary
from rlhf.terminal import tell
from sweeps.runs import EXECUTE, Outcome, RunLauncher, outcome_path, read_json, record_path, stop_path
from sweeps.slurm_commands import (
    Queue,
    SubmissionError,
    has_slurm,
    largest_array,
    never_starts,
    scancel,
)
from sweeps.slurm_submission import SETUP_FAILED, job_log, packs_of, setup_problem, slurm_of, submit, why_job_ended

# Jobs at a time where hardware.parallel_runs does not say.
MANY = 1000

# Between a job's end and the sight of its last files through a network file system.
FILES_WITHIN_SECONDS = 30.0
LOOK_EVERY_SECONDS = 1.0
SUBMIT_AGAIN_SECONDS = 20.0
# So long squeue says of a job that it will never start.
NEVER_STARTS_SECONDS = 10.0
# From the last word of a run to the end of its job.
SUBMIT_AFTER_END_SECONDS = 5.0


@dataclass
class _Job:
    run: RunConfig
    folder: Path
    number: str
    outcome: Path
    stopping: bool
    """Whether this run was asked to stop, so that "interrupted" is its end and not a requeue."""
    answers: int
    """How many answers of squeue are older than what is known of the job: its submission, or its last word."""
    last_status: str = ""
    missing_since: float | None = None
    """When the queue was first seen without it."""
    never_starts_since: float | None = None
    """When squeue first said that it will never start, and says so since."""


@dataclass
class SlurmRuns(RunLauncher):
    """Runs go on without the driver; one whose job is in the queue is not submitted twice."""

    target: str = EXECUTE
    leaves_on_interrupt: bool = True
    queue: Queue = field(default_factory=Queue)
    unsent: list[RunConfig] = field(default_factory=list)
    """Runs that sbatch has not taken yet."""
    _jobs: list[_Job] = field(default_factory=list)
    _dropped: list[Outcome] = field(default_factory=list)
    _slots: int = MANY
    _array_limit: int = 0
    """How many jobs sbatch is asked to take at once: fewer after a refusal, then more again. 0: as many as it can."""
    _looked_at: float = 0.0
    _send_after: float = 0.0
    _refused: str = ""

    def open(self, runs: Sequence[RunConfig]) -> str:
        """Raises: ConfigError: no SLURM here, one that does not answer, or a setup that bash does not understand."""
        slurm = slurm_of(runs[0])
        if not has_slurm():
            raise ConfigError(
                ["hardware.slurm: no sbatch, squeue and srun here; type this on the cluster's login node"]
            )
        if problem := setup_problem(slurm.setup):
            raise ConfigError([f"hardware.slurm.setup: bash does not understand it ({problem})"])
        self.queue.await_answer()
        self._slots = runs[0].hardware.parallel_runs or MANY
        packed = "" if slurm.pack == 1 else f", {slurm.pack} runs in each"
        return f"SLURM jobs{packed}, at most {self._slots} runs at a time"

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def trouble(self) -> str:
        if self._refused:
            return self._refused
        if self.queue.trouble:
            return self.queue.complaint
        waiting = {job.number for job in self._jobs} & self.queue.held
        reasons = sorted({self.queue.jobs[number].reason for number in waiting})
        return f"{len(waiting)} jobs are held back by SLURM: {', '.join(reasons)}" if waiting else ""

    @property
    def submitted(self) -> list[str]:
        """The numbers of the jobs that are looked after, each once."""
        return list(dict.fromkeys(job.number for job in self._jobs))

    @property
    def busy(self) -> bool:
        return bool(self.unsent or self._jobs or self._dropped)

    @property
    def running(self) -> list[Path]:
        return [job.folder for job in self._jobs if self._state(job) == "RUNNING"]

    def announce(self, run: RunConfig) -> bool:
        if number := self.job_in_queue(run):
            self._jobs.append(self._job(run, number))
            return True
        return super().announce(run)

    def submit(self, run: RunConfig) -> None:
        if number := self.job_in_queue(run):  # since it was announced, by another driver that waited for this input
            self._jobs.append(self._job(run, number))
        else:
            self.unsent.append(run)

    def job_in_queue(self, run: RunConfig) -> str | None:
        """The job of an earlier command that still has this run to do."""
        record = read_json(record_path(run))
        number = str(record.get("job_id", ""))
        if not number or run.overwrite or read_json(outcome_path(run)).get("status") == "failed":
            return None
        self.queue.refresh()
        written_at = record.get("written_at", 0.0)
        if number not in self.queue.jobs and written_at >= self.queue.answered_at:
            self.queue.refresh(every=0.0)
        state = self.queue.jobs.get(number)
        if state is None:  # another driver may have submitted it since squeue was asked
            return number if written_at >= self.queue.answered_at else None
        return None if state.ended else number

    def send(self, after: Sequence[str] = ()) -> list[str]:
        """Submit all that was gathered, to start once the jobs `after` have succeeded, in arrays as large as the site
        takes them; returns the jobs' numbers.

        Raises:
            SubmissionError: sbatch refused; what it took before is known as submitted.
        """
        numbers, dependency = [], f"afterok:{':'.join(after)}" if after else None
        for hardware, group in itertools.groupby(self.unsent, key=lambda run: run.hardware):
            runs = list(group)
            pack = 1 if hardware.slurm is None else hardware.slurm.pack
            slots = max(1, self._slots // math.ceil(len(runs) / pack / self._largest_array))
            while runs:
                sent = self._send(runs, slots, dependency)
                numbers += sent
                runs = runs[len(sent) * pack :]
        return numbers

    def _send(self, runs: Sequence[RunConfig], at_a_time: int, dependency: str | None) -> list[str]:
        """Submit the first of these, which are the first of those not sent, as one array; returns the jobs' numbers:
        none where the site does not let so many in, and the next time it is asked to take half as many.

        Raises:
            SubmissionError: sbatch refused even one.
        """
        packs = packs_of(runs, self.target)
        part = packs[: self._array_limit or self._largest_array]
        try:
            sent = submit(part, at_a_time, dependency)
        except SubmissionError as error:
            if len(part) == 1 or not error.too_many:
                raise
            self._array_limit = len(part) // 2
            return []
        self._array_limit = min(2 * len(part), self._largest_array)
        jobs = [self._job(run, number) for pack, number in zip(part, sent, strict=True) for run in pack.runs]
        self._jobs += jobs
        self.unsent = self.unsent[len(jobs) :]
        return sent

    @cached_property
    def _largest_array(self) -> int:
        return largest_array()

    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        self._try_to_send()
        due = LOOK_EVERY_SECONDS - (time.monotonic() - self._looked_at)
        if due > 0 and not self._dropped:
            time.sleep(min(timeout, due))
            if timeout < due:
                return []
        self._looked_at = time.monotonic()
        self.queue.refresh()
        for folder in {job.outcome.parent for job in self._jobs}:
            with contextlib.suppress(OSError):
                os.listdir(folder)  # a network file system forgets that a file was not there
        ended, self._dropped = self._dropped, []
        over = {id(job): outcome for job in self._jobs if (outcome := self._ended(job))}
        self._jobs = [job for job in self._jobs if id(job) not in over]
        if over:
            self._send_after = min(self._send_after, time.monotonic() + SUBMIT_AFTER_END_SECONDS)
        self._give_up_what_never_starts()
        return ended + list(over.values())

    def _try_to_send(self) -> None:
        if not self.unsent or time.monotonic() < self._send_after:
            return
        try:
            while self.unsent and (runs := self._with_room()) and self._send(runs, self._slots, None):
                pass
            if not self.unsent:
                self._refused = ""
        except SubmissionError as error:
            # An old SLURM does not say which limit it is; where nothing is in the queue, the wait would be in vain.
            if not (error.passing or (error.too_many and self._jobs)):
                raise
            waiting = "the other runs wait until some of the user's jobs have ended" if error.too_many else "trying on"
            self._refused = f"sbatch takes no more jobs now ({error.said}); {waiting}"
            self._send_after = time.monotonic() + SUBMIT_AGAIN_SECONDS

    def _give_up_what_never_starts(self) -> None:
        """Take jobs out of the queue that ask for more than a job may have.

        Raises:
            SubmissionError: there are some; the message names the option.
        """
        states = {job.number: self.queue.jobs.get(job.number) for job in self._jobs}
        for job in self._jobs:
            state = states[job.number]
            # Of several partitions, squeue gives the reason of the one that was tried last.
            waits = state is not None and state.state == "PENDING" and "," not in (slurm_of(job.run).partition or "")
            starts = not (waits and state is not None and never_starts(state.reason))
            job.never_starts_since = None if starts else job.never_starts_since or time.monotonic()
        since = time.monotonic() - NEVER_STARTS_SECONDS
        stuck = {
            job.number for job in self._jobs if job.never_starts_since is not None and job.never_starts_since < since
        }
        if stuck:
            scancel(stuck)
            reason = next(state.reason for number in stuck if (state := states[number]))
            raise SubmissionError(reason, "SLURM took the jobs and would never start them")

    def _with_room(self) -> list[RunConfig]:
        """What can be sent now, of one hardware: an array keeps to the limit by itself, several together do not."""
        runs = list(next(itertools.groupby(self.unsent, key=lambda run: run.hardware))[1])
        room = max(0, self._slots - len(self._jobs))
        if not self._jobs or len(runs) <= room:
            return runs
        pack = slurm_of(runs[0]).pack
        return runs[: room // pack * pack]

    def cancel(self, folders: Collection[Path] | None = None, *, kill: bool = False) -> None:
        """Of jobs at work the single run is asked to stop; a job leaves the queue when all its runs are to stop."""
        dropped = [run for run in self.unsent if folders is None or run_folder(run) in folders]
        self._dropped += [Outcome(run, "interrupted") for run in dropped]
        self.unsent = [run for run in self.unsent if run not in dropped]
        chosen = [job for job in self._jobs if folders is None or job.folder in folders]
        for job in chosen:
            job.stopping = True
            stop_path(job.run).touch()
        others = {job.number for job in self._jobs if not job.stopping}
        scancel({job.number for job in chosen if kill or self._state(job) != "RUNNING"} - others)

    def _job(self, run: RunConfig, number: str) -> _Job:
        return _Job(run, run_folder(run), number, outcome_path(run), stop_path(run).exists(), self.queue.answers)

    def _state(self, job: _Job) -> str:
        state = self.queue.jobs.get(job.number)
        return state.state if state else ""

    def _ended(self, job: _Job) -> Outcome | None:
        """How the run ended, if it did; "interrupted" is no end while its job will run again."""
        outcome = read_json(job.outcome)
        status = outcome.get("status", "")
        if status in OVER or status == "failed" or (status == "interrupted" and job.stopping):
            return Outcome(job.run, status, outcome.get("reason", ""), outcome.get("summary", {}))
        if status != job.last_status:
            job.last_status, job.answers, job.missing_since = status, self.queue.answers, None
        state = self.queue.jobs.get(job.number)
        if self.queue.trouble or (state is not None and not state.ended):
            job.missing_since = None
            return None
        if self.queue.answers <= job.answers:
            return None  # what squeue said is older than the job
        if job.missing_since is None:
            job.missing_since, job.answers = time.monotonic(), self.queue.answers
            return None  # and a job may be missing for a moment while it is queued again
        why = why_job_ended(job.run, job.number)
        known = status == "interrupted" or why.startswith(SETUP_FAILED)
        if not known and time.monotonic() - job.missing_since < FILES_WITHIN_SECONDS:
            return None
        return self._end_without_word(job, "gone from the queue" if state is None else state.state, status, why)

    @staticmethod
    def _end_without_word(job: _Job, state: str, status: str, why: str) -> Outcome:
        """Of a job that SLURM ended before it could say how its run ended, or while that was checkpointed."""
        summary = read_summary(job.folder)
        since = read_json(record_path(job.run)).get("submitted_at", 0.0)
        if summary.get("status") in OVER and summary.get("finished_at", since) >= since:
            return Outcome(job.run, summary["status"], "", summary)
        log = f"(log: {job_log(job.run, job.number)})"
        if status == "interrupted" or job.stopping or state in ("CANCELLED", "PREEMPTED"):
            return Outcome(job.run, "interrupted", f"its job {job.number} was ended by SLURM: {state} {log}")
        if why.startswith(SETUP_FAILED):
            return Outcome(job.run, "failed", f"{why} {log}")
        return Outcome(job.run, "failed", f"its job {job.number} ended without a result: {state} {log} {why}".strip())


def submit_and_leave(todo: Sequence[RunConfig], launcher: SlurmRuns, console: Console) -> int:
    """Submit the runs, each after the inputs it needs, and say how to look at them.

    Returns:
        How many runs the site did not let in.

    Raises:
        SubmissionError: sbatch refused them all, or for a reason that does not pass.
    """
    inputs = _inputs_in_queue(todo, launcher)
    earlier = {run_folder(run) for run in todo if launcher.job_in_queue(run)}
    for run in todo:
        if run_folder(run) not in earlier:
            launcher.submit(run)
    refused = ""
    try:
        launcher.send(inputs)
    except SubmissionError as error:
        if not (launcher.submitted and (error.passing or error.too_many)):
            raise
        refused = error.said
    numbers = [*inputs, *launcher.submitted]
    if launcher.submitted:
        tell(console, f"submitted as jobs {', '.join(dict.fromkeys(number.partition('_')[0] for number in numbers))}")
    if earlier:
        tell(console, f"{len(earlier)} runs are in the queue since an earlier command")
    if refused:
        left = f"{len(launcher.unsent)} of {len(todo)} runs are not submitted"
        why = f"sbatch takes no more jobs now ({refused})"
        tell(console, f"{left}: {why}; type the same command again when some have ended")
    shown = f"python -m sweeps status {sweep_folder(todo[0])} shows them"
    tell(console, f"{shown}; the same command without wait=false picks the results up")
    return len(launcher.unsent)


def _inputs_in_queue(todo: Sequence[RunConfig], launcher: SlurmRuns) -> list[str]:
    """The jobs of the inputs that are not finished, each submitted after those that it needs."""
    after: dict[Path, str] = {}
    for needed in {run_folder(need): need for run in todo for need in input_runs(run)}.values():
        if finished(needed) is None:
            before = [after[folder] for need in input_runs(needed) if (folder := run_folder(need)) in after]
            if not (number := launcher.job_in_queue(needed)):
                launcher.submit(needed)
                number = launcher.send(before)[0]
            after[run_folder(needed)] = number
    return list(after.values())
