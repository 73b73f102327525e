"""Whatever happens to a job, the driver never hangs, no other run is lost, and what ran equals an undisturbed run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.driving import ROOT, Sweep

SIX = [f"{algo}-s{seed}" for algo in ("apa", "ppo", "awr") for seed in (0, 100)]
# A run of seconds that trains.
TINY = [
    "model.width=32",
    "model.num_layers=2",
    "dataset.max_new_tokens=8",
    "dataset.num_sft=32",
    "dataset.num_pairs=32",
    "dataset.num_test_pairs=8",
    "dataset.num_eval_prompts=8",
    "dataset.num_prompts=64",
    "reward.path=null",
    "rollout.num_responses=16",
    "rollout.batch_size=16",
    "rollout.iterations=30",
    "evaluation.eval_every=5",
    "checkpoint.checkpoint_every=7",
    "reward_model.steps=2",
    "reward_model.warmup_steps=0",
]
GRID = ("algo=apa,ppo,awr", "seed=0,100")


def test_an_array_of_six(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path)
    code, output = sweep.run(*GRID, "rollout.iterations=4", "hardware.parallel_runs=3")
    assert code == 0, output
    assert "SLURM jobs, at most 3 runs at a time" in output and "6 of 6 runs finished" in output
    assert f"report: {tmp_path}/runs/default/report.html" in output
    jobs = [sweep.job(name) for name in SIX]
    assert len({job.partition("_")[0] for job in jobs}) == 1, "not one array"
    assert sorted(job.partition("_")[2] for job in jobs) == list("012345")
    assert "ArrayTaskThrottle=3" in cluster.run("scontrol", "show", "job", jobs[0])
    assert {start["OMP_NUM_THREADS"] for start in sweep.starts()} == {"1"}
    sweep.assert_as_undisturbed(tmp_path / "local", SIX, "rollout.iterations=4")

    code, output = sweep.run(*GRID, "rollout.iterations=4")
    assert code == 0 and "all 6 runs finished" in output
    assert len(sweep.starts()) == 6


def test_inputs_are_jobs_that_come_first(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path)
    code, output = sweep.run("algo=apa,ppo", "model.sft=true", "reward.path=null", "rollout.iterations=1")
    assert code == 0, output
    assert [start["run"].partition("-")[0] for start in sweep.starts()][:2] == ["sft", "reward_model"]
    assert {start["SLURM_CPUS_PER_TASK"] for start in sweep.starts()[:2]} == {"2"}


def test_a_run_that_raises_and_one_that_is_killed(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path)
    sweep.fates(ppo="raise", awr="kill")
    code, output = sweep.run("algo=apa,ppo,awr", "rollout.iterations=3")
    assert code == 1, output
    lines = output.splitlines()
    assert "1 of 3 runs finished" in output
    assert any(re.match(r"failed: ppo-s0-\w+: RuntimeError: the loss is not finite \(log: ", line) for line in lines)
    assert any(re.match(r"failed: awr-s0-\w+: killed by SIGKILL", line) for line in lines)
    # SLURM agrees, as a run that raised is no COMPLETED job.
    assert "JobState=FAILED" in cluster.run("scontrol", "show", "job", sweep.job("ppo-s0"))
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0"], "rollout.iterations=3")

    code, shown = sweep.tool("status")
    assert code == 0
    assert re.search(r"ppo-s0-\w+ +failed +1/3 ", shown) and re.search(r"apa-s0-\w+ +finished +3/3 ", shown)
    sweep.fates()
    code, output = sweep.tool("rerun", "--failed")
    assert code == 0, output
    sweep.assert_as_undisturbed(tmp_path / "again", ["apa-s0", "ppo-s0", "awr-s0"], "rollout.iterations=3")
    assert [start["from"] for start in sweep.starts_of("ppo-s0")] == [0, 2]


def test_the_whole_job_killed(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, seconds=1)
    driver = sweep.start("algo=apa,ppo", "rollout.iterations=6")
    sweep.wait_for_rows("apa-s0", 2)
    job = sweep.job("apa-s0")
    for pid in processes_of(cluster, job):
        os.kill(pid, signal.SIGKILL)
    output = sweep.finish(driver)
    assert driver.returncode == 1, output
    assert re.search(rf"failed: apa-s0-\w+: its job {job} ended without a result: FAILED \(log: ", output)
    sweep.assert_as_undisturbed(tmp_path / "local", ["ppo-s0"], "rollout.iterations=6")


def processes_of(cluster: Cluster, job: str) -> list[int]:
    """The python processes of a job, supervisor and runs."""
    mine = []
    array, _, task = job.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"} if task else {f"SLURM_JOB_ID={job}"}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            environment = set((folder / "environ").read_bytes().decode(errors="replace").split("\0"))
        except (OSError, ValueError):
            continue
        if "python" in words[0] and f"SLURM_CONF={cluster.env['SLURM_CONF']}" in environment and wanted <= environment:
            mine.append(int(folder.name))
    return mine


def test_scancel_of_one(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, seconds=0.5)
    driver = sweep.start("algo=apa,ppo", "rollout.iterations=8")
    sweep.wait_for_rows("apa-s0", 2)
    cluster.scancel(sweep.job("apa-s0"))
    output = sweep.finish(driver)
    assert driver.returncode == 130, output
    assert "1 of 2 runs finished" in output
    code, output = sweep.run("algo=apa,ppo", "rollout.iterations=8")
    assert code == 0, output
    assert sweep.starts_of("apa-s0")[1]["from"] >= 2
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0", "ppo-s0"], "rollout.iterations=8")


@pytest.mark.parametrize("how", ["TERM", "node down"])
def test_a_job_that_runs_again_goes_on(cluster: Cluster, tmp_path: Path, how: str):
    sweep = Sweep(cluster, tmp_path, seconds=0.5)
    driver = sweep.start("algo=apa,ppo", "rollout.iterations=10")
    sweep.wait_for_rows("apa-s0", 3)
    if how == "TERM":
        cluster.scancel(sweep.job("apa-s0"), signal=how)
    else:
        cluster.node(cluster.run("squeue", "-h", "-o", "%N", "-j", sweep.job("apa-s0")).strip(), "down")
    output = sweep.finish(driver)
    assert driver.returncode == 0, output
    first, second = sweep.starts_of("apa-s0")
    assert second["from"] >= 3 and second["SLURM_RESTART_COUNT"] == "1"
    assert second["SLURM_JOB_ID"] == first["SLURM_JOB_ID"]
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0", "ppo-s0"], "rollout.iterations=10")


def test_time_limit(cluster: Cluster, tmp_path: Path):
    """A minute's limit. SLURM looks every 30 seconds and may warn up to a minute early: a start can be a short one."""
    sweep = Sweep(cluster, tmp_path, seconds=1.5)
    limit = ("hardware.slurm.time_minutes=1", "hardware.slurm.signal_seconds=30")
    code, output = sweep.run("algo=apa", "rollout.iterations=50", *limit, seconds=280)
    assert code == 0, output
    begun = [start["from"] for start in sweep.starts_of("apa-s0")]
    assert len(begun) >= 2 and begun[0] == 0 and begun == sorted(begun) and begun[-1] > 5, begun
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0"], "rollout.iterations=50")


