"""Several ranks do what one does: the same numbers from the same global batches, one logger, one end for all."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import input_runs, run_folder
from rlhf.processes import RankFailed
from rlhf.run import RunError, execute
from rlhf.runs.checkpoint import load_checkpoint
from rlhf.runs.state import read_rows
from tests.test_run import TINY, tiny, without_time

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("rollout.iterations=2", "evaluation.eval_every=1", "value.head_init_std=0.1")
# Float32 sums in another order; two iterations do not let them grow.
REL, ABS = 2e-4, 2e-5

pytestmark = pytest.mark.usefixtures("torchs_switches")

# A rank that does one run after another, as torchrun's would do one: it imports torch once for all the tests below.
WORKER = """
import json, os, signal, sys, traceback
import rlhf.run
import rlhf.models.sharding as sharding
import rlhf.stages.loop as loop
from rlhf.config.build import build_config

units, shard_unit = [], sharding._shard_unit

def noting(*given):
    units.append(given)
    shard_unit(*given)

sharding._shard_unit = noting

def at(iteration, what):
    original = loop.one_iteration
    def one_iteration(config, setup, responses, progress, now):
        if now == iteration:
            what()
        return original(config, setup, responses, progress, now)
    loop.one_iteration = one_iteration
    return original

def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)

def fail():
    raise MemoryError("no room for logits")

def spoil_a_gradient():
    import rlhf.update as updating
    original = updating.accumulate_gradients
    def once(*given):
        updating.accumulate_gradients = original
        found = original(*given)
        next(p for p in given[2].policy_parameters.values() if p.grad is not None).grad.view(-1)[0] = float("nan")
        return found
    updating.accumulate_gradients = once

for line in sys.stdin:
    job = json.loads(line)
    os.environ |= job["environment"]
    units.clear()
    original = at(job["at"], globals()[job["what"]]) if job["at"] else loop.one_iteration
    try:
        said = rlhf.run.execute(build_config(job["config"]))
    except Exception as error:
        traceback.print_exc()
        said = {"status": "raised", "error": f"{type(error).__name__}: {error}"}
    loop.one_iteration = original
    print("said " + json.dumps(said | {"units": len(units)}), flush=True)
