"""The cluster of these tests starts, and leaves no trace at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.processes import processes_of

ROOT = Path(__file__).resolve().parents[2]


def submit(cluster: Cluster, script: str, *options: str) -> str:
    return cluster.run("sbatch", "--parsable", *options, "--wrap", script).strip()


def running(cluster: Cluster, job: str) -> bool:
    return cluster.squeue().get(job) == "RUNNING"


def test_clusters_side_by_side_and_no_trace_of_one_that_ended(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even of a child that left its job's session and environment. An enclosing job's environment is not ours."""
    monkeypatch.setenv("SBATCH_PARTITION", "of-another-site")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    pid = tmp_path / "pid"
    with Cluster(nodes=1, cpus=2, gpus=0) as other:
        assert other.sinfo() == {"n1": "idle"}
        assert {name for name in other.env if name.startswith(("SLURM", "SBATCH"))} == {"SLURM_CONF"}
        job = submit(other, f"env -i setsid sh -c 'echo $$ > {pid}; sleep 600' & sleep 600")
        other.wait_until(lambda: pid.exists() and pid.read_text())
        assert running(other, job) and cluster.squeue() == {}
        conf = Path(other.env["SLURM_CONF"])
        assert len(processes_of(conf)) >= 5
    assert not processes_of(conf) and not _alive(int(pid.read_text()))
    assert not other.folder.exists()
    assert cluster.sinfo() == {"n1": "idle", "n2": "idle"}


def test_a_cluster_ends_with_the_tests_that_started_it(cluster: Cluster) -> None:
    """Killed as by the system: the jobs go, too."""
    script = """
import sys, time
from tests.slurm.cluster import Cluster
with Cluster(nodes=1, cpus=2, gpus=0) as cluster:
    job = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 600").strip()
    cluster.wait_until(lambda: cluster.squeue().get(job) == "RUNNING")
    print(cluster.folder, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        folder = Path(tests.stdout.readline().strip())
        assert len(processes_of(folder / "etc/slurm.conf")) >= 5
        tests.kill()
    cluster.wait_until(lambda: not processes_of(folder / "etc/slurm.conf") and not folder.exists(), 30)
    assert cluster.sinfo() == {"n1": "idle", "n2": "idle"}


def _alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
