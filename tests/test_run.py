"""Whole runs through `rlhf.run.execute`, tiny: the same twice, and the same however often they were stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlhf.stages.loop as loop
import rlhf.stages.online as online
from rlhf.config import RunConfig
from rlhf.config.build import build_config, config_to_mapping
from rlhf.config.identity import input_runs, run_folder
from rlhf.errors import FileError
from rlhf.optimization import NotFinite
from rlhf.run import execute
from rlhf.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from rlhf.runs.folder import RunFolder
from rlhf.runs.lock import LockError
from rlhf.runs.state import EVALUATIONS, SAMPLES, read_rows
from tests.config.composed import config

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ("apa", "ppo", "awr")
TINY = """
tracking=none hardware.threads=1 hardware.input_threads=1 reward.missing_eos_score=null
model.width=32 model.num_layers=2 model.train.last_k=1 dataset.max_new_tokens=8
dataset.num_sft=32 dataset.num_pairs=32 dataset.num_test_pairs=8 dataset.num_eval_prompts=8 dataset.num_prompts=24
sft.steps=3 sft.warmup_steps=0 sft.batch_size=8 sft.micro_batch_size=8 sft.eval_every=3
reward_model.steps=3 reward_model.warmup_steps=0 reward_model.batch_size=8 reward_model.micro_batch_size=8
reward_model.eval_every=3
rollout.iterations=4 rollout.num_responses=8 rollout.batch_size=8
optimization.minibatch_size=4 optimization.micro_batch_size=2 optimization.epochs=2 optimization.schedule=linear
evaluation.eval_every=2 evaluation.samples=2 evaluation.reference_responses=0 checkpoint.checkpoint_every=2
"""
STEPS_AN_ITERATION = 2 * 8 // 4

pytestmark = pytest.mark.usefixtures("torchs_switches")


def tiny(output: Path, cache: Path, algo: str = "apa", *overrides: str) -> RunConfig:
    folders = (f"output_dir={output}", f"cache_dir={cache}")
    return config(f"algo={algo}", *TINY.split(), *folders, *overrides)


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds" and not key.startswith("perf/")}


def outcome(run: RunConfig) -> dict[str, Any]:
    """What must not depend on interruptions: rows, samples, metrics in the summary."""
    folder = run_folder(run)
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "status": summary["status"],
        "metrics": {key: value for key, value in summary.items() if "/" in key},
        "rows": [without_time(row) for row in read_rows(folder)],
        **{name: (folder / name).read_text() for name in (SAMPLES, EVALUATIONS) if (folder / name).exists()},
    }


def weights(run: RunConfig) -> dict[str, torch.Tensor]:
    """Final weights and heads, and the last checkpoint: policy, value network and the optimizer's moments."""
    folder = run_folder(run)
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    files = list(folder.glob("final/**/*.safetensors"))
    assert files
    final = {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}
    return {**checkpoint.tensors, **final}


def assert_same(run: RunConfig, expected: RunConfig) -> None:
    assert outcome(run) == outcome(expected)
    ours, theirs = weights(run), weights(expected)
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# --- one run -------------------------------------------------------------------------------------------------------


