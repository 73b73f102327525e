"""Checkpoints: what comes back is what went in, and whatever goes wrong the last whole one stays readable."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import rlhf.runs.checkpoint
from rlhf.optimization import adamw
from rlhf.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_training,
    save_checkpoint,
    training_tensors,
)

ROOT = Path(__file__).resolve().parents[1]


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, {"x": torch.arange(500.0) + step}, {"step": step, "name": "é"})


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def loaded_step(folder: Path) -> int:
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    assert torch.equal(checkpoint.tensors["x"], torch.arange(500.0) + checkpoint.state["step"])
    return checkpoint.state["step"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_tensors_and_state_come_back_to_the_bit(tmp_path):
    tensors = {
        "float": torch.tensor([0.1, -0.0, float("inf"), float("nan"), 1e-45]),
        "double": torch.tensor(1 / 3, dtype=torch.float64),
        "bfloat16": torch.randn(3, 2).bfloat16(),
        "a view": torch.arange(12).reshape(3, 4).T,
        "random state": torch.get_rng_state(),
        "empty": torch.zeros(0, 3),
    }
    state = {"kl_coef": 0.1 + 0.2, "count": 2**60, "nested": {"list": [1, None, "x"]}}
    save_checkpoint(tmp_path, 3, tensors, state)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        again = checkpoint.tensors[name]
        assert again.dtype == tensor.dtype and again.shape == tensor.shape
        assert torch.equal(bits(again), bits(tensor))
    assert {key: checkpoint.state[key] for key in state} == state


def test_the_last_two_are_kept_in_numerical_order(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (8, 9, 10, 100, 20000):
        save(tmp_path, step)
    assert [int(name) for name in steps(tmp_path)] == [100, 20000]
    assert loaded_step(tmp_path) == 20000


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": lambda folder: flip_a_byte(folder / "tensors.safetensors"),
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "state cut off": lambda folder: (folder / "state.json").write_text('{"step": 2, "tens'),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "a flipped bit of the state": lambda folder: flip_a_byte(folder / "state.json"),
    "a state that is a list": lambda folder: (folder / "state.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, 1)
    DAMAGES[damage](save(tmp_path, 2))
    assert loaded_step(tmp_path) == 1
    save(tmp_path, 2)  # the run gets there again
    assert loaded_step(tmp_path) == 2


def test_all_damaged_is_one_clear_error(tmp_path):
    for step in (1, 2):
        flip_a_byte(save(tmp_path, step) / "tensors.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path)
    message = str(error.value)
    assert "\n" not in message and str(tmp_path) in message and "overwrite=true" in message
    assert "00000001" in message and "00000002" in message and "checksum" in message


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"\(No space left.*; free space"),
        (SafetensorError("I/O error: No space left on device"), r"\(No space left.*; free space"),
        (SafetensorError("I/O error: File too large (os error 27)"), "ulimit -f"),
        (SafetensorError("InvalidHeaderDeserialization"), r"\(InvalidHeaderDeserialization\); type"),
    ],
)
def test_a_full_disk_leaves_earlier_checkpoints_whole_and_nothing_half_written(tmp_path, monkeypatch, error, line):
    save(tmp_path, 1), save(tmp_path, 2)

    def full(tensors, path):
        Path(path).write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rlhf.runs.checkpoint, "save_file", full)
        with pytest.raises(CheckpointError, match=f"{tmp_path}.*00000003: cannot write it .*{line}"):
            save(tmp_path, 3)
    assert [int(name) for name in steps(tmp_path)] == [1, 2]
    assert loaded_step(tmp_path) == 2
    save(tmp_path, 3)
    assert loaded_step(tmp_path) == 3


KILLER = """
import os, signal, sys
from pathlib import Path
import torch
import rlhf.runs.checkpoint as c

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(tensors, path):
    Path(path).write_bytes(b"half of it")
    die()

def run(folder):
    def save(step):
        c.save_checkpoint(folder, step, {"x": torch.arange(500.0) + step}, {"step": step})
    save(1), save(2)
    if folder.name == "tensors":
        c.save_file = half
    elif folder.name == "state":
        c._sha256 = die  # tensors are written, the state is not
    elif folder.name == "rename":
        Path.replace = die
    elif folder.name == "clean-up":
        c.shutil.rmtree = lambda path, **_: die() if path.name == "00000001" else None
    save(3)

