"""One process per run folder: a live holder is respected, a dead or lost one is not, and a loser stops writing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

import rlhf.runs.lock
from rlhf.files import write_whole
from rlhf.runs.lock import LockError, RunLock, process_start, seems_alive
from rlhf.waiting import StoppedWaiting, request_stop, stopped_by_signals


def holder(folder: Path) -> dict:
    return json.loads((folder / "lock.json").read_text())


def held_by(folder: Path, pid: int, **values: object) -> None:
    """A lock file as another process would have written it."""
    entry = {
        "host": socket.gethostname(),
        "pid": pid,
        "pid_started": process_start(pid),
        "job_id": None,
        "token": "theirs",
        "heartbeat": time.time(),
    }
    write_whole(folder / "lock.json", json.dumps({**entry, **values}))


@pytest.fixture
def other_process():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield child
    child.kill()
    child.wait()


def test_the_lock_says_who_holds_it_and_goes_away(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.check()
        entry = holder(tmp_path)
        assert set(entry) == {"host", "pid", "pid_started", "job_id", "token", "heartbeat"}
        assert entry["host"] == socket.gethostname() and entry["token"] == lock.token
        assert process_start(entry["pid"]) == entry["pid_started"]
    assert not (tmp_path / "lock.json").exists()
    with RunLock(tmp_path) as again:
        assert again.token != lock.token


def test_a_second_live_process_is_refused_by_name(tmp_path, other_process):
    held_by(tmp_path, other_process.pid)
    before = holder(tmp_path)
    with pytest.raises(LockError, match=f"pid {other_process.pid} on {socket.gethostname()} is at work"):
        RunLock(tmp_path).__enter__()
    assert holder(tmp_path) == before


def test_a_live_process_of_this_host_keeps_its_lock_however_old_its_heartbeat(tmp_path, other_process):
    held_by(tmp_path, other_process.pid, heartbeat=0.0)  # stopped by SIGSTOP or a slow disk, not dead
    with pytest.raises(LockError):
        RunLock(tmp_path).__enter__()


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_dead_process_is_taken_over(tmp_path, other_process, waited_for):
    held_by(tmp_path, other_process.pid)
    other_process.kill()
    if waited_for:
        other_process.wait()
    else:
        while process_start(other_process.pid) is not None:  # a zombie keeps its pid
            time.sleep(0.01)
    with RunLock(tmp_path) as lock:
        lock.check()
        assert holder(tmp_path)["token"] == lock.token


def test_a_pid_that_another_process_has_got_since_is_taken_over(tmp_path, other_process):
    held_by(tmp_path, other_process.pid, pid_started="1")
    with RunLock(tmp_path) as lock:
        lock.check()


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(rlhf.runs.lock, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(rlhf.runs.lock, "LOOK_SECONDS", 0.05)


DAY = 86400.0


@pytest.mark.parametrize("clock", [-DAY, 0.0, DAY])
def test_a_lost_host_is_taken_over_after_its_lease_whatever_its_clock(tmp_path, capsys, short_lease, clock):
    held_by(tmp_path, 1, host="elsewhere", heartbeat=time.time() + clock)
    began = time.monotonic()
    with RunLock(tmp_path) as lock:
        lock.check()
        assert 0.6 <= time.monotonic() - began < 20
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "lock.json: left by pid 1 on elsewhere" in said


@pytest.mark.parametrize("clock", [-DAY, 0.0, DAY])
def test_a_live_host_keeps_its_lock_whatever_its_clock(tmp_path, short_lease, monkeypatch, clock):
    monkeypatch.setattr(rlhf.runs.lock, "LEASE_SECONDS", 60.0)  # of a busy machine
    done = threading.Event()

    def beat() -> None:
        for number in range(10_000):
            held_by(tmp_path, 1, host="elsewhere", heartbeat=time.time() + clock + number)
            if done.wait(0.1):
                return

    held_by(tmp_path, 1, host="elsewhere", heartbeat=time.time() + clock)
    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(LockError, match="pid 1 on elsewhere is at work"):
            RunLock(tmp_path).__enter__()
    finally:
        done.set()
        heart.join()
    assert holder(tmp_path)["token"] == "theirs"


@pytest.mark.parametrize("heartbeat", ["soon", None, [1], 10**400])
def test_a_heartbeat_is_compared_and_need_be_no_number(tmp_path, short_lease, heartbeat):
    held_by(tmp_path, 1, host="elsewhere", heartbeat=heartbeat)
    assert seems_alive(holder(tmp_path)) is False
    with RunLock(tmp_path) as lock:
        lock.check()


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_whoever_waits_stops_when_asked(tmp_path, other_process, host):
    held_by(tmp_path, other_process.pid, host=host)
    began = time.monotonic()
    with stopped_by_signals(), pytest.raises(StoppedWaiting, match="stopped by SIGTERM"):
        threading.Timer(0.3, request_stop, ["SIGTERM"]).start()
        RunLock(tmp_path, wait=True).__enter__()
    assert time.monotonic() - began < 10
    assert holder(tmp_path)["token"] == "theirs"


def test_a_guard_that_nobody_gives_back_does_not_keep_a_run_from_stopping(tmp_path):
    with FileLock(tmp_path / ".lock.guard"), stopped_by_signals(), pytest.raises(StoppedWaiting):
        threading.Timer(0.3, request_stop, ["SIGINT"]).start()
        RunLock(tmp_path).__enter__()


def test_whoever_was_taken_over_stops_and_leaves_the_lock_alone(tmp_path, other_process):
    with RunLock(tmp_path) as lock:
        held_by(tmp_path, other_process.pid)
        with pytest.raises(LockError, match="taken this run over; stopping without a write"):
            lock.check()
    assert holder(tmp_path)["token"] == "theirs"


def test_the_heart_beats_and_stops_when_taken_over(tmp_path, monkeypatch, other_process):
    monkeypatch.setattr(rlhf.runs.lock, "HEARTBEAT_SECONDS", 0.02)
    with RunLock(tmp_path):
        first, deadline = holder(tmp_path)["heartbeat"], time.monotonic() + 5
        while holder(tmp_path)["heartbeat"] == first:
            assert time.monotonic() < deadline
        held_by(tmp_path, other_process.pid)
        time.sleep(0.1)
        assert holder(tmp_path)["token"] == "theirs"


@pytest.mark.parametrize("content", ["", '{"host": "x", "pi', "[]", '{"host": "x"}'])
def test_a_damaged_lock_file_is_nobodys(tmp_path, content):
    (tmp_path / "lock.json").write_text(content)
    with RunLock(tmp_path) as lock:
        lock.check()
        (tmp_path / "lock.json").write_text(content)
        with pytest.raises(LockError):
            lock.check()
