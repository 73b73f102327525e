"""Room on this machine, single runs stopped, and `python -m sweeps status, cancel, rerun` of a local sweep."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_folder, run_id, sweep_folder
from sweeps import machine
from sweeps.__main__ import main, sweep_status
from sweeps.experiment import run_experiment
from sweeps.local_launcher import LocalRuns
from sweeps.machine import Room, check_places, room_for
from sweeps.runs import Stopped, read_json, record_path, write_json, write_record
from sweeps.single import run_single
from tests.config.composed import config

COUNTING = "tests.sweeps.counting:execute"
ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *overrides: str) -> RunConfig:
    (folder / "reward").touch()
    places = (f"output_dir={folder}/runs", f"cache_dir={folder}/cache", f"reward.path={folder}/reward")
    settings = ("tracking=none", "model.sft=false", "rollout.iterations=3", "evaluation.reference_responses=0")
    return config(*settings, *places, *overrides)


def starts(folder: Path) -> list[dict]:
    file = folder / "started.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def drain(launcher: LocalRuns) -> list[str]:
    ended = []
    while launcher.busy:
        ended += launcher.poll(0.5)
    return [outcome.status for outcome in ended]


@pytest.mark.parametrize(
    ("overrides", "gpus", "room", "why"),
    [
        ((), (), Room(8, 8), "8 cores, 1 thread each"),
        (("hardware.threads=4",), (), Room(2, 8), "8 cores, 4 threads each"),
        (("hardware.parallel_runs=20",), (), Room(20, 20), "hardware.parallel_runs"),
        (("hardware=gpu", "hardware.threads=1"), ("0", "2"), Room(2, 8, ("0", "2")), "2 GPUs"),
        (
            ("hardware=gpu", "hardware.threads=1", "hardware.ranks=2"),
            ("0", "2", "3", "5"),
            Room(2, 8, ("0", "2", "3", "5")),
            "4 GPUs, 2 for each run",
        ),
        (
            ("hardware=gpu", "hardware.threads=1", "hardware.runs_per_gpu=3"),
            ("0", "2"),
            Room(6, 8, ("0", "2")),
            "2 GPUs, 3 on each",
        ),
    ],
)
def test_room_by_cores_gpus_and_memory(monkeypatch, tmp_path, overrides, gpus, room, why):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(machine, "available_gib", lambda: 100.0)
    monkeypatch.setattr(machine, "visible_gpus", lambda: gpus)
    assert room_for(run(tmp_path, *overrides)) == (room, why)
    monkeypatch.setattr(machine, "available_gib", lambda: 0.8)
    assert room_for(run(tmp_path, "hardware.ranks=1"))[1] == "0.8 GiB of free memory"


def test_runs_share_the_gpus_evenly(tmp_path):
    environment = {"COUNTING_SECONDS": "0.2"}
    launcher = LocalRuns(COUNTING, environment, room=Room(4, 8, ("0", "5")))
    for seed in range(4):
        launcher.submit(run(tmp_path, f"seed={seed}"))
    assert drain(launcher) == ["finished"] * 4
    assert sorted(start["CUDA_VISIBLE_DEVICES"] for start in starts(tmp_path)) == ["0", "0", "5", "5"]


def test_a_run_of_more_threads_goes_alone(tmp_path):
    """Two input runs of two threads each never share two cores."""
    environment = {"COUNTING_SECONDS": "0.2"}
    launcher = LocalRuns(COUNTING, environment, room=Room(2, 2))
    for seed, threads in ((0, 2), (1, 2), (2, 1), (3, 1)):
        launcher.submit(run(tmp_path, f"seed={seed}", f"hardware.threads={threads}"))
    most = 0
    while launcher.busy:
        most = max(most, sum(child.threads for child in launcher._children))
        launcher.poll(0.1)
    assert most == 2
    assert [start["OMP_NUM_THREADS"] for start in starts(tmp_path)] == ["2", "2", "1", "1"]


def test_one_run_is_stopped_and_the_others_go_on(tmp_path):
    environment = {"COUNTING_SECONDS": "0.1"}
    launcher = LocalRuns(COUNTING, environment, room=Room(2, 2))
    runs = [run(tmp_path, f"seed={seed}", "rollout.iterations=20") for seed in range(3)]
    for one in runs:
        launcher.submit(one)
    while len(starts(tmp_path)) < 2:
        launcher.poll(0.1)
    launcher.cancel([run_folder(runs[0]), run_folder(runs[2])])
    assert sorted(drain(launcher)) == ["finished", "interrupted", "interrupted"]
    assert len(starts(tmp_path)) == 2
    assert json.loads((run_folder(runs[1]) / "summary.json").read_text())["status"] == "finished"


def test_signals_to_all_processes_do_not_end_the_server(tmp_path):
    """As SLURM sends them: the driver must still learn how its children ended."""
    environment = {"COUNTING_SECONDS": "0.2"}
    launcher = LocalRuns(COUNTING, environment, room=Room(1, 1))
    launcher.submit(run(tmp_path, "rollout.iterations=10"))
    while not starts(tmp_path):
        launcher.poll(0.1)
    child = launcher._children[0].process.pid
    assert child is not None
    server = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
    for pid in (server, child):
        os.kill(pid, signal.SIGUSR2)
    assert drain(launcher) == ["interrupted"]
    launcher.submit(run(tmp_path, "rollout.iterations=10"))
    assert drain(launcher) == ["finished"]
    assert [start["from"] > 0 for start in starts(tmp_path)] == [False, True]


def test_a_closed_terminal_is_a_request_to_checkpoint(tmp_path):
    """SIGHUP goes to every process of the terminal's group, the server too."""
    driver = sweep(tmp_path, "algo=apa,ppo", "rollout.iterations=12", "hardware.parallel_runs=2")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("runs/default/*/metrics.jsonl"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGHUP)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, output
    statuses = [json.loads(file.read_text())["status"] for file in tmp_path.glob("runs/default/*/summary.json")]
    assert statuses == ["interrupted", "interrupted"]


