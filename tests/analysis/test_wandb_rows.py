"""A sweep read back from W&B is what its run folders say: from W&B's files, and from a fake of its server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.summary import compare
from analysis.wandb_run import WandbError, load_wandb_server, record_from_wandb
from tests.analysis.made_up import config


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
    monkeypatch.setattr("analysis.wandb_run.logged_in", lambda: False)
    with pytest.raises(WandbError, match="wandb login"):
        load_wandb_server("me/apa-rlhf", "made_up")
