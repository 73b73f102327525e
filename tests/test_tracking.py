"""metrics.jsonl: complete rows, valid JSON, cut back on resume; W&B gets every row once, whatever was interrupted."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb

from rlhf.config.build import ConfigError
from rlhf.config.packages import check_inputs
from rlhf.runs.folder import RunFolder
from rlhf.runs.lock import LockError
from rlhf.runs.mirror import WandbMirror, _logged_in
from rlhf.runs.state import EVALUATIONS, METRICS, SAMPLES, read_rows
from rlhf.runs.tensorboard import TensorboardMirror
from tests.config.composed import config


class Copy:
    """A mirror that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.summary: Mapping[str, Any] | None = None

    def log(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary


def test_rows_are_on_disk_at_once_and_come_back(tmp_path):
    with RunFolder(tmp_path) as folder:
        for step in range(3):
            folder.log({"step": step, "train/reward": step / 3})
            lines = (tmp_path / METRICS).read_text().splitlines()
            assert json.loads(lines[-1]) == {"step": step, "train/reward": step / 3}
        assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2]


def strict(text: str) -> Any:
    """JSON as the standard has it: Python's reader would take NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_null(tmp_path, value):
    with RunFolder(tmp_path) as folder:
        folder.log({"step": 1, "train/kl": value, "train/reward": 0.5})
        folder.log_samples([{"response": "é\n\u2028", "reward": value}])
    assert strict((tmp_path / METRICS).read_text()) == {"step": 1, "train/kl": None, "train/reward": 0.5}
    assert strict((tmp_path / SAMPLES).read_text()) == {"response": "é\n\u2028", "reward": None}


def test_files_are_cut_back_to_the_checkpoint(tmp_path):
    with RunFolder(tmp_path) as folder:
        assert folder.log_lengths() == {METRICS: 0, SAMPLES: 0, EVALUATIONS: 0}
        folder.log({"step": 1, "text": "é"})
        folder.log_samples([{"response": "ü"}])
        lengths, before = folder.log_lengths(), (tmp_path / METRICS).read_bytes()
        assert lengths[METRICS] == len(before)
        folder.log({"step": 2})
        folder.log_samples([{"response": "after"}])
        with (tmp_path / METRICS).open("a") as file:
            file.write('{"step": 3, "train/rew')  # killed in the middle of a row
        folder.cut_back(lengths)
        assert (tmp_path / METRICS).read_bytes() == before
        assert (tmp_path / SAMPLES).read_text() == '{"response": "ü"}\n'
        folder.log({"step": 2})
        assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]
        folder.cut_back({METRICS: 0, SAMPLES: 0})
        assert read_rows(tmp_path) == []


def test_a_file_shorter_than_its_checkpoint_is_not_filled_with_zeros(tmp_path):
    """After a lost node the log may have less than the checkpoint, which was flushed: an error, not a damaged file."""
    with RunFolder(tmp_path) as folder:
        folder.log({"step": 1})
        lengths = folder.log_lengths()
        (tmp_path / METRICS).write_text('{"st')
        with pytest.raises(RuntimeError, match="overwrite=true"):
            folder.cut_back(lengths)
        assert b"\0" not in (tmp_path / METRICS).read_bytes()


def test_nothing_is_written_once_the_run_was_taken_over(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.log({"step": 1})
        (tmp_path / "lock.json").write_text(json.dumps({"token": "theirs"}))
        for write in (
            lambda: folder.log({"step": 2}),
            lambda: folder.log_samples([{"response": ""}]),
            lambda: folder.cut_back({METRICS: 0}),
        ):
            with pytest.raises(LockError):
                write()
        assert [row["step"] for row in read_rows(tmp_path)] == [1]


def test_the_mirror_gets_rows_when_a_checkpoint_covers_them(tmp_path):
    with RunFolder(tmp_path) as folder:
        copy: Any = Copy()
        folder.mirrors.append(copy)
        folder.log({"step": 1})
        assert copy.rows == []
        folder.save(1, {}, {})
        folder.log({"step": 2})
        folder.close_mirrors({"status": "interrupted"})
        assert [row["step"] for row in copy.rows] == [1] and copy.summary == {"status": "interrupted"}
        folder.close_mirrors({"status": "finished"})
        assert [row["step"] for row in copy.rows] == [1, 2] and copy.summary == {"status": "finished"}


def session(path: Path, cut: int, steps: list[int], *, killed: bool = False) -> int:
    """What a run does with its folder; every second row is covered by a checkpoint. Returns the length of the last."""
    run = config("tracking.wandb=offline", "sweep_name=mine")
    covered = cut
    with RunFolder(path) as folder:
        folder.mirrors.append(WandbMirror(run, path))
        folder.cut_back({METRICS: cut})
        for step in steps:
            folder.log({"step": step, "samples": 8 * step, "train/reward": step / 2, "train/kl": math.nan})
            if step % 2 == 0:
                folder.save(step, {}, {})
                covered = folder.log_lengths()[METRICS]
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        folder.close_mirrors({"status": "finished", "eval/reward": 1.5, "versions": {}})
    return covered


def killed_session(folder: Path, cut: int, steps: list[int]) -> None:
    program = f"""