for folder in map(Path, sys.argv[1:]):
    if os.fork() == 0:
        run(folder)
    print(os.WTERMSIG(os.wait()[1]))
"""


def test_kill_9_in_the_middle_of_saving_leaves_a_whole_checkpoint(tmp_path):
    places = ("tensors", "state", "rename", "clean-up")
    words = [sys.executable, "-c", KILLER, *(str(tmp_path / place) for place in places)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * 4, done.stderr
    for place in places:
        folder = tmp_path / place
        assert loaded_step(folder) == (3 if place == "clean-up" else 2)
        save(folder, 3)  # over whatever was left lying about
        assert loaded_step(folder) == 3
        save(folder, 4)
        assert [int(name) for name in steps(folder)] == [3, 4]


def networks(seed: int) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    torch.manual_seed(seed)
    parameters = {"policy.weight": nn.Parameter(torch.randn(3, 2)), "value.head.weight": nn.Parameter(torch.randn(4))}
    groups = [([parameters["policy.weight"]], 0.1), ([parameters["value.head.weight"]], 0.2)]
    return parameters, adamw(groups, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.01)


def train(parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        for parameter in parameters.values():
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
        optimizer.step()


def test_a_damaged_newest_is_said_once_in_one_line(tmp_path, capsys):
    save(tmp_path, 1)
    flip_a_byte(save(tmp_path, 2) / "tensors.safetensors")
    loaded_step(tmp_path)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(tmp_path) in said and "checksum" in said
    assert "00000002" in said and "going on from 00000001" in said
    loaded_step(tmp_path)
    assert capsys.readouterr().out == ""


FORGED = {
    "a parameter missing": lambda tensors: tensors.pop("parameter.value.head.weight"),
    "a parameter not finite": lambda tensors: tensors["parameter.policy.weight"].fill_(float("inf")),
    "a moment missing": lambda tensors: tensors.pop("optimizer.1.exp_avg"),
    "all missing": lambda tensors: tensors.clear(),
    "one too many": lambda tensors: tensors.update({"optimizer.2.exp_avg": torch.zeros(4)}),
    "another shape": lambda tensors: tensors.update({"optimizer.1.exp_avg": torch.zeros(2, 2)}),
    "a moment not finite": lambda tensors: tensors["optimizer.0.exp_avg_sq"].fill_(float("nan")),
    "a negative square": lambda tensors: tensors["optimizer.0.exp_avg_sq"].fill_(-1.0),
}


@pytest.mark.parametrize("forged", FORGED)
def test_tensors_that_this_run_did_not_save_are_refused_in_one_line(forged):
    parameters, optimizer = networks(0)
    train(parameters, optimizer, range(2))
    tensors = {name: tensor.clone() for name, tensor in training_tensors(parameters, optimizer).items()}
    load_training(parameters, optimizer, tensors)
    FORGED[forged](tensors)
    with pytest.raises(CheckpointError, match="the checkpoint") as error:
        load_training(parameters, optimizer, tensors)
    assert "\n" not in str(error.value)


def test_an_optimizer_without_a_step_comes_back_as_one_without_a_step():
    """As where float16 overflowed at every step so far."""
    parameters, optimizer = networks(0)
    resumed, new_optimizer = networks(0)
    load_training(resumed, new_optimizer, training_tensors(parameters, optimizer))
    train(parameters, optimizer, range(3))
    train(resumed, new_optimizer, range(3))
    assert all(torch.equal(parameter, resumed[name]) for name, parameter in parameters.items())


@pytest.mark.parametrize(
    "take", [lambda state: state["gone"], lambda state: int(state["x"]), lambda state: state["x"].y]
)
def test_a_state_of_another_kind_is_one_line(tmp_path, take):
    checkpoint = Checkpoint({}, {"x": "text"})
    line = r"state\.json is not of this program .*overwrite=true"
    with pytest.raises(CheckpointError, match=line), checkpoint.reading() as state:
        take(state)
