"""The benchmarks are commands that people type; that each still runs, at sizes that say nothing, is a slow test."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import alarms, coverage, evaluation_draws, measuring

TINY = "--repeats 1 --threads 1 --responses 4 --prompt 4 --new 4"
TRL = "" if find_spec("trl") else "--no-trl"
COMMANDS = {
    "iteration": (f"{TINY} --minibatches 2 --profile {TRL}", "ours;our stages;sampling;update"),
    "sampling": ("--repeats 1 --threads 1 --batch 4 --new 4", "ours, fast;ours, plain;generate"),
    "updating": (f"{TINY} --minibatch 4", "all;last_k=2;lora"),
    "memory": (f"{TINY} --minibatch 4 --model tiny --device cpu", "tiny, apa;tiny, ppo"),
    "scaling": ("--repeats 1 --threads 1 --of responses ranks --points 2 --iterations 2", "responses;ranks"),
    "startup": ("--repeats 1 --threads 1 --overrides debug=one_step tracking=none", "--cfg job;first metrics row"),
    "products": ("--repeats 1 --threads 1 --rows 4 8 --inputs 32 --outputs 32 --weights 2", "4 rows;8 rows"),
    "sweep_overhead": ("--runs 2 --peer-runs 2 --slots 2", "ours;hydra basic"),
    "report_scale": ("3 6 --rows 20", "3 runs;6 runs;time grows"),
    "coverage": ("", "gold line;sensitivity;normal"),
    "evaluation_draws": (
        "{folder}/draws --draws 2 --seeds 2 --every 2 --run debug=one_step algo=apa seed=0,1 rollout.iterations=3 "
        "evaluation.reference_responses=4 tracking=none cache_dir={folder}/cache",
        "apa: E(;apa, 2 seeds: ;apa, every 2th",
    ),
    "alarms": ("", " 20 evaluations;  8 evaluations"),
}
"""Options, and how lines of the output begin."""


@pytest.mark.slow
@pytest.mark.usefixtures("torchs_switches")
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_prints_its_rows(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(coverage, "REPETITIONS", 2)
    monkeypatch.setattr(alarms, "RUNS", 30)
    monkeypatch.setattr(measuring, "ENOUGH_SECONDS", 1e-3)
    options, rows = COMMANDS[name]
    importlib.import_module(f"tests.benchmarks.{name}").main(options.format(folder=tmp_path).split())
    output = "\n" + capfd.readouterr().out
    for row in rows.split(";"):
        assert f"\n{row}" in output
    assert "failed" not in output


def test_what_intervals_of_draws_hold() -> None:
    """Four draws of three runs that agree but for a prompts' pattern: draws apart by much less than it, or more."""
    pattern, runs = np.array([1.0, -1.0] * 8), [(seed,) for seed in range(3)]
    for apart, expected in ((0.1, 1.0), (10.0, 0.0)):
        draws = apart * np.array([-1.0, 1.0, -1.0, 1.0])
        values = draws[:, None, None] + np.broadcast_to(pattern, (4, 3, 16))
        for size in (2, 3):
            share, width = evaluation_draws.held(values, runs, size)
            # Student's quantile at 15 degrees of freedom; standard deviation of the pattern over the root of 16.
            assert share == expected and width == pytest.approx(2.1314 * pattern.std(ddof=1) / 4.0, rel=1e-3)
