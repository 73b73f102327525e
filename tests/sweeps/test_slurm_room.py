"""What is sent to SLURM when: limits across arrays, refusals between two of them, and answers of squeue that are old.

sbatch and squeue are stand-ins here; tests/slurm has the real ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder
from sweeps import slurm_launcher, slurm_submission
from sweeps.records import outcome_path, write_record
from sweeps.slurm_launcher import SlurmRuns
from sweeps.slurm_queue import JobState, Queue
from sweeps.slurm_submission import SubmissionError
from tests.config.composed import config


class Sbatch:
    """Takes arrays, and refuses those whose turn is among `refused`."""

    def __init__(self, refused: Sequence[int] = ()) -> None:
        self.sent: list[int] = []
        self.tried = 0
        self._refused = refused

    def __call__(self, packs, at_a_time, dependency) -> list[str]:
        self.tried += 1
        if self.tried in self._refused:
            raise SubmissionError("sbatch: error: AssocMaxSubmitJobLimit")
        self.sent.append(sum(len(pack.runs) for pack in packs))
        return [f"{len(self.sent)}_{index}" for index in range(len(packs))]


@pytest.fixture
def sbatch(monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    found = Sbatch()
    monkeypatch.setattr(slurm_launcher, "submit", found)
    monkeypatch.setattr(slurm_submission, "_largest_array", lambda: 1000)
    monkeypatch.setattr(Queue, "refresh", lambda self, every=0.0: None)
    return found


def runs(folder: Path, seeds: range, *overrides: str) -> list[RunConfig]:
    places = (f"output_dir={folder}/runs", f"cache_dir={folder}/cache")
    return [config("hardware=slurm", f"seed={seed}", *places, *overrides) for seed in seeds]


def gather(launcher: SlurmRuns, some: Sequence[RunConfig]) -> None:
    for run in some:
        launcher.announce(run)
        launcher.submit(run)


def end(launcher: SlurmRuns, some: Sequence[RunConfig]) -> None:
    for run in some:
        outcome_path(run).write_text('{"status": "finished", "reason": ""}')
    launcher._looked_at = 0.0
    assert {outcome.folder for outcome in launcher.poll()} == set(map(run_folder, some))


def test_no_more_jobs_than_parallel_runs(sbatch, tmp_path):
    launcher = SlurmRuns(_slots=4)
    first = runs(tmp_path, range(6))
    gather(launcher, first)
    launcher.poll()
    assert sbatch.sent == [6]  # one array, which SLURM limits to 4 at a time
    gather(launcher, runs(tmp_path, range(6, 11)))
    launcher.poll()
    assert sbatch.sent == [6]
    end(launcher, first[:3])
    launcher.poll()
    assert sbatch.sent == [6, 1]  # three of the six are left


def test_nor_where_two_arrays_ask_for_different_hardware(sbatch, tmp_path):
    launcher = SlurmRuns(_slots=4)
    some = [*runs(tmp_path, range(3)), *runs(tmp_path, range(3), "hardware.threads=2")]
    gather(launcher, some)
    launcher.poll()
    assert sbatch.sent == [3, 1]
    launcher.poll()
    assert sbatch.sent == [3, 1]


def test_packs_stay_whole(sbatch, tmp_path):
    launcher = SlurmRuns(_slots=8)
    some = runs(tmp_path, range(8), "hardware.slurm.pack=4")
    gather(launcher, some)
    launcher.poll()
    gather(launcher, runs(tmp_path, range(8, 16), "hardware.slurm.pack=4"))
    end(launcher, some[:3])
    launcher.poll()
    assert sbatch.sent == [8]  # room for three, of jobs of four
    end(launcher, some[3:4])
    launcher.poll()
    assert sbatch.sent == [8, 4]


def test_what_sbatch_took_before_a_refusal_is_not_sent_again(sbatch, tmp_path, monkeypatch):
    sbatch._refused = (2,)
    monkeypatch.setattr(slurm_submission, "_largest_array", lambda: 3)
    launcher = SlurmRuns(_slots=100)
    gather(launcher, runs(tmp_path, range(6)))
    launcher.poll()
    assert sbatch.sent == [3] and "AssocMaxSubmitJobLimit" in launcher.trouble
    launcher._send_after = 0.0
    launcher.poll()
    assert sbatch.sent == [3, 3] and launcher.trouble == "" and len(launcher._jobs) == 6


@pytest.mark.parametrize("seen", [True, False])
def test_a_job_younger_than_squeues_answer_counts_as_queued(tmp_path, monkeypatch, seen):
    """Another driver has just submitted it."""
    asked = []

    def refresh(self: Queue, every: float = 4.0) -> None:
        asked.append(every)
        if every == 0.0 and seen:
            self.jobs, self.answered_at = {"7": JobState("PENDING")}, time.time()

    monkeypatch.setattr(Queue, "refresh", refresh)
    (run,) = runs(tmp_path, range(1))
    launcher = SlurmRuns(queue=Queue(jobs={}, answers=1, answered_at=time.time()))
    write_record(run, launcher.target, job_id="7")
    assert launcher.job_in_queue(run) == "7" and 0.0 in asked
    launcher.queue.jobs, launcher.queue.answered_at = {}, time.time() + 1.0  # an answer without it, younger
    assert launcher.job_in_queue(run) is None