def test_preemption(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, seconds=0.5)
    driver = sweep.start("algo=apa", "rollout.iterations=12", "hardware.slurm.exclusive=true")
    sweep.wait_for_rows("apa-s0", 3)
    cluster.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 3", "--output=/dev/null")
    output = sweep.finish(driver)
    assert driver.returncode == 0, output
    assert [start["from"] > 0 for start in sweep.starts_of("apa-s0")] == [False, True]
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0"], "rollout.iterations=12")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_driver_killed_and_typed_again(cluster: Cluster, tmp_path: Path, number: int):
    sweep = Sweep(cluster, tmp_path, seconds=0.7)
    driver = sweep.start(*GRID, "rollout.iterations=8")
    sweep.wait_for_rows("apa-s0", 1)
    driver.send_signal(number)
    output = sweep.finish(driver)
    if number == signal.SIGINT:
        assert driver.returncode == 130 and "the jobs go on; the same command picks them up" in output, output
    jobs = [sweep.job(name) for name in SIX]
    code, output = sweep.run(*GRID, "rollout.iterations=8")
    assert code == 0, output
    assert [sweep.job(name) for name in SIX] == jobs, "submitted twice"
    assert len(sweep.starts()) == 6
    sweep.assert_as_undisturbed(tmp_path / "local", SIX, "rollout.iterations=8")