"""


class Ranks:
    """Two processes that are told of each other by torchrun's variables."""

    def __init__(self) -> None:
        words = [sys.executable, "-c", WORKER]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self.workers = [subprocess.Popen(words, **pipes) for _ in range(2)]

    def do(self, run: RunConfig, what: str = "", at: int = 0) -> list[dict[str, Any]]:
        """What `execute` gave at both; `what`, a function of WORKER, is called by rank 1 alone in iteration `at`."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        for number, worker in enumerate(self.workers):
            environment = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
            job = {"config": config_to_mapping(run), "environment": environment, "what": what, "at": at * number}
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
        return [self._said(worker) for worker in self.workers]

    @staticmethod
    def _said(worker: subprocess.Popen[str]) -> dict[str, Any]:
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            assert worker.stdout is not None
            for line in worker.stdout:
                if line.startswith("said "):
                    lines.put(line)
                    return

        threading.Thread(target=read, daemon=True).start()
        return json.loads(lines.get(timeout=600).removeprefix("said "))

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.end()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, cache, two_ranks) -> Callable[..., tuple[RunConfig, RunConfig]]:
    """The same run by one rank and by two, both finished; both start from the inputs that one rank has made."""
    output, made = tmp_path_factory.mktemp("runs"), {}

    def both(algo: str, *overrides: str) -> tuple[RunConfig, RunConfig]:
        key = (algo, *overrides)
        if key not in made:
            alone = tiny(output, cache, algo, *SHORT, *overrides)
            assert execute(alone)["status"] == "finished"
            together = with_inputs_of(alone, tiny(output, cache, algo, *SHORT, *overrides, "hardware.ranks=2"))
            assert [said["status"] for said in two_ranks.do(together)] == ["finished", "finished"]
            made[key] = alone, together
        return made[key]

    return both


def with_inputs_of(done: RunConfig, run: RunConfig) -> RunConfig:
    """`run`, its SFT policy and reward model being those of another run, whatever its own would be."""
    for ours, theirs in zip(input_runs(run), input_runs(done), strict=True):
        if not run_folder(ours).exists():
            run_folder(ours).symlink_to(run_folder(theirs).resolve(), target_is_directory=True)
    return run


def assert_close(ours: RunConfig, theirs: RunConfig) -> None:
    """Every row, sample and weight but for rounding; each row once."""
    rows, expected = ([without_time(row) for row in read_rows(run_folder(run))] for run in (ours, theirs))
    assert [row["step"] for row in rows] == [row["step"] for row in expected] and len(rows) > 1
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=REL, abs=ABS)
    mine, other = weights(ours), weights(theirs)
    assert set(mine) == set(other)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], rtol=2e-3, atol=2e-5, msg=lambda text, name=name: name + text)


def weights(run: RunConfig) -> dict[str, torch.Tensor]:
    files = sorted(run_folder(run).glob("final/**/*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


# --- the same numbers ----------------------------------------------------------------------------------------------


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("algo", "mode"),
    [
        ("apa", "last_k"),
        ("ppo", "last_k"),
        slow("apa", "lora"),
        slow("ppo", "lora"),
        ("ppo", "all"),
        slow("apa", "all"),
        slow("awr", "last_k"),
    ],
)
def test_two_ranks_give_what_one_gives(pair, algo, mode):
    alone, together = pair(algo, f"model.train.mode={mode}")
    assert run_folder(alone) != run_folder(together)
    assert_close(together, alone)
    samples = [(run_folder(run) / "samples.jsonl").read_text().splitlines() for run in (alone, together)]
    responses = [[json.loads(line)["response"] for line in lines] for lines in samples]
    assert responses[0] == responses[1] and len(responses[0]) == 6


@pytest.mark.parametrize("algo", [slow("apa"), "ilql"])
def test_two_ranks_learn_from_a_data_set_as_one_does(pair, algo):
    alone, together = pair(algo, "stage=offline", "optimization.epochs=1")
    assert_close(together, alone)


def test_whitening_over_minibatches_and_a_head_on_the_policy_are_of_the_whole_minibatch(pair):
    alone, together = pair("ppo", "advantages.whiten_over=minibatch", "value.network=head")
    assert_close(together, alone)


def test_an_older_policy_samples_at_two_ranks_as_at_one(pair):
    alone, together = pair("ppo", "rollout.lag=1")
    assert_close(together, alone)


def test_evaluation_prompts_that_do_not_divide_are_each_asked_once(tmp_path, cache, two_ranks):
    odd = ("rollout.iterations=1", "dataset.num_eval_prompts=6", "hardware.ranks=2", "evaluation.samples=6")
    alone = tiny(tmp_path, cache, "apa", "rollout.iterations=1", "dataset.num_eval_prompts=6", "evaluation.samples=6")
    execute(alone)
    together = with_inputs_of(alone, tiny(tmp_path, cache, "apa", *odd))
    two_ranks.do(together)
    assert_close(together, alone)


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
@pytest.mark.parametrize("sharding", ["none", slow("fsdp")])
def test_the_stages_before_rl_give_what_one_rank_gives(tmp_path, cache, two_ranks, stage, sharding):
    options = (f"stage={stage}", f"{stage}.train.mode=all")
    alone = tiny(tmp_path, cache, "apa", *options)
    execute(alone)
    ranks = ("hardware.ranks=2", f"hardware.sharding={sharding}")
    together = with_inputs_of(alone, tiny(tmp_path, cache, "apa", *options, *ranks))
    said = two_ranks.do(together)
    assert [one["status"] for one in said] == ["finished", "finished"]
    # Two blocks and the embeddings; the language head beside them.
    assert {one["units"] for one in said} == {0 if sharding == "none" else 4 if stage == "sft" else 3}
    assert_close(together, alone)


# --- stopped and gone on -------------------------------------------------------------------------------------------


def test_a_signal_at_one_rank_stops_both_and_they_go_on_as_if_never_stopped(pair, tmp_path, cache, two_ranks):
    _, expected = pair("ppo", "model.train.mode=last_k")
    run = tiny(tmp_path, cache, "ppo", *SHORT, "model.train.mode=last_k", "hardware.ranks=2")
    said = two_ranks.do(run, "ask_to_stop", 1)
    assert [one["status"] for one in said] == ["interrupted", "interrupted"]
    assert all("stopped by SIGTERM" in one["error"] for one in said)
    assert [row["iteration"] for row in read_rows(run_folder(run))] == [0, 1]
    assert not (run_folder(run) / "lock.json").exists()
    two_ranks.do(run)
    rows, wanted = ([without_time(row) for row in read_rows(run_folder(one))] for one in (run, expected))
    assert rows == wanted
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(expected)[name]), name
    ours, theirs = load_checkpoint(run_folder(run)), load_checkpoint(run_folder(expected))
    assert ours is not None and theirs is not None
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


def test_a_step_that_is_bad_at_one_rank_is_left_out_by_both(pair, tmp_path, cache, two_ranks):
    pair("apa", "model.train.mode=last_k")  # has made the inputs
    run = tiny(tmp_path, cache, "apa", *SHORT, "model.train.mode=last_k", "hardware.ranks=2")
    said = two_ranks.do(run, "spoil_a_gradient", 1)
    assert [one["status"] for one in said] == ["finished", "finished"]
    assert [row.get("train/bad_steps") for row in read_rows(run_folder(run))] == [None, 1.0, 1.0]
    (kept,) = (run_folder(run) / "bad_steps").iterdir()
    batch = json.loads(kept.read_text())["batch"]
    assert len(batch) == 4 and all(response["advantages"] for response in batch)  # both ranks' responses
    assert {one["eval/kl"] for one in said} == {read_rows(run_folder(run))[-1]["eval/kl"]}


@pytest.mark.slow
@pytest.mark.timeout(900)  # ranks wait for each other, long on a busy machine
def test_a_run_that_starts_its_own_ranks_stops_when_asked_and_goes_on(pair, tmp_path, cache):
    _, expected = pair("apa", "model.train.mode=last_k")
    run = tiny(tmp_path, cache, "apa", *SHORT, "model.train.mode=last_k", "hardware.ranks=2")
    with watched(run, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert execute(run)["status"] == "interrupted"
    assert len(read_rows(run_folder(run))) < 3
    assert execute(run)["status"] == "finished"
    rows, wanted = ([without_time(row) for row in read_rows(run_folder(one))] for one in (run, expected))
    assert rows == wanted


@contextlib.contextmanager
def watched(run: RunConfig, then: Callable[[], object]) -> Iterator[None]:
    """Once the run has logged its first row, call `then`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if read_rows(run_folder(run)):
                then()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)  # ranks wait for each other, long on a busy machine
