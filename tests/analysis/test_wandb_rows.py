"""A sweep read back from W&B is what its run folders say: from W&B's files, and from a fake of its server."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml

from analysis.load import RunRecord, SweepFolderError, load_sweep
from analysis.summary import compare
from analysis.wandb_rows import load_wandb_offline, load_wandb_server, record_from_wandb
from analysis.wandb_run import WandbError
from rlhf.config.build import config_to_mapping
from rlhf.runs.folder import RunFolder
from rlhf.runs.mirror import WandbMirror
from rlhf.runs.state import read_rows
from tests.analysis.made_up import config, rows, write_run
from tests.config.composed import config as run_config


def numbers(seed: int, steps: range) -> list[dict[str, Any]]:
    """Rows with numbers that use every bit, small and large ones, whole ones and, in one metric, none."""
    draw = random.Random(seed)
    made = []
    for step in steps:
        row = {"step": 2 * step, "iteration": step, "samples": 64 * step, "seconds": draw.random() * 1e9}
        row |= {"train/kl": draw.gauss(0, 1) * 10.0 ** draw.randint(-300, 300), "train/eos_rate": 1.0}
        row |= {"train/policy_loss": float("nan") if step == 1 else 0.1 + 0.2}
        if step % 2 == 0:
            row |= {"eval/kl": draw.random() * step, "eval/reward": draw.gauss(step / 10, 1)}
        made.append(row)
    return made


def session(folder: Path, algo: str, seed: int, logged: Sequence[dict[str, Any]], status: str) -> None:
    """One start of a run, with the project's own tracker."""
    run = run_config(f"algo={algo}", f"seed={seed}", "tracking.wandb=offline", "sweep_name=mine")
    with RunFolder(folder) as run_folder:
        (folder / "config.yaml").write_text(yaml.safe_dump(config_to_mapping(run)))
        run_folder.mirror = WandbMirror(run, folder)
        for row in logged:
            run_folder.log(row)
        run_folder.save(0, {}, {})
        ended = {"status": status, "finished_at": time.time(), "wall_seconds": 1.5}
        summary = ended | run_folder.last_evaluation()
        run_folder.write_summary(summary)
        run_folder.close_mirror(summary)
    wandb.teardown()  # the next session is another process's in real life


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Runs of which the second was interrupted and queued again, the third killed after that, the last not on W&B."""
    sweep = tmp_path_factory.mktemp("offline") / "mine"
    session(sweep / "apa-s0-1", "apa", 0, numbers(0, range(9)), "finished")
    session(sweep / "apa-s1-2", "apa", 1, numbers(1, range(5)), "interrupted")
    session(sweep / "ppo-s0-3", "ppo", 0, numbers(2, range(4)), "interrupted")
    time.sleep(1.1)  # W&B names its folders by the second
    session(sweep / "apa-s1-2", "apa", 1, numbers(1, range(9))[5:], "finished")
    session(sweep / "ppo-s0-3", "ppo", 0, numbers(2, range(9))[4:], "unfinished")
    killed = max((sweep / "ppo-s0-3").glob("wandb/offline-run-*/*.wandb"))
    killed.write_bytes(killed.read_bytes()[: killed.stat().st_size * 2 // 3])
    (sweep / "ppo-s0-3/summary.json").unlink()
    write_run(sweep, "ppo-s1-4", config("ppo", 1), rows([0.0, 1.0], [0.0, 0.5]))
    (sweep / "curves").mkdir()
    silent = wandb.Settings(silent=True, console="off")
    wandb.init(mode="offline", dir=str(sweep / "curves"), job_type="sweep", id="mine-curves", settings=silent).finish()
    return sweep


@pytest.fixture(scope="module")
def read(sweep) -> list[RunRecord]:
    return load_wandb_offline(sweep)


def test_every_run_has_its_place_and_the_averaged_curves_are_no_run(read):
    assert [record.id for record in read] == ["apa-s0-1", "apa-s1-2", "ppo-s0-3", "ppo-s1-4"]
    assert read[3].status == "finished" and "tracking.wandb=off" in str(read[3].reason)


def test_wandbs_files_hold_the_same_numbers_to_the_last_bit(read, sweep):
    for ours, theirs in zip(read[:2], load_sweep(sweep)[:2], strict=True):
        for what in ("id", "folder", "algo", "seed", "sweep", "status", "label", "config", "reason", "notes"):
            assert getattr(ours, what) == getattr(theirs, what), what
        assert ours.metrics.columns.keys() == theirs.metrics.columns.keys()
        for name in theirs.metrics.columns:
            assert ours.column(name).tobytes() == theirs.column(name).tobytes(), name
        assert ours.summary.items() >= theirs.summary.items()
    assert compare(read[:2]).settings[0].headline == compare(load_sweep(sweep)[:2]).settings[0].headline


def test_sessions_of_one_run_are_joined(read, sweep):
    assert len(list((sweep / "apa-s1-2").glob("wandb/offline-run-*"))) == 2
    record = read[1]
    assert record.column("step").tolist() == [row["step"] for row in read_rows(sweep / "apa-s1-2")]
    assert record.status == "finished"  # and no more interrupted


def test_a_killed_session_gives_what_reached_the_disk_and_says_what_is_missing(read, sweep):
    record, whole = read[2], load_sweep(sweep)[2]
    held = len(record.metrics)
    assert 4 <= held < 9
    assert record.column("train/kl").tolist() == whole.column("train/kl").tolist()[:held]
    assert record.status == whole.status == "unfinished" and record.reason == whole.reason
    assert any(f"{held} of the 9 rows" in note for note in record.notes)


def test_folders_without_wandb_files_are_refused(tmp_path):
    with pytest.raises(SweepFolderError, match="no such folder"):
        load_wandb_offline(tmp_path / "nowhere")
    write_run(tmp_path, "awr-s0-4", config("awr", 0), rows([0.0, 1.0], [0.0, 0.5]))
    with pytest.raises(SweepFolderError, match=r"no run has W&B files"):
        load_wandb_offline(tmp_path)


class Summary:
    """As W&B's: keys and values, but no dict."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def keys(self) -> list[str]:
        return list(self._values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]


