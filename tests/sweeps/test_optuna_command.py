"""Searches from the command line: killed and typed again, interrupted, from a file of sweeps/, mistyped."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.build import ConfigError
from tests.sweeps.studies import (
    LR,
    ROOT,
    behave,
    command,
    load,
    search,
    spans,
    states,
    trials_csv,
    typed,
)

__all__ = ["search", "typed"]

ALGOS = ("default/algo=apa", "default/algo=ppo")
TUNED = ("algo=apa,ppo", "seed=0,1", LR)
SWEEP_FILES = [
    ROOT / "sweeps" / f"{name}.yaml" for name in ("family", "frontier", "lag", "tune")
]  # the figures: tests/test_figures.py


def wait_for_spans(folder: Path, what: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(spans(folder, what)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def known(folder: Path) -> dict[tuple[str, int], tuple[dict[str, Any], dict[str, str]]]:
    """What each trial that has runs searches, and those."""
    return {
        (name, trial.number): (trial.params, trial.user_attrs["runs"])
        for name in ALGOS
        for trial in load(folder, name).trials
        if "runs" in trial.user_attrs
    }


@pytest.mark.slow
def test_killed_and_typed_again_twice_no_trial_is_repeated_or_lost(typed, tmp_path):
    behave(tmp_path, seconds=0.1)
    before: dict[Any, Any] = {}
    for count in (2, 6):
        driver = command(tmp_path, *TUNED, "hydra.sweeper.n_trials=3")
        wait_for_spans(tmp_path, "finished", count)
        driver.kill()
        driver.communicate(timeout=30)
        now = known(tmp_path)
        assert {trial: now[trial] for trial in before} == before
        before = now
    assert 0 < len(before) <= 6
    code, printed = typed(*TUNED, "hydra.sweeper.n_trials=3")
    assert code == 0 and "taken up again" in printed and printed.splitlines()[-1].endswith("6 complete")
    after = known(tmp_path)
    assert sorted(after) == [(name, number) for name in ALGOS for number in range(3)]
    assert {trial: after[trial] for trial in before} == before
    for name in ALGOS:
        assert states(load(tmp_path, name)) == ["COMPLETE"] * 3
        assert len({str(params) for (study, _), (params, _) in after.items() if study == name}) == 3
    runs = sorted(run for _, own in after.values() for run in own.values())
    assert len(runs) == 12
    assert sorted(note["run"] for note in spans(tmp_path, "finished")) == runs  # each once
    assert {note["run"] for note in spans(tmp_path, "begin")} == set(runs)
    assert [row["state"] for row in trials_csv(tmp_path)] == ["COMPLETE"] * 6


def test_ctrl_c_leaves_trials_at_work_and_the_same_command_goes_on(search, tmp_path):
    behave(tmp_path, seconds=0.4)

    def interrupt() -> None:
        wait_for_spans(tmp_path, "begin", 4)
        time.sleep(0.3)  # the stand-in says that it begins just before it is ready for signals
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, printed = search(*TUNED, n_trials=3)
    thread.join()
    names = ", ".join(f"{name} trial 0" for name in ALGOS)
    assert code == 130
    assert printed.splitlines()[-1] == f"interrupted: {names}; the same command goes on where they stopped"
    assert [states(load(tmp_path, name)) for name in ALGOS] == [["RUNNING"], ["RUNNING"]]
    behave(tmp_path)
    before = known(tmp_path)
    code, printed = search(*TUNED, n_trials=3)
    assert code == 0 and "; there: 1 at work, 1 of them taken up again\n" in printed
    assert [states(load(tmp_path, name)) for name in ALGOS] == [["COMPLETE"] * 3] * 2
    after = known(tmp_path)
    assert {trial: after[trial] for trial in before} == before


@pytest.mark.parametrize("file", SWEEP_FILES, ids=lambda file: file.stem)
def test_every_sweep_file_says_its_command_and_runs(typed, tmp_path, file):
    first = file.read_text().splitlines()[0]
    assert re.fullmatch(rf"# .+: python main\.py -m \+sweep={file.stem} \(\d+ runs, .+\)\.", first)
    trials = ["hydra.sweeper.n_trials=1"] if "n_trials" in file.read_text() else []
    code, printed = typed(f"+sweep={file.stem}", "rollout.iterations=1", "seed=0", *trials)
    assert code == 0, printed
    algos = [note["run"].partition("-")[0] for note in spans(tmp_path, "finished")]
    assert len(set(algos)) > 1 and len({algos.count(name) for name in algos}) == 1  # as many runs of each
    assert (tmp_path / "runs" / file.stem).is_dir()


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (["+hydra.sweeper.params={algo.lamda:'1,2'}"], ["algo.lamda: no such option; did you mean algo.lam?"]),
        (
            ["algo=apa,ppo", "+hydra.sweeper.spaces={apa:{algo.lam:'interval(0,1)'},ppo:{algo.lamda:'interval(1,2)'}}"],
            ["algo=apa: algo.lam: 0.0 is not above 0", "algo=ppo: algo.lamda: no such option"],
        ),
        (["hydra.sweeper.n_trials=3"], ["hydra.sweeper.n_trials: there is no search space;"]),
        ([LR, "hydra.sweeper.n_trials=many"], ["hydra.sweeper.n_trials: 'many' is not an integer"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_launched(typed, tmp_path, arguments, problems):
    with pytest.raises(ConfigError) as error:
        typed(*arguments)
    assert len(error.value.problems) == len(problems)
    for told, start in zip(error.value.problems, problems, strict=True):
        assert told.startswith(start)
    assert list(tmp_path.iterdir()) == []
