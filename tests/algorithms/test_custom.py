"""algo=custom: a class outside the project learns as one inside does, and a fault in it ends a run in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.identity import run_folder
from rlhf.config.user_code import UserCodeError
from rlhf.run import execute
from tests.test_run import outcome, tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")

SAME = "from rlhf.algorithms.apa import APA\n\nclass Mine(APA):\n    pass\n"
SHORT = ("rollout.iterations=2", "reward=sentiment", "optimization.learning_rate=5e-4")


def custom(folder: Path, source: str) -> tuple[str, ...]:
    (folder / "mine.py").write_text(source)
    return (f"algo.loss={folder}/mine.py:Mine", "algo.lam=0.35", "algo.anchor=initial", *SHORT)


def test_the_same_loss_from_outside_gives_the_same_bits(tmp_path, cache):
    inside = tiny(tmp_path / "inside", cache, "apa", "algo.lam=0.35", *SHORT)
    outside = tiny(tmp_path / "outside", cache, "custom", *custom(tmp_path, SAME))
    for run in (inside, outside):
        assert execute(run)["status"] == "finished"
    assert outcome(inside) == outcome(outside)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "def loss(self, batch, logprobs, totals):\n        return logprobs.no_such_thing",
            ", line 5: AttributeError: ",
        ),
        ("def loss(self, batch, logprobs, totals):\n        return logprobs.sum()", "loss returned Tensor; it must"),
        ("def signal(self, rewards, values, mask):\n        return rewards", "signal returned Tensor; it must"),
        (
            "def signal(self, rewards, values, mask):\n        from rlhf.batches import Signal\n"
            "        return Signal(rewards[:, :1], rewards)",
            "signal returned advantages of shape",
        ),
        (
            "def loss(self, batch, logprobs, totals):\n        from rlhf.batches import LossOutput\n"
            "        return LossOutput(logprobs.detach().sum(), {})",
            "loss returned a loss without a gradient",
        ),
    ],
)
def test_a_fault_in_it_is_one_line(tmp_path, cache, method, message):
    source = SAME.replace("pass\n", f"{method}\n")
    run = tiny(tmp_path, cache, "custom", *custom(tmp_path, source))
    with pytest.raises(UserCodeError) as error:
        execute(run)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"algo.loss: {tmp_path}/mine.py")
    summary = json.loads((run_folder(run) / "summary.json").read_text())
    assert summary["status"] == "failed" and message in summary["error"]
