"""A run of several ranks, trained by the program's own target: on two nodes it is the run that it is on one machine."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from rlhf.config.identity import run_folder
from sweeps.experiment import run_experiment
from tests.scorers.made_up import own_run
from tests.slurm.cluster import Cluster
from tests.slurm.driving import Sweep, without_time
from tests.slurm.processes import processes_of
from tests.slurm.test_sweeps import TINY

TARGET = "rlhf.run:execute"
RANKS = ("hardware.ranks=2", "hardware.slurm.nodes=2")
# The ranks' sums are of the same numbers in another order; AdamW lets that grow.
REL, ABS = 2e-3, 2e-4


@pytest.mark.timeout(900)
def test_two_nodes_are_one_run_whatever_happens_to_its_job(cluster: Cluster, tmp_path: Path):
    """Warned as before its time limit, the job is queued again; cancelled, the same command goes on."""
    sweep = Sweep(cluster, tmp_path, target=TARGET)
    options = (*TINY, "rollout.iterations=40", "evaluation.eval_every=10")
    driver = sweep.start("algo=apa", *options, *RANKS)
    sweep.wait_for_rows("apa-s0", 8, seconds=200)
    job = sweep.job("apa-s0")
    assert cluster.run("squeue", "-h", "-o", "%N", "-j", job).strip() == "n[1-2]"
    cluster.scancel(job, signal="USR2")
    cluster.wait_until(lambda: "Restarts=1" in cluster.run("scontrol", "show", "job", job))
    before = len(sweep.rows("apa-s0"))
    sweep.wait_for_rows("apa-s0", before + 6, seconds=200)
    cluster.scancel(job)
    output = sweep.finish(driver, 240)
    assert driver.returncode == 130, output
    assert len(sweep.rows("apa-s0")) >= before + 6, "the cancelled job wrote no checkpoint"
    code, output = sweep.run("algo=apa", *options, *RANKS, seconds=400)
    assert code == 0, output
    alone = sweep.local(tmp_path, "apa-s0", *options, "sweep_name=alone")
    run_experiment([alone], TARGET)
    expected = (run_folder(alone) / "metrics.jsonl").read_text().splitlines()
    for row, wanted in zip(sweep.rows("apa-s0"), expected, strict=True):
        assert without_time(row) == pytest.approx(without_time(wanted), rel=REL, abs=ABS)


@pytest.mark.timeout(900)
def test_the_ranks_of_a_job_find_code_and_data_of_the_user(cluster: Cluster, tmp_path: Path):
    """An algorithm, a reward and pairs by paths relative to where the command was typed."""
    code, output = Sweep(cluster, tmp_path, target=TARGET).run(*own_run(tmp_path), *RANKS, seconds=400)
    assert code == 0, output
    (summary,) = tmp_path.glob("runs/debug/Mine-s0-*/summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"


@pytest.mark.parametrize("what", ["run", "task"])
def test_a_rank_that_is_killed_fails_the_run_once(cluster: Cluster, tmp_path: Path, what: str):
    """srun ends the first rank as scancel and preemption do; that is no reason to queue the job again."""
    sweep = Sweep(cluster, tmp_path, target=TARGET)
    driver = sweep.start("algo=apa", *TINY, "rollout.iterations=4000", *RANKS)
    sweep.wait_for_rows("apa-s0", 2, seconds=200)
    job = sweep.job("apa-s0")
    for pid in _second_rank(cluster, job, what):
        os.kill(pid, signal.SIGKILL)
    output = sweep.finish(driver)
    assert driver.returncode == 1 and len(re.findall(r"(?m)^failed: apa-s0-", output)) == 1, output
    assert "Restarts=0" in cluster.run("scontrol", "show", "job", job)
    if what == "run":
        assert "another of the 2 ranks is gone (killed, or out of memory)" in output, output


def _second_rank(cluster: Cluster, job: str, what: str) -> list[int]:
    """The process in which it trains, or all of its task."""
    found = []
    for pid, name in processes_of(Path(cluster.env["SLURM_CONF"])).items():
        try:
            environment = set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile, as a job's prolog does
            continue
        if "python" in name and {f"SLURM_JOB_ID={job}", "SLURM_PROCID=1"} <= environment:
            found.append(pid)
    if what == "run":
        found = [pid for pid in found if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        found = [pid for pid in found if os.getpgid(pid) == pid]
    assert found
    return found


def test_ranks_and_nodes_that_do_not_fit(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, target=TARGET)
    code, output = sweep.run("algo=apa", "hardware.slurm.nodes=2", "hardware.slurm.tasks_per_node=2")
    assert code == 2 and "hardware.ranks: 1, but hardware.slurm.nodes x tasks_per_node = 4" in output
