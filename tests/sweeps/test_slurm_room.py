"""What is sent to SLURM when: limits across arrays, refusals between two of them, and answers of squeue that are old.

sbatch and squeue are stand-ins here; tests/slurm has the real ones.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder
from sweeps import slurm_launcher
from sweeps.runs import outcome_path, write_record
from sweeps.slurm_commands import JobState, Queue, SubmissionError, never_starts, option_named_by
from sweeps.slurm_launcher import SlurmRuns
from sweeps.slurm_submission import checked_setup, setup_failure, setup_problem
from tests.config.composed import config

LIMIT = """sbatch: error: QOSMaxSubmitJobPerUserLimit
sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or \
time limits)"""


class Sbatch:
    """Takes arrays while no more than `limit` jobs are in the queue."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.tried = 0
        self.limit = 1000
        self.in_queue = 0
        self.says = LIMIT

    def __call__(self, packs, at_a_time, dependency) -> list[str]:
        self.tried += 1
        if self.in_queue + len(packs) > self.limit:
            raise SubmissionError(self.says)
        self.in_queue += len(packs)
        self.sent.append(sum(len(pack.runs) for pack in packs))
        return [f"{len(self.sent)}_{index}" for index in range(len(packs))]


@pytest.fixture
def sbatch(monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    found = Sbatch()
    monkeypatch.setattr(slurm_launcher, "submit", found)
    monkeypatch.setattr(slurm_launcher, "largest_array", lambda: 1000)
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


def poll_until_refused(launcher: SlurmRuns) -> None:
    launcher._send_after = 0.0
    for _ in range(20):
        launcher.poll()


def test_as_many_as_the_site_lets_in_and_more_as_they_end(sbatch, tmp_path):
    sbatch.limit = 3
    launcher = SlurmRuns()
    some = runs(tmp_path, range(8))
    gather(launcher, some)
    poll_until_refused(launcher)
    assert sum(sbatch.sent) == 3 and len(launcher.unsent) == 5
    assert "QOSMaxSubmitJobPerUserLimit" in launcher.trouble
    first = launcher.trouble
    before = sbatch.tried
    launcher.poll()
    assert sbatch.tried == before, "the site is asked again at once"
    sbatch.in_queue -= 2
    end(launcher, some[:2])
    poll_until_refused(launcher)
    assert sum(sbatch.sent) == 5 and launcher.trouble == first
    sbatch.limit = 1000
    poll_until_refused(launcher)
    assert sum(sbatch.sent) == 8 and launcher.trouble == ""


def test_a_cluster_whose_arrays_are_small(sbatch, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_launcher, "largest_array", lambda: 3)
    launcher = SlurmRuns(_slots=100)
    gather(launcher, runs(tmp_path, range(7)))
    launcher.poll()
    assert sbatch.sent == [3, 3, 1]
    again = SlurmRuns(_slots=100)
    gather(again, runs(tmp_path, range(7, 14)))
    assert len(again.send()) == 7 and sbatch.sent[3:] == [3, 3, 1]


@pytest.mark.parametrize(
    ("said", "option"),
    [
        (
            "sbatch: error: invalid partition specified: nowhere\nsbatch: error: Batch job submission failed: x",
            "partition",
        ),
        (LIMIT.replace("QOSMaxSubmitJobPerUserLimit", "QOSMaxWallDurationPerJobLimit"), "time_minutes"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid (missing ...)", "time_minutes"),
        ("sbatch: unrecognized option '--foo=bar'", "sbatch"),
    ],
)
def test_what_never_passes_is_said_once_with_its_option(sbatch, tmp_path, said, option):
    sbatch.limit, sbatch.says = 0, said
    launcher = SlurmRuns()
    gather(launcher, runs(tmp_path, range(2)))
    with pytest.raises(SubmissionError, match=rf"^hardware\.slurm\.{option}: ") as refused:
        poll_until_refused(launcher)
    assert "\n" not in str(refused.value)


def test_a_limit_without_a_name_is_waited_for_only_while_jobs_can_end(sbatch, tmp_path):
    sbatch.says = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"
    sbatch.limit = 1
    launcher = SlurmRuns()
    some = runs(tmp_path, range(2))
    gather(launcher, some)
    poll_until_refused(launcher)
    assert sbatch.sent == [1] and "accounting/QOS policy" in launcher.trouble
    end(launcher, some[:1])
    with pytest.raises(SubmissionError):
        poll_until_refused(launcher)


def test_jobs_that_never_start_are_taken_back(sbatch, tmp_path, monkeypatch):
    cancelled = []
    monkeypatch.setattr(slurm_launcher, "scancel", cancelled.append)
    monkeypatch.setattr(slurm_launcher, "NEVER_STARTS_SECONDS", 0.0)
    launcher = SlurmRuns()
    gather(launcher, runs(tmp_path, range(2)))
    launcher.poll()
    launcher.queue.jobs = {
        "1_0": JobState("PENDING", "", "QOSMaxJobsPerUserLimit"),  # until others have ended
        "1_1": JobState("PENDING", "", "PartitionTimeLimit"),
    }
    launcher._looked_at = 0.0
    with pytest.raises(SubmissionError, match=r"^hardware\.slurm\.time_minutes: .*PartitionTimeLimit"):
        for _ in range(3):
            launcher._looked_at = 0.0
            launcher.poll()
    assert cancelled == [{"1_1"}]


def test_reasons_to_wait():
    never = ("PartitionTimeLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit", "InvalidQOS")
    assert all(map(never_starts, never))
    some_day = ("Priority", "Resources", "QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit", "PartitionNodeLimit")
    assert not any(map(never_starts, some_day))
    assert option_named_by("QOSMaxNodePerJobLimit") == "hardware.slurm.nodes"


def bash(tmp_path: Path, *lines: str) -> tuple[int, str, str]:
    """A job script with this setup: exit code, what came after the setup, and the line that is blamed."""
    script = tmp_path / "script"
    script.write_text("\n".join(["#!/bin/bash", *checked_setup(lines), "echo ran"]))
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, setup_failure(done.stderr.splitlines())


@pytest.mark.parametrize(
    "lines",
    [
        ("source /nowhere/activate",),
        ("cd /nowhere; export X=1",),
        ("false | cat",),
        ("if true; then", "  false", "fi"),
        ("source {site}; false",),
        ("module() {{ return 1; }}", "module load cuda"),
    ],
)
def test_a_setup_line_that_fails_ends_the_job_and_is_named(tmp_path, lines):
    (tmp_path / "site").write_text("true\n")
    lines = [line.format(site=tmp_path / "site") for line in lines]
    code, output, failure = bash(tmp_path, *lines)
    failing = next(line for line in reversed(lines) if line != "fi")
    assert code == 1 and "ran" not in output
    assert failing.strip() in failure and failure.startswith("hardware.slurm.setup: status ")


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("false || true", "[ -f /nowhere ] && source /nowhere"),
        ("source {site}", 'echo "$SITE" | grep -q here'),
        ("yes | head -n 1", "echo $UNSET"),
        ("set -u", "source {site}"),
        ("cat > {site}.txt <<EOF", "a | b", "EOF", '[ "$(cat {site}.txt)" = "a | b" ]'),
        ("case x in", "  x|y) true ;;", "esac"),
    ],
)
def test_what_sites_scripts_do_does_not_end_the_job(tmp_path, lines):
    """A file that is sourced may have commands that fail, as long as its last does not."""
    (tmp_path / "site").write_text("false\nfalse | true\nif false; then :; fi\nexport SITE=here\ntrue\n")
    code, output, failure = bash(tmp_path, *(line.format(site=tmp_path / "site") for line in lines))
    assert (code, output.splitlines()[-1], failure) == (0, "ran", "")


def test_a_setup_that_bash_cannot_read_is_refused():
    assert "line 1" in setup_problem(['echo "'])
    assert setup_problem(["if true; then", "module load cuda", "fi"]) == ""


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
