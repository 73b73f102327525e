"""The cluster is what its fixture says: nodes, GPUs, accounting, requeue, preemption, and no trace at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing_packages
from tests.slurm.processes import processes_of

ROOT = Path(__file__).resolve().parents[2]


def submit(cluster: Cluster, script: str, *options: str) -> str:
    return cluster.run("sbatch", "--parsable", *options, "--wrap", script).strip()


def running(cluster: Cluster, job: str) -> bool:
    return cluster.squeue().get(job) == "RUNNING"


def noted_runs(notes: Path) -> list[str]:
    """Each run of `NOTE` writes a line: node and restart count, which the first run has not."""
    return notes.read_text().splitlines() if notes.exists() else []


def note(notes: Path) -> str:
    return f'echo "$SLURMD_NODENAME ${{SLURM_RESTART_COUNT:-0}}" >> {notes}'


def test_both_nodes_run_a_command(cluster: Cluster) -> None:
    assert cluster.sinfo() == {"n1": "idle", "n2": "idle"}
    assert cluster.run("srun", "-N2", "hostname").split() == [os.uname().nodename] * 2
    assert sorted(cluster.run("srun", "-N2", "printenv", "SLURMD_NODENAME").split()) == ["n1", "n2"]


def test_a_job_sees_its_gpus_only(cluster: Cluster) -> None:
    assert cluster.run("srun", "--gres=gpu:1", "printenv", "CUDA_VISIBLE_DEVICES").strip() == "0"
    assert cluster.run("srun", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES").strip() == "0,1"
    with pytest.raises(RuntimeError):
        submit(cluster, "true", "--gres=gpu:3")


def test_jobs_without_a_wish_share_a_node(cluster: Cluster) -> None:
    jobs = [submit(cluster, "sleep 60", "--nodelist=n1") for _ in range(8)]
    assert cluster.wait_until(lambda: all(running(cluster, job) for job in jobs))
    assert cluster.sinfo()["n1"] == "allocated"


def test_sacct_fails_without_accounting(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError):
        cluster.run("sacct")


def test_sacct_works_with_accounting(cluster_with_accounting: Cluster) -> None:
    cluster = cluster_with_accounting
    good, bad = submit(cluster, "true"), submit(cluster, "exit 3")

    def states() -> set[str]:
        table = cluster.run("sacct", "--allocations", "--parsable2", "--noheader", "--format=JobID,State")
        return {line for line in table.splitlines() if line.split("|")[0] in {good, bad}}

    cluster.wait_until(lambda: states() == {f"{good}|COMPLETED", f"{bad}|FAILED"})


def test_an_array_is_listed_task_by_task(cluster: Cluster) -> None:
    job = submit(cluster, "sleep 60", "--array=0-2%2")
    cluster.wait_until(lambda: running(cluster, f"{job}_1"))
    assert cluster.squeue() == {f"{job}_0": "RUNNING", f"{job}_1": "RUNNING", f"{job}_2": "PENDING"}
    cluster.scancel(f"{job}_0")
    cluster.wait_until(lambda: running(cluster, f"{job}_2"))
    cluster.wait_until(lambda: cluster.squeue("--states=all")[f"{job}_0"] == "CANCELLED")


def test_requeue_starts_the_same_job_again(cluster: Cluster, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    job = submit(cluster, f"{note(notes)}; sleep 60", "--nodelist=n1")
    cluster.wait_until(lambda: noted_runs(notes) == ["n1 0"])
    cluster.requeue(job)
    cluster.wait_until(lambda: noted_runs(notes) == ["n1 0", "n1 1"])
    assert running(cluster, job)


def test_a_node_down_requeues_its_job_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    job = submit(cluster, f"{note(notes)}; sleep 60")
    (first,) = cluster.wait_until(lambda: noted_runs(notes))
    cluster.node(first.split()[0], "down")
    other = {"n1": "n2", "n2": "n1"}[first.split()[0]]
    cluster.wait_until(lambda: noted_runs(notes) == [first, f"{other} 1"])
    assert running(cluster, job)
    assert cluster.sinfo() == {first.split()[0]: "down", other: "mixed"}
    cluster.restore()
    assert cluster.sinfo() == {"n1": "idle", "n2": "idle"}


def test_preemption_warns_then_requeues(cluster: Cluster, tmp_path: Path) -> None:
    """The default partition gives way to `high`: the signal asked for at once, a restart when there is room again."""
    notes = tmp_path / "notes"
    step = tmp_path / "step.sh"
    step.write_text(f"trap 'echo USR2 >> {notes}' USR2\n{note(notes)}\nfor _ in $(seq 60); do sleep 1; done\n")
    submit(cluster, f"srun --quiet bash {step}", "--signal=USR2@60", "--exclusive", "--nodelist=n1")
    cluster.wait_until(lambda: noted_runs(notes) == ["n1 0"])
    urgent = submit(cluster, "sleep 60", "--partition=high", "--exclusive", "--nodelist=n1")
    cluster.wait_until(lambda: noted_runs(notes) == ["n1 0", "USR2"])
    cluster.wait_until(lambda: running(cluster, urgent))
    cluster.scancel(urgent)
    cluster.wait_until(lambda: noted_runs(notes) == ["n1 0", "USR2", "n1 1"])


def test_restore_mends_a_dead_slurmd_and_ends_what_it_left(cluster: Cluster, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    job = submit(cluster, f"echo $$ > {pid}; sleep 600", "--nodelist=n1")
    cluster.wait_until(lambda: pid.exists() and pid.read_text())
    cluster.kill_slurmd("n1")
    assert running(cluster, job) and _alive(int(pid.read_text()))
    cluster.restore()
    assert cluster.squeue() == {} and not _alive(int(pid.read_text()))
    assert cluster.sinfo() == {"n1": "idle", "n2": "idle"}
    assert cluster.run("srun", "--nodelist=n1", "echo", "up") == "up\n"


def test_the_controller_comes_back(cluster: Cluster) -> None:
    cluster.kill_slurmctld()
    cluster.restart_slurmctld()
    assert cluster.run("srun", "echo", "up") == "up\n"


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


def test_missing_packages_are_named(tmp_path: Path) -> None:
    assert missing_packages(path=str(tmp_path)) == ["slurmctld", "slurmd", "slurm-client", "munge"]
    assert missing_packages(accounting=True, path=str(tmp_path))[4:] == ["slurmdbd", "mariadb-server-core"]


def _alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
