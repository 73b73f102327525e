"""A strict site: few jobs a user, nothing of the login node's environment, and setup lines that fail."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.driving import Sweep

SIX = [f"{algo}-s{seed}" for algo in ("apa", "ppo", "awr") for seed in (0, 100)]
GRID = ("algo=apa,ppo,awr", "seed=0,100", "rollout.iterations=2")


@pytest.mark.parametrize(
    ("limit", "options"),
    [
        ("QOSMaxSubmitJobPerUserLimit", ["hardware.slurm.qos=few"]),
        ("QOSMaxSubmitJobPerUserLimit", ["hardware.slurm.qos=few", "hardware.parallel_runs=2"]),
        ("AssocMaxSubmitJobLimit", ["hardware.slurm.account=few"]),
    ],
)
def test_a_limit_on_submitted_jobs(cluster_with_accounting: Cluster, tmp_path: Path, limit: str, options: list[str]):
    sweep = Sweep(cluster_with_accounting, tmp_path)
    code, output = sweep.run(*GRID, *options, seconds=200)
    assert code == 0 and "6 of 6 runs finished" in output, output
    assert len(sweep.starts()) == 6
    if "hardware.parallel_runs=2" not in options:  # two at a time never meet the limit again
        assert output.count(f"sbatch takes no more jobs now ({limit}") == 1, output
    assert "sbatch: error" not in output
    # A refusal leaves nothing behind.
    folders = list((tmp_path / "runs/default/jobs/submitit").iterdir())
    assert all(list(folder.glob("*_submission.sh")) for folder in folders)


def test_a_limit_where_nobody_waits(cluster_with_accounting: Cluster, tmp_path: Path):
    sweep = Sweep(cluster_with_accounting, tmp_path)
    typed = (*GRID, "hardware.slurm.qos=few")
    code, output = sweep.run(*typed, "hardware.slurm.wait=false")
    assert code == 1 and "3 of 6 runs are not submitted" in output and "type the same command again" in output, output
    code, output = sweep.run(*typed, seconds=200)
    assert code == 0 and len(sweep.starts()) == 6, output


def test_a_time_limit_that_the_site_forbids(cluster_with_accounting: Cluster, tmp_path: Path):
    sweep = Sweep(cluster_with_accounting, tmp_path)
    code, output = sweep.run(*GRID, "hardware.slurm.qos=short")
    assert code == 1 and output.count("hardware.slurm.time_minutes: sbatch refused (QOSMaxWall") == 1, output
    cluster_with_accounting.run("scontrol", "update", "partitionname=main", "maxtime=5")
    try:
        code, output = sweep.run(*GRID)
    finally:
        cluster_with_accounting.run("scontrol", "update", "partitionname=main", "maxtime=INFINITE")
    assert code == 1 and output.count("hardware.slurm.time_minutes: SLURM took the jobs") == 1, output
    assert not cluster_with_accounting.squeue()


@pytest.mark.parametrize("how", ["option", "site"])
def test_nothing_of_the_environment_reaches_a_job(cluster: Cluster, tmp_path: Path, how: str):
    sweep = Sweep(cluster, tmp_path)
    sweep.environment |= {"SBATCH_EXPORT": "NONE"} if how == "site" else {}
    options = ['hardware.slurm.sbatch=["export=NONE"]'] if how == "option" else []
    setup = 'hardware.slurm.setup=["export CUDA_TOKEN=from-the-setup"]'
    code, output = sweep.run("algo=apa", "rollout.iterations=2", "hardware.threads=2", setup, *options)
    assert code == 0, output
    (start,) = sweep.starts()
    assert start["OMP_NUM_THREADS"] == "2" and start["CUDA_TOKEN"] == "from-the-setup"


def test_a_setup_line_that_fails(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path)
    line = f"source {tmp_path}/missing"
    setup = f'hardware.slurm.setup=["export FIRST=1","{line}","export LAST=1"]'
    code, output = sweep.run("algo=apa", "rollout.iterations=2", setup)
    assert code == 1 and not sweep.starts(), output
    assert re.search(rf"failed: apa-s0-\w+: hardware.slurm.setup: status \d+ of: {re.escape(line)} ", output), output
    code, shown = sweep.tool("status")
    assert "hardware.slurm.setup: status" in shown and line in shown, shown


def test_what_holds_configs_is_for_its_owner_alone(cluster: Cluster, tmp_path: Path):
    """Runs keep the user's umask, or what the setup makes of it."""
    sweep = Sweep(cluster, tmp_path)
    umask = os.umask(0o002)
    try:
        code, output = sweep.run("algo=apa,ppo", "rollout.iterations=1")
    finally:
        os.umask(umask)
    assert code == 0, output
    jobs = tmp_path / "runs/default/jobs"
    inside = [jobs / "submitit", *(jobs / "submitit").rglob("*")]
    wrong = {path: mode(path) for path in inside if mode(path) != (0o700 if path.is_dir() else 0o600)}
    assert not wrong and len(inside) > 8
    assert {mode(path) for path in jobs.iterdir() if path.is_file()} == {0o600}
    folder = next((tmp_path / "runs/default").glob("apa-s0*"))
    assert mode(folder) == 0o775 and mode(folder / "metrics.jsonl") == 0o664


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