class Run:
    """A run on the server."""

    def __init__(self, name: str, seed: int, history: list[dict[str, Any]], job_type: str = "online") -> None:
        self.name, self.job_type = name, job_type
        self.config = config("apa", seed)
        self.summary = Summary({"status": "finished", "eval/kl": "Infinity", "_step": 4, "_wandb": {"runtime": 3}})
        self.history = history

    def scan_history(self) -> Iterator[dict[str, Any]]:
        yield from self.history


class Runs:
    """Pages of two, fetched when they are asked for, of a length that is known late."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs

    def __iter__(self) -> Iterator[Run]:
        for page in range(0, len(self._runs), 2):
            yield from self._runs[page : page + 2]


class Api:
    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self.asked: list[tuple] = []

    def runs(self, path: str, filters: dict[str, Any]) -> Runs:
        self.asked.append((path, filters))
        if path != "me/apa-rlhf":
            raise ValueError(f"Could not find project {path}\nmore")
        return Runs(self._runs)


def history(*rewards: Any) -> list[dict[str, Any]]:
    return [
        {"_step": 8 * step, "_timestamp": 1.5e9, "step": 8 * step, "iteration": step, "samples": 64 * step}
        | {"eval/kl": float(step), "eval/reward": reward, "train/kl": None}
        for step, reward in enumerate(rewards)
    ]


def test_the_servers_runs_are_read_page_by_page():
    api = Api([Run(f"apa-s{seed}", seed, history(0.25 * seed, 1.0)) for seed in range(5)])
    records = load_wandb_server("me/apa-rlhf", "made_up", api)
    assert api.asked == [("me/apa-rlhf", {"group": "made_up"})]
    assert [record.seed for record in records] == [0, 1, 2, 3, 4]
    assert records[3].id == "apa-s3" and records[3].algo == "apa" and records[3].reason is None
    assert records[3].column("eval/reward").tolist() == [0.75, 1.0]
    assert len(compare(records).settings[0].runs) == 5


def test_what_json_cannot_hold_is_no_number_and_what_a_row_lacks_is_no_metric():
    logged = [*history(0.0, "NaN", "-Infinity", float("inf"), 0.5), {"_step": 40, "step": 40, "eval/reward": None}]
    record = load_wandb_server("me/apa-rlhf", "made_up", Api([Run("apa-s0", 0, logged)]))[0]
    np.testing.assert_array_equal(record.column("eval/reward"), [0.0, np.nan, np.nan, np.nan, 0.5, np.nan])
    assert "train/kl" not in record.metrics.columns
    assert record.metrics.evaluated.tolist() == [True] * 5 + [False]
    assert record.summary == {"status": "finished", "eval/kl": None}


def test_only_the_last_of_a_name_counts_and_averaged_curves_do_not():
    older, newer = Run("apa-s0", 0, history(0.0, 0.1)), Run("apa-s0", 0, history(0.0, 0.2))
    others = [Run("made_up curves", 0, [], "sweep"), Run("made_up analysis", 0, [], "analysis")]
    (record,) = load_wandb_server("me/apa-rlhf", "made_up", Api([older, *others, newer]))
    assert record.column("eval/reward").tolist() == [0.0, 0.2] and "an earlier run" in record.notes[0]


def test_of_two_rows_with_one_step_the_first_counts_as_on_the_server():
    logged = [*history(0.0, 0.1), *history(0.0, 0.3, 0.4)[1:]]
    record = record_from_wandb(Path("apa-s0"), config("apa", 0), logged, {"status": "finished"})
    assert record.column("eval/reward").tolist() == [0.0, 0.1, 0.4]


def test_a_run_without_rows_says_so():
    record = record_from_wandb(Path("apa-s0"), config("apa", 0), [], {"status": "finished"})
    assert record.reason == "W&B has no rows of it"


def test_what_the_server_refuses_is_one_line(monkeypatch):
    with pytest.raises(WandbError, match=r"no runs of group 'other'"):
        load_wandb_server("me/apa-rlhf", "other", Api([]))
    with pytest.raises(WandbError, match=r"^W&B, me/other: Could not find project me/other more$"):
        load_wandb_server("me/other", "made_up", Api([]))
    monkeypatch.setattr("analysis.wandb_rows.logged_in", lambda: False)
    with pytest.raises(WandbError, match="wandb login"):
        load_wandb_server("me/apa-rlhf", "made_up")