EVALUATION = {"eval/reward", "eval/reward_std", "eval/reward_even", "eval/reward_odd", "eval/kl", "eval/entropy"}
EVALUATION |= {"eval/response_length", "eval/gold_reward"}
TRAINING = {"reward", "kl", "kl_coef", "policy_loss", "value_loss", "entropy", "response_length", "eos_rate"}
TRAINING |= {"explained_variance", "grad_norm"}
OWN = {"apa": {"infeasible_target_fraction"}, "ppo": {"clip_fraction"}, "awr": set()}
PAGE = (ROOT / "docs" / "metrics.md").read_text()


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_logs_what_the_architecture_says_and_leaves_a_trained_policy(never_stopped, algo):
    run = never_stopped(algo)
    folder = run_folder(run)
    rows = read_rows(folder)
    assert [(row["iteration"], row["step"], row["samples"]) for row in rows] == [
        (i, STEPS_AN_ITERATION * i, 8 * i) for i in range(5)
    ]
    logged = [name for one in (run, *input_runs(run)) for row in read_rows(run_folder(one)) for name in row]
    assert {name for name in logged if f"`{name}`" not in PAGE} == set()
    for row in rows:
        assert (set(row) >= EVALUATION) == (row["iteration"] % 2 == 0)
        if row["iteration"]:
            assert set(row) >= {f"train/{name}" for name in TRAINING | OWN[algo]}
        assert all(value is not None for value in row.values())
    assert rows[0]["eval/kl"] == 0.0 and rows[-1]["eval/kl"] > 1e-4
    assert rows[1]["train/kl"] == 0.0  # sampled before the first update, and measured as the reference is
    assert rows[1]["train/kl_coef"] == (run.algo.kl.init_coef if algo == "ppo" else 0.0)
    mean = (rows[-1]["eval/reward_even"] + rows[-1]["eval/reward_odd"]) / 2
    assert rows[-1]["eval/reward"] == pytest.approx(mean)
    summary = json.loads((folder / "summary.json").read_text())
    assert {key: summary[key] for key in EVALUATION} == {key: rows[-1][key] for key in EVALUATION}
    assert build_config(json.loads(json.dumps(config_to_mapping(run)))) == run
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in samples] == [0, 0, 2, 2, 4, 4]
    final = AutoModelForCausalLM.from_pretrained(folder / "final").state_dict()
    before = AutoModelForCausalLM.from_pretrained(run_folder(input_runs(run)[0]) / "final").state_dict()
    changed = {name for name in before if not torch.equal(before[name], final[name])}
    assert changed and all(".layers.1." in name or "final_layer_norm" in name for name in changed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_same_seed_twice_is_the_same_run_to_the_bit(never_stopped, tmp_path, cache, algo):
    again = tiny(tmp_path, cache, algo)
    assert execute(again)["status"] == "finished"
    assert_same(again, never_stopped(algo))


def test_another_seed_is_another_run_from_the_same_inputs(never_stopped, tmp_path, cache):
    other = tiny(tmp_path, cache, "apa", "seed=100")
    execute(other)
    ours, theirs = read_rows(run_folder(other)), read_rows(run_folder(never_stopped("apa")))
    first = [{key: row[key] for key in EVALUATION} for row in (ours[0], theirs[0])]
    assert first[0] == first[1]  # the initial policy, on the same prompts with the same draws
    assert ours[1]["train/reward"] != theirs[1]["train/reward"]


def test_the_algorithms_start_from_one_policy_and_the_same_rollouts(never_stopped):
    rows = [read_rows(run_folder(never_stopped(algo))) for algo in ALGORITHMS]
    for key in ("train/reward", "train/entropy", "train/response_length"):
        assert len({row[1][key] for row in rows}) == 1
    assert len({row[2]["train/reward"] for row in rows}) > 1


def test_inputs_are_made_once(never_stopped, tmp_path, cache):
    never_stopped("apa")
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}
    execute(tiny(tmp_path, cache, "awr", "seed=7", "rollout.iterations=1"))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"} == set(stamps)
    inputs = input_runs(never_stopped("apa"))
    assert [needed.stage.name for needed in inputs] == ["sft", "reward_model"]
    summaries = [json.loads((run_folder(needed) / "summary.json").read_text()) for needed in inputs]
    assert all(s["status"] == "finished" and "eval/loss" in s for s in summaries)
    noted = json.loads((run_folder(never_stopped("apa")) / "summary.json").read_text())["inputs"]
    assert noted["sft"] == {"eval/loss": summaries[0]["eval/loss"]}
    assert noted["reward_model"]["eval/accuracy"] == summaries[1]["eval/accuracy"]