from pathlib import Path
from tests.test_tracking import session
session(Path({str(folder)!r}), {cut}, {steps}, killed=True)
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "API key" not in done.stdout + done.stderr  # no question asked


def sent_steps(folder: Path) -> list[int]:
    """The step of every history row in the folder's offline W&B files, as W&B's own reader gives them."""
    reader, steps = Path(sys.executable).with_name("wandb"), []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        words = [str(reader), "leet", "inspect", "--json", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        for record in map(json.loads, done.stdout.splitlines()):
            if record["type"] == "history":
                row = record["history"]["item"]
                assert row["samples"] == 8 * row["step"] and row["train/reward"] == row["step"] / 2
                assert record["history"]["step"]["num"] == row["step"] and "train/kl" not in row
                steps.append(row["step"])
    return steps


@pytest.mark.slow
def test_an_offline_wandb_run_has_no_row_twice_whatever_was_interrupted(tmp_path):
    length = session(tmp_path, 0, [1, 2, 3, 4])
    killed_session(tmp_path, length, [5, 6, 7])  # 5 and 6 are covered; W&B may or may not have written them
    length = len("".join((tmp_path / METRICS).read_text().splitlines(keepends=True)[:6]))
    wandb.teardown()  # the next session is another process's in real life
    session(tmp_path, length, [7, 8, 9])
    steps = sent_steps(tmp_path)
    assert [step for step in steps if step not in (5, 6)] == [1, 2, 3, 4, 7, 8, 9]
    assert len(set(steps)) == len(steps)
    ids = {path.stem.removeprefix("run-") for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert ids == {f"mine-{tmp_path.name}"}
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, 10))


KEY = "0123456789" * 4
"""As long as W&B's keys are; a shorter one in netrc is an error."""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def netrc(home: Path, key: str) -> None:
    write(home / ".netrc", f"machine api.wandb.ai\n  login user\n  password {key}\n")


CREDENTIALS: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "the environment": lambda patch, home: patch.setenv("WANDB_API_KEY", KEY),
    "an identity token": lambda patch, home: patch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(home / "token")),
    "netrc": lambda patch, home: netrc(home, KEY),
    "a settings file": lambda patch, home: write(home / "config" / "settings", f"[default]\napi_key = {KEY}\n"),
}


@pytest.fixture
def logged_out(tmp_path, monkeypatch):
    """A home without credentials; W&B reads its settings anew, before and after."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


@pytest.mark.parametrize("where", CREDENTIALS)
def test_credentials_are_found_wherever_wandb_keeps_them_without_a_warning(where, logged_out, monkeypatch, capfd):
    CREDENTIALS[where](monkeypatch, logged_out)
    before = sorted(logged_out.rglob("*"))
    assert _logged_in()
    said = "".join(capfd.readouterr())  # W&B names a settings file that it reads
    assert "WARNING" not in said and "API key" not in said
    assert sorted(logged_out.rglob("*")) == before


def test_without_credentials_or_with_a_broken_key_a_run_is_offline(logged_out, capfd, caplog):
    assert not _logged_in()
    assert capfd.readouterr() == ("", "")
    netrc(logged_out, "short")
    assert not _logged_in()
    assert "logged offline" in caplog.messages[-1]


def points(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """{metric: (step, value, seconds)} of the folder's event files, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float, float]]] = {}
    for file in (folder / "tensorboard").iterdir():
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0], event.wall_time))
    return found


def test_tensorboard_has_each_row_once_and_no_row_that_was_cut_back(tmp_path):
    run = config("tracking=tensorboard")

    def session(cut: int, steps: list[int], status: str) -> int:
        with RunFolder(tmp_path) as folder:
            folder.mirrors.append(TensorboardMirror(run, tmp_path))
            folder.cut_back({METRICS: cut})
            for step in steps:
                number = -step if status == "killed" and step == 3 else step / 2
                folder.log({"step": step, "seconds": 2.0 * step, "train/reward": number, "train/kl": math.nan})
                if step % 2 == 0:
                    folder.save(step, {}, {})
                    cut = folder.log_lengths()[METRICS]
            if status != "killed":
                folder.close_mirrors({"status": status})
        return cut

    cut = session(0, [1, 2, 3], "killed")  # row 3 is made again, with another value
    cut = session(cut, [3, 4, 5], "interrupted")
    session(cut, [5], "finished")
    (name, rows), *others = points(tmp_path).items()
    assert name == "train/reward" and not others
    assert [(step, value) for step, value, _ in rows] == [(step, step / 2) for step in range(1, 6)]
    assert [after - before for (*_, before), (*_, after) in itertools.pairwise(rows)] == pytest.approx([2.0] * 4)


def test_tensorboard_that_is_not_installed_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "tensorboard" else object())
    with pytest.raises(ConfigError, match=r"tracking=tensorboard .*\[tensorboard\]"):
        check_inputs([config("tracking=tensorboard", f"output_dir={tmp_path}")])