def test_a_config_edited_while_its_run_is_queued(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path)
    sweep.root = tmp_path / "tree"
    for part in ("main.py", "conf", "rlhf", "sweeps", "analysis", "tests"):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        (sweep.root).mkdir(exist_ok=True)
        copy(source, sweep.root / part)
    (sweep.root / "conf/tuned").rename(sweep.root / "not_tuned")
    for node in ("n1", "n2"):
        cluster.node(node, "drain")
    driver = sweep.start("algo=apa", "rollout.iterations=2")
    cluster.wait_until(lambda: list((tmp_path / "runs/default/jobs").glob("apa*.json")) and cluster.squeue())
    before = (sweep.root / "conf/algo/apa.yaml").read_text()
    (sweep.root / "conf/algo/apa.yaml").write_text(re.sub(r"lam: \S+", "lam: 7.0", before))
    for node in ("n1", "n2"):
        cluster.node(node, "resume")
    output = sweep.finish(driver)
    assert driver.returncode == 0, output
    assert float(sweep.starts()[0]["lam"]) == float(re.search(r"lam: (\S+)", before)[1])  # type: ignore[index]


def test_two_runs_in_a_job(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, seconds=0.5)
    options = ("rollout.iterations=10", "hardware.slurm.pack=2", "hardware.slurm.gpus_per_node=2")
    driver = sweep.start("algo=apa,ppo", "seed=0,100", *options)
    sweep.wait_for_rows("apa-s0", 3)
    job = sweep.job("apa-s0")
    assert sweep.job("apa-s100") == job != sweep.job("ppo-s0") == sweep.job("ppo-s100")
    cluster.scancel(job, signal="USR2")
    output = sweep.finish(driver)
    assert driver.returncode == 0, output
    assert "SLURM jobs, 2 runs in each" in output
    assert {start["CUDA_VISIBLE_DEVICES"] for start in sweep.starts()[:2]} == {"0", "1"}
    assert {start["SLURM_CPUS_PER_TASK"] for start in sweep.starts()} == {"2"}
    for name in ("apa-s0", "apa-s100"):
        assert [start["from"] > 0 for start in sweep.starts_of(name)] == [False, True]
    names = ["apa-s0", "apa-s100", "ppo-s0", "ppo-s100"]
    sweep.assert_as_undisturbed(tmp_path / "local", names, "rollout.iterations=10")


def test_submit_and_leave(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, seconds=0.5)
    options = ("algo=apa,ppo", "rollout.iterations=4", "model.sft=true", "reward.path=null")
    sft = ("sft.steps=30", "reward_model.steps=30")
    code, output = sweep.run(*options, *sft, "hardware.slurm.wait=false")
    assert code == 0, output
    assert "submitted as jobs" in output and "python -m sweeps status" in output
    assert sweep.status("apa-s0") == "none"
    jobs = [sweep.job("apa-s0"), sweep.job("ppo-s0")]
    code, shown = sweep.tool("status")
    assert re.search(rf"apa-s0-\w+ +pending +0/4( +-){{4}} +{jobs[0]} ", shown), shown
    code, output = sweep.run(*options, *sft, "hardware.slurm.wait=false")
    assert code == 0 and "2 runs are in the queue since an earlier command" in output, output
    code, output = sweep.run(*options, *sft)
    assert code == 0 and "2 of 2 runs finished" in output, output
    assert [sweep.job("apa-s0"), sweep.job("ppo-s0")] == jobs
    assert len(sweep.starts()) == 4


def test_cancel_and_go_on(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, seconds=0.5)
    driver = sweep.start("algo=apa,ppo", "rollout.iterations=12", "hardware.parallel_runs=1")
    sweep.wait_for_rows("apa-s0", 2)
    code, said = sweep.tool("cancel")
    assert code == 0 and "told to stop: 2 jobs;" in said, said
    output = sweep.finish(driver)
    assert driver.returncode == 130 and "0 of 2 runs finished" in output, output
    code, output = sweep.tool("rerun")
    assert code == 0, output
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0", "ppo-s0"], "rollout.iterations=12")