def test_a_finished_run_is_skipped(never_stopped):
    run = never_stopped("ppo")
    files = {path: path.stat().st_mtime_ns for path in run_folder(run).rglob("*")}
    summary = execute(run)
    assert summary == json.loads((run_folder(run) / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in run_folder(run).rglob("*")} == files


def test_overwrite_starts_afresh(tmp_path, cache):
    run = tiny(tmp_path, cache, "apa", "rollout.iterations=1")
    execute(run)
    folder, before = run_folder(run), outcome(run)
    (folder / "metrics.jsonl").write_text("something else\n")
    (folder / "left over").mkdir()
    again = tiny(tmp_path, cache, "apa", "rollout.iterations=1", "overwrite=true")
    assert run_folder(again) == folder
    assert execute(again)["status"] == "finished"
    assert not (folder / "left over").exists()
    assert json.loads((folder / "overwrites.json").read_text()) == {"count": 1}
    assert outcome(run) == before


# --- stopped and gone on -------------------------------------------------------------------------------------------


def signal_at(monkeypatch, iteration: int, number: int = signal.SIGTERM) -> None:
    """This process gets a signal in the middle of an iteration."""
    original = loop.one_iteration

    def one_iteration(config, setup, responses, progress, now):
        if now == iteration:
            os.kill(os.getpid(), number)
        return original(config, setup, responses, progress, now)

    monkeypatch.setattr(loop, "one_iteration", one_iteration)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_iteration_end_and_checkpoints(never_stopped, monkeypatch, tmp_path, cache, number):
    run = tiny(tmp_path, cache, "ppo")
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)]
    with monkeypatch.context() as patch:
        signal_at(patch, 3, number)  # no checkpoint is due there
        summary = execute(run)
    assert summary["status"] == "interrupted" and signal.Signals(number).name in summary["error"]
    assert json.loads((run_folder(run) / "summary.json").read_text())["status"] == "interrupted"
    assert [row["iteration"] for row in read_rows(run_folder(run))] == [0, 1, 2, 3]
    checkpoint = load_checkpoint(run_folder(run))
    assert checkpoint is not None and checkpoint.state["iteration"] == 3
    assert not (run_folder(run) / "lock.json").exists()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)] == handlers
    assert execute(run)["status"] == "finished"
    assert_same(run, never_stopped("ppo"))


@pytest.mark.parametrize(("mode", "threads"), [("all", 1), ("lora", 1), ("all", 2), ("last_k", 2)])
def test_other_training_modes_go_on_as_if_never_stopped(never_stopped, monkeypatch, tmp_path, cache, mode, threads):
    own = (f"model.train.mode={mode}", f"hardware.threads={threads}")  # networks and halves of texts are apart on two
    options = (*own, "rollout.iterations=2", "value.head_init_std=0.1")
    run = tiny(tmp_path, cache, "ppo", *options)
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        assert execute(run)["status"] == "interrupted"
    assert execute(run)["status"] == "finished"
    assert_same(run, never_stopped("ppo", *options))


def test_a_signal_in_the_last_iteration_still_finishes(never_stopped, monkeypatch, tmp_path, cache):
    run = tiny(tmp_path, cache, "ppo")
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        assert execute(run)["status"] == "finished"
    assert_same(run, never_stopped("ppo"))