def test_a_killed_rank_ends_the_others_and_the_run_in_one_line(pair, tmp_path, cache):
    pair("apa", "model.train.mode=last_k")  # has made the inputs
    run = tiny(tmp_path, cache, "apa", "rollout.iterations=2000", "hardware.ranks=2")
    pids: list[int] = []

    def kill_the_second() -> None:
        pids.extend(sorted(child.pid for child in multiprocessing.active_children() if child.pid is not None))
        os.kill(pids[1], signal.SIGKILL)

    with (
        watched(run, kill_the_second),
        pytest.raises(RankFailed, match=r"^rank 1 of 2 was killed by SIGKILL \(out of memory, or kill -9\)$"),
    ):
        execute(run)
    summary = json.loads((run_folder(run) / "summary.json").read_text())
    assert summary["status"] == "failed" and "another of the 2 ranks is gone" in summary["error"]
    assert not (run_folder(run) / "lock.json").exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_one_rank_dies_of_is_what_the_run_failed_of(pair, tmp_path, cache, two_ranks):
    pair("apa", "model.train.mode=last_k")
    run = tiny(tmp_path, cache, "apa", *SHORT, "hardware.ranks=2")
    first, second = two_ranks.do(run, "fail", 1)
    assert second["error"] == "MemoryError: no room for logits"
    assert first["error"] == "RankFailed: rank 1: MemoryError: no room for logits"
    summary = json.loads((run_folder(run) / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["error"] == first["error"]


def test_another_number_of_processes_than_ranks_is_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for ranks in (1, 2):
        with pytest.raises(RunError, match=f"hardware.ranks: {ranks}, but WORLD_SIZE in the environment is 3"):
            execute(tiny(tmp_path, cache, "apa", f"hardware.ranks={ranks}"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # ranks wait for each other, long on a busy machine
def test_torchrun_starts_the_ranks_of_one_run(pair, tmp_path, cache):
    _, expected = pair("apa", "model.train.mode=last_k")
    words = [*TINY.split(), *SHORT, "model.train.mode=last_k", f"output_dir={tmp_path}", f"cache_dir={cache}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "main.py"]
    done = subprocess.run(
        [*torchrun, *words, "hardware.ranks=2"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{run_folder(expected).name} finished, reward") == 1  # one of them speaks
    (folder,) = (tmp_path / "default").glob("apa-*")
    assert folder.name == run_folder(expected).name
    rows = [without_time(row) for row in read_rows(folder)]
    assert rows == [without_time(row) for row in read_rows(run_folder(expected))]
    refused = subprocess.run(
        [*torchrun, "-m", *words, "hardware.ranks=2", "seed=1,2"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert refused.returncode != 0 and "config error: torchrun: starts one run" in refused.stderr


# --- sharded weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", [slow("apa"), "ppo"])
def test_sharded_weights_give_what_whole_ones_give(pair, two_ranks, tmp_path, cache, algo):
    alone, _ = pair(algo, "model.train.mode=all")
    overrides = (*SHORT, "model.train.mode=all", "hardware.ranks=2", "hardware.sharding=fsdp")
    run = with_inputs_of(alone, tiny(tmp_path, cache, algo, *overrides))
    said = two_ranks.do(run)
    assert [one["status"] for one in said] == ["finished", "finished"]
    assert {one["units"] for one in said} == {4 + 4 + 3}  # policy, reference, value network
    assert_close(run, alone)
    again = tiny(tmp_path / "again", cache, algo, *overrides)
    assert [said["status"] for said in two_ranks.do(again, "ask_to_stop", 1)] == ["interrupted", "interrupted"]
    assert [said["status"] for said in two_ranks.do(again)] == ["finished", "finished"]
    assert_close(again, alone)
    rows, wanted = ([without_time(row) for row in read_rows(run_folder(one))] for one in (again, run))
    assert rows == wanted