def test_a_second_driver_waits_for_the_first(tmp_path):
    """Both end with the runs done once."""
    drivers = [sweep(tmp_path, "algo=apa,ppo", "rollout.iterations=2") for _ in range(2)]
    for driver in drivers:
        output, _ = driver.communicate(timeout=90)
        assert driver.returncode == 0, output
    rows = [len(file.read_text().splitlines()) for file in tmp_path.glob("runs/default/*/metrics.jsonl")]
    assert rows == [3, 3]


# --- the command -----------------------------------------------------------------------------------------------------


def sweep(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    (folder / "reward").touch()
    environment = {**os.environ, "COUNTING_SECONDS": "0.3"}
    places = (f"output_dir={folder}/runs", f"cache_dir={folder}/cache", f"reward.path={folder}/reward")
    fixed = ("tracking=none", "model.sft=false", "evaluation.reference_responses=0", "hardware.parallel_runs=1")
    return subprocess.Popen(
        [
            sys.executable,
            "tests/sweeps/driver.py",
            "-m",
            f"hydra.launcher.target={COUNTING}",
            *fixed,
            *places,
            *overrides,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def tool(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """`python -m sweeps COMMAND runs/default` in this process, without the report: its exit code and all it prints."""
    monkeypatch.setattr("sweeps.experiment.write_report", lambda *_: None)

    def command(name: str, *options: str) -> tuple[int, str]:
        words = [name, f"{tmp_path}/runs/default", *options]
        monkeypatch.setattr(sys, "argv", ["sweeps/__main__.py", *words])
        code, printed = main(words), capsys.readouterr()
        return code, printed.out + printed.err

    return command


def test_status_cancel_and_rerun(tmp_path, tool):
    driver = sweep(tmp_path, "algo=apa,ppo", "rollout.iterations=30")
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("runs/default/apa-*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code, shown = tool("status")
    assert code == 0
    assert re.search(r"^apa-s0-\w+ +running +\d+/30( +\d\.\d{3}){4} +- +\S+ +\S+/logs/apa-s0-\w+\.log", shown, re.M)
    assert re.search(r"^ppo-s0-\w+ +queued +0/30 +- +- ", shown, re.M)
    code, said = tool("cancel")
    assert code == 0 and f"told to stop: the driver {driver.pid};" in said
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    code, shown = tool("status")
    assert re.search(r"^apa-s0-\w+ +interrupted", shown, re.M) and re.search(r"^ppo-s0-\w+ +interrupted", shown, re.M)
    assert "nothing of this sweep runs or waits" in tool("cancel")[1]

    code, said = tool("rerun")
    assert code == 0, said
    assert "2 of 2 runs finished" in said
    assert [start["from"] > 0 for start in starts(tmp_path)] == [False, True, False]
    code, said = tool("rerun", "--failed")
    assert code == 0 and "no run of this sweep is failed or lost" in said


@pytest.mark.parametrize("raised", [None, KeyboardInterrupt, ModuleNotFoundError])
def test_a_single_run_stopped_before_its_own_stage_is_told_as_interrupted(tmp_path, monkeypatch, raised):
    """Its inputs have rows, as in a sweep; the one at work says so itself, or a second Ctrl-C ends them all."""
    needed = run(tmp_path, "model.sft=true", "reward.path=null")
    sft, reward_model = input_runs(needed)

    def execute(_: RunConfig) -> dict[str, str]:
        states = [status.state for status in sweep_status(sweep_folder(needed))[0]]
        assert states == ["queued", "queued", "queued"]
        if raised is KeyboardInterrupt:
            raise KeyboardInterrupt
        if raised is not None:  # out of an import that Ctrl-C broke off
            raise raised("Could not import module 'PreTrainedModel'") from KeyboardInterrupt()
        summary = {"status": "interrupted", "run_id": run_id(sft), "error": "stopped by SIGINT"}
        run_folder(sft).mkdir(parents=True)
        (run_folder(sft) / "summary.json").write_text(json.dumps({**summary, "finished_at": time.time()}))
        return summary

    monkeypatch.setitem(sys.modules, "rlhf.run", SimpleNamespace(execute=execute))
    with pytest.raises(raised or Stopped):
        run_single(needed)
    for one in (sft, reward_model, needed):  # its process has ended
        write_json(record_path(one), {**read_json(record_path(one)), "driver_started": 0})
    statuses, unreadable = sweep_status(sweep_folder(needed))
    assert not unreadable
    reason = "" if raised else "stopped by SIGINT"
    assert [(status.name, status.state, status.reason) for status in statuses] == [
        (run_id(sft), "interrupted", reason),
        (run_id(reward_model), "interrupted", ""),
        (run_id(needed), "interrupted", ""),
    ]


def test_what_failed_is_told_and_done_again_alone(tmp_path, tool):
    (tmp_path / "fates.json").write_text(json.dumps({"ppo": "kill"}))
    driver = sweep(tmp_path, "algo=apa,ppo", "rollout.iterations=3")
    driver.communicate(timeout=120)
    assert driver.returncode == 1
    code, shown = tool("status")
    assert re.search(r"failed: ppo-s0-\w+: killed by SIGKILL", shown)
    code, said = tool("rerun", "--failed")
    assert code == 1 and f"rerun just these: python -m sweeps rerun {tmp_path}/runs/default --failed" in said
    (tmp_path / "fates.json").unlink()
    code, said = tool("rerun", "--failed")
    assert code == 0 and "1 of 1 run finished" in said, said
    assert [start["run"].partition("-")[0] for start in starts(tmp_path)] == ["apa", "ppo", "ppo", "ppo"]


def test_an_input_of_another_version_is_one_line(tmp_path, tool):
    """Its record outlives changes of options that do not count towards its id."""
    needed = run(tmp_path, "model.sft=true")
    (sft,) = input_runs(needed)
    for one in (needed, sft):
        write_record(one, COUNTING, driver_started=0)  # or this process would be the driver that is told to stop
    record = json.loads(record_path(sft).read_text())
    record["config"]["hardware"]["no_such_option"] = 1
    record_path(sft).write_text(json.dumps(record))
    for command in ("status", "cancel"):
        code, said = tool(command)
        assert code == 0 and "Traceback" not in said
        assert f"{record_path(sft)}: not of this version of the program (hardware.no_such_option" in said


def test_a_folder_without_a_sweep_is_one_line(tmp_path, tool):
    code, said = tool("status")
    assert code == 2 and said.strip() == f"{tmp_path}/runs/default: no sweep was started there (runs/<sweep name>)"


def test_a_sweep_for_gpus_without_one_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.machine.has_gpu", lambda: False)
    with pytest.raises(ConfigError, match=r"hardware\.device: cuda, but this machine shows no GPU"):
        LocalRuns(COUNTING).open([run(tmp_path, "hardware=gpu")])


@pytest.mark.parametrize("option", ["output_dir", "cache_dir"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_starts(tmp_path, monkeypatch, option):
    """As /proc, where nobody may make a folder; another folder of it that is there is no reason to refuse."""
    refused = run(tmp_path, "model.sft=true", f"{option}=/proc/x/y")
    line = f"^{option}: /proc/x/y: cannot write in /proc \\(.*\\); give a folder that can be written, {option}=FOLDER$"
    for start in (run_single, lambda one: run_experiment([one], COUNTING)):
        with pytest.raises(ConfigError, match=line):
            start(refused)
    assert [path.name for path in tmp_path.rglob("*")] == ["reward"]
    without_inputs = run(tmp_path, "cache_dir=/proc/x/y")  # a shared cache that has them need not be written
    check_places([without_inputs, run(tmp_path)])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^{option}: {tmp_path}/file: .*Not a directory"):
        run_single(run(tmp_path, "model.sft=true", f"{option}={tmp_path}/file"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "reward"]