def test_a_queue_that_does_not_answer(cluster: Cluster, tmp_path: Path):
    """The driver waits and says so; typed again meanwhile, nothing is submitted twice."""
    sweep = Sweep(cluster, tmp_path, seconds=0.7)
    broken = sweep.break_squeue()
    broken.touch()
    driver = sweep.start("algo=apa", "rollout.iterations=20")
    time.sleep(4)
    assert not sweep.starts(), "submitted without knowing what is there"
    broken.unlink()
    sweep.wait_for_rows("apa-s0", 1)
    broken.touch()
    again = sweep.start("algo=apa", "rollout.iterations=20")
    time.sleep(8)
    broken.unlink()
    for one in (driver, again):
        output = sweep.finish(one)
        assert one.returncode == 0, output
    assert len(sweep.starts()) == 1
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0"], "rollout.iterations=20")


def test_a_users_own_squeue_settings_hide_nothing(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path)
    sweep.environment |= {"SQUEUE_PARTITION": "high", "SQUEUE_STATES": "PD", "LOGNAME": "somebody"}
    code, output = sweep.run("algo=apa", "rollout.iterations=40")
    assert code == 0, output


def test_a_pack_of_one_that_failed_and_one_that_goes_on(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, seconds=0.5)
    sweep.fates(ppo="raise")
    driver = sweep.start("algo=apa,ppo", "rollout.iterations=14", "hardware.slurm.pack=2")
    sweep.wait_for_rows("apa-s0", 5)
    assert re.search(r"ppo-s0-\w+ +failed", sweep.tool("status")[1])
    sweep.fates()
    cluster.scancel(sweep.job("apa-s0"), signal="USR2")
    output = sweep.finish(driver)
    assert driver.returncode == 1, output
    assert len(sweep.starts_of("ppo-s0")) == 1 and len(sweep.starts_of("apa-s0")) == 2
    sweep.assert_as_undisturbed(tmp_path / "local", ["apa-s0"], "rollout.iterations=14")


def test_overwrite_empties_once_however_often_the_job_starts(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path, target="rlhf.run:execute")
    assert sweep.run("algo=apa", *TINY)[0] == 0
    driver = sweep.start("algo=apa", *TINY, "overwrite=true")
    cluster.wait_until(lambda: 2 <= len(sweep.rows("apa-s0")) < 30, 100)
    cluster.scancel(sweep.job("apa-s0"), signal="USR2")
    output = sweep.finish(driver)
    assert driver.returncode == 0, output
    count = next((tmp_path / "runs/default").glob("apa-s0*/overwrites.json")).read_text()
    assert json.loads(count) == {"count": 1}


@pytest.mark.parametrize("how", ["USR2", "requeue"])
def test_a_real_run_ends_as_if_undisturbed(cluster: Cluster, tmp_path: Path, how: str):
    """Training, not counting: checkpoint, cut-back logs and weights."""
    sweep = Sweep(cluster, tmp_path, target="rlhf.run:execute")
    driver = sweep.start("algo=ppo", *TINY)
    sweep.wait_for_rows("ppo-s0", 8)
    if how == "USR2":
        cluster.scancel(sweep.job("ppo-s0"), signal="USR2")
    else:
        cluster.requeue(sweep.job("ppo-s0"))
    output = sweep.finish(driver, 200)
    assert driver.returncode == 0, output
    sweep.assert_as_undisturbed(tmp_path / "local", ["ppo-s0"], *TINY)
    weights = [next(tmp_path.glob(f"{place}runs/default/ppo*/final/model.safetensors")) for place in ("", "local/")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_every_option_reaches_sbatch(cluster: Cluster, tmp_path: Path):
    sweep = Sweep(cluster, tmp_path)
    for node in ("n1", "n2"):
        cluster.node(node, "drain")
    options = {
        "partition": "high",
        "time_minutes": "90",
        "gpus_per_node": "1",
        "cpus_per_task": "3",
        "memory_gb": "1.5",
        "mail_user": "someone",
        "mail_type": "END",
        "exclusive": "true",
        "sbatch": '["nice=100","comment=tried"]',
        "wait": "false",
    }
    code, output = sweep.run("algo=apa", *(f"hardware.slurm.{name}={value}" for name, value in options.items()))
    assert code == 0, output
    job = cluster.run("scontrol", "show", "job", sweep.job("apa-s0"))
    for shown in ("Partition=high", "TimeLimit=01:30:00", "NumCPUs=3", "mem=1.50G", "MailUser=someone"):
        assert shown in job, job
    assert "Nice=100" in job and "Comment=tried" in job and "Requeue=1" in job and "OverSubscribe=NO" in job
    assert "gpu:1" in job or "gres/gpu=1" in job