KILLER = """
import os, signal, sys
import yaml
import rlhf.run, rlhf.runs.checkpoint, rlhf.runs.folder, rlhf.stages.loop, rlhf.stages.supervised, rlhf.update
from rlhf.config.build import build_config

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(number, original):
    left = [number]
    def call(*arguments, **options):
        left[0] -= 1
        return die() if left[0] == 0 else original(*arguments, **options)
    return call

def patch(place):
    update, loop, checkpoint = rlhf.update, rlhf.stages.loop, rlhf.runs.checkpoint
    if place == "first iteration":
        update.clip_and_step = at_call(2, update.clip_and_step)
    elif place == "third iteration":
        update.clip_and_step = at_call(2 * 4 + 3, update.clip_and_step)
    elif place == "before the second checkpoint":  # two iterations and an evaluation are logged beyond the first
        rlhf.runs.folder.save_checkpoint = at_call(2, rlhf.runs.folder.save_checkpoint)
    elif place == "in the second checkpoint":
        checkpoint._sha256 = at_call(2, checkpoint._sha256)
    elif place == "final weights":
        loop.save_policy = die
    elif place == "sft":
        rlhf.stages.supervised.clip_and_step = at_call(3, rlhf.stages.supervised.clip_and_step)

# This process only imports: a fork after a forward pass would hang.
for line in open(sys.argv[1]):
    place, path = line.rstrip("\\n").split("\\t")
    if os.fork() == 0:
        patch(place)
        rlhf.run.execute(build_config(yaml.safe_load(open(path))))
        os._exit(0)
    _, status = os.wait()
    print(place, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "not killed", flush=True)
"""
PLACES = {
    "first iteration": "awr",
    "third iteration": "ppo",
    "before the second checkpoint": "apa",
    "in the second checkpoint": "ppo",
    "final weights": "apa",
    "sft": "apa",
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory, cache, never_stopped) -> dict[str, RunConfig]:
    """Runs that kill -9 ended, one at each place. SFT's has a cache of its own."""
    never_stopped("apa")  # makes the inputs
    runs, lines = {}, []
    for number, (place, algo) in enumerate(PLACES.items()):
        folder = tmp_path_factory.mktemp(f"killed {number}")
        runs[place] = tiny(folder / "runs", folder / "cache" if place == "sft" else cache, algo)
        (folder / "run.yaml").write_text(json.dumps(config_to_mapping(runs[place])))  # JSON is YAML
        lines.append(f"{place}\t{folder / 'run.yaml'}\n")
    todo = folder / "todo"
    todo.write_text("".join(lines))
    words = [sys.executable, "-c", KILLER, str(todo)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    told = [line for line in done.stdout.splitlines() if not line.startswith("data: ")]
    assert told == [f"{place} 9" for place in PLACES], done.stderr
    return runs


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_at_any_place_ends_as_if_never_killed(killed, never_stopped, place):
    run = killed[place]
    holding = input_runs(run)[0] if place == "sft" else run
    assert (run_folder(holding) / "lock.json").exists()  # nobody cleaned up
    assert not (run_folder(holding) / "summary.json").exists()
    assert execute(run)["status"] == "finished"
    assert_same(run, never_stopped(PLACES[place]))
    if place == "sft":
        for ours, theirs in zip(input_runs(run), input_runs(never_stopped("apa")), strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize(("stage", "saving"), [("sft", "save_trained"), ("reward_model", "write_folder")])
def test_a_stage_stopped_after_its_last_step_ends_as_if_never_stopped(
    never_stopped, monkeypatch, tmp_path, cache, stage, saving
):
    expected = never_stopped("apa", f"stage={stage}")
    run = tiny(tmp_path, cache, "apa", f"stage={stage}")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "final")

    with monkeypatch.context() as patch:
        patch.setattr(f"rlhf.stages.{stage}.{saving}", full)
        with pytest.raises(FileError):
            execute(run)
    assert execute(run)["status"] == "finished"
    assert_same(run, expected)
    assert outcome(run)["metrics"]


def test_seconds_are_those_of_all_sessions_however_a_session_ends(monkeypatch, tmp_path, cache):
    run = tiny(tmp_path, cache, "apa")

    def stopped_at(iteration: int) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            signal_at(patch, iteration)
            return execute(run)

    assert 0 < stopped_at(1)["wall_seconds"] < 1000
    checkpoint = load_checkpoint(run_folder(run))
    assert checkpoint is not None
    state = {key: value for key, value in checkpoint.state.items() if not key.endswith("_sha256")}
    save_checkpoint(run_folder(run), state["step"], checkpoint.tensors, {**state, "seconds": 1000.0})
    assert 1000 < stopped_at(2)["wall_seconds"] < 1100
    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_iteration", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(run)
    assert 1000 < json.loads((run_folder(run) / "summary.json").read_text())["wall_seconds"] < 1100
    assert 1000 < execute(run)["wall_seconds"] < 1100


# --- what goes wrong -----------------------------------------------------------------------------------------------


def damage(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "tensors.safetensors").read_bytes())
    content[-3] ^= 1
    (checkpoint / "tensors.safetensors").write_bytes(content)


