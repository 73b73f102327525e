"""The benchmarks are commands that people type; that each still runs, at sizes that say nothing, is a slow test."""

from __future__ import annotations

import importlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import alarms, coverage, evaluation_draws, gpu, measuring, scale

TINY = "--repeats 1 --threads 1 --responses 4 --prompt 4 --new 4"
TRL = "" if find_spec("trl") else "--no-trl"
COMMANDS = {
    "iteration": (f"{TINY} --minibatches 2 --profile {TRL}", "ours;our stages;sampling;update"),
    "sampling": ("--repeats 1 --threads 1 --batch 4 --new 4", "ours, fast;ours, plain;generate"),
    "updating": (f"{TINY} --minibatch 4", "all;last_k=2;lora"),
    "family_cost": (f"{TINY} --minibatch 4 --algos grpo a_star_po", "ppo;grpo;a_star_po"),
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
    "gpu": ("--rehearse --out {folder}/gpu", "== sampling, llama_7b;### sampling, llama_7b"),
    "scale": ("--check", "all, update;last_k=2, update"),
    "alarms": ("", " 20 evaluations;  8 evaluations"),
}
"""Options, and how lines of the output begin."""


@pytest.mark.slow
@pytest.mark.timeout(900)
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


def test_a_step_of_the_gpu_kit_that_fails_or_does_not_end_costs_its_own_figures_alone(
    monkeypatch, tmp_path: Path
) -> None:
    row = "from tests.benchmarks.measuring import Table; Table('', 's').row('quick', 1.5)"
    words = {
        "quick": row,
        "wrong": "raise SystemExit('no such device')",
        "slow": "import time; time.sleep(60)",
        "last": row,
    }
    limits = {"quick": 60, "wrong": 60, "slow": 1, "last": 60}
    monkeypatch.setattr(gpu, "STEPS", [gpu.Step(name, [], ["-c", words[name]], limits[name]) for name in words])
    with pytest.raises(SystemExit, match="2 of 4 steps did not pass: wrong; slow"):
        gpu.main(["--rehearse", "--out", str(tmp_path)])
    steps = {step["title"]: step for step in json.loads((tmp_path / "gpu.json").read_text())["steps"]}
    assert [step["outcome"] for step in steps.values()] == [
        "passed",
        "failed with exit code 1",
        "not done after 1 s",
        "passed",
    ]
    assert steps["last"]["rows"] == [{"row": "quick", "s": 1.5}]
    page = (tmp_path / "gpu.md").read_text()
    assert "| quick | 1.5 |" in page and "no such device" in page


def test_reckoned_memory_and_seconds_by_hand() -> None:
    """Two blocks of 10 parameters, a head of 5, all trained, 4 responses of 1 + 1 tokens on one GPU."""
    network = scale.Network(2, 10.0, 5.0, 3)
    unit = scale.GPU(1 / scale.COMPUTE_SHARE, 1 / scale.BANDWIDTH_SHARE, 1.0, 1.0)
    run = scale.Run("", network, network, "all", 4, 1, 1, 1, 2, 4, epochs=1, gpu=unit)
    # 8 tokens, 4 of which are of responses; sampling: 160 + 160 of the blocks and 40 of the head.
    assert run.flops() == {"sampling": 360, "scoring": 320, "measuring": 960 + 80, "update": 6 * (320 + 20)}
    # A token reads 2 x 25 bytes of weights, and 2 x 2 x 2 x 3 bytes of each of 6 cached tokens: 194 < 360 - 180.
    assert run.seconds()["sampling"] == pytest.approx(180 + max(50 + 24 * 6, 180))
    # Bytes: 2 x (25 held + 25 of the reward model), 16 x 50 trained; a cache of 8 tokens.
    assert run.memory() == pytest.approx(1.25 * (2 * 50 + 16 * 50 + 24 * 8))


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