def test_a_damaged_checkpoint_falls_back_and_two_are_an_error(never_stopped, monkeypatch, tmp_path, cache):
    run = tiny(tmp_path, cache, "ppo")
    folder = run_folder(run)
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        assert execute(run)["status"] == "interrupted"
    saved = sorted((folder / "checkpoints").iterdir())
    assert [int(path.name) for path in saved] == [2 * STEPS_AN_ITERATION, 3 * STEPS_AN_ITERATION]
    untouched = [path.read_bytes() for path in (s / "tensors.safetensors" for s in saved)]
    for path in saved:
        damage(path)
    with pytest.raises(CheckpointError, match="overwrite=true"):
        execute(run)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["error"].startswith("CheckpointError: no readable checkpoint")
    assert len(read_rows(folder)) == 4  # nothing was cut back
    (saved[0] / "tensors.safetensors").write_bytes(untouched[0])
    assert execute(run)["status"] == "finished"
    assert_same(run, never_stopped("ppo"))


def test_a_failed_run_says_why_and_can_be_typed_again(never_stopped, monkeypatch, tmp_path, cache):
    run = tiny(tmp_path, cache, "apa")
    score = online.checked_scores

    with monkeypatch.context() as patch:
        patch.setattr(online, "checked_scores", lambda scores, *rest: score(scores * float("nan"), *rest))
        with pytest.raises(NotFinite, match="the reward gave"):
            execute(run)
    summary = json.loads((run_folder(run) / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["error"].startswith("NotFinite: the reward gave")
    assert summary["run_id"] == run_folder(run).name and summary["versions"]["torch"] == torch.__version__
    assert not (run_folder(run) / "lock.json").exists()
    assert execute(run)["status"] == "finished"
    assert_same(run, never_stopped("apa"))


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_its_checkpoint(never_stopped, monkeypatch, tmp_path, cache):
    run = tiny(tmp_path, cache, "apa")
    log = RunFolder.log

    def full(self, row):
        if row["iteration"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "metrics.jsonl"))
        log(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", full)
        with pytest.raises(FileError, match="No space left on device") as error:
            execute(run)
    assert "\n" not in str(error.value)
    assert json.loads((run_folder(run) / "summary.json").read_text())["status"] == "failed"
    assert execute(run)["status"] == "finished"
    assert_same(run, never_stopped("apa"))


def test_a_run_that_was_taken_over_stops_without_a_write(monkeypatch, tmp_path, cache, never_stopped):
    never_stopped("apa")
    run = tiny(tmp_path, cache, "apa")
    folder, original = run_folder(run), loop.one_iteration

    def one_iteration(*arguments):
        holder = json.loads((folder / "lock.json").read_text())
        (folder / "lock.json").write_text(json.dumps({**holder, "token": "theirs"}))
        return original(*arguments)

    monkeypatch.setattr(loop, "one_iteration", one_iteration)
    with pytest.raises(LockError, match="taken this run over"):
        execute(run)
    assert [row["iteration"] for row in read_rows(folder)] == [0]
    assert not (folder / "summary.json").exists()
    assert json.loads((folder / "lock.json").read_text())["token"] == "theirs"
