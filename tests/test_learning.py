"""Learning on a task with a known answer: three seeds of each algorithm on the embedded default, and over-optimisation.

sweeps/README.md has ten seeds, and what share of the gold gap they close.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.letters import BEST_GOLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ("apa", "ppo", "awr")
HEADLINE_BUDGET = 5.0


def evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/kl" in row]


def main(output: Path, *overrides: str) -> None:
    command = [sys.executable, "main.py", "-m", *overrides, f"output_dir={output}/runs", f"cache_dir={output}/cache"]
    subprocess.run([*command, "tracking=none", "checkpoint.save_final=none"], cwd=ROOT, check=True, timeout=1400)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[dict[str, Any]]]]:
    output = tmp_path_factory.mktemp("learning")
    main(output, "algo=apa,ppo,awr", "seed=0,1,2")
    folders = sorted((output / "runs" / "default").glob("*-s[012]-*"))
    found = {name: [evaluations(f) for f in folders if f.name.startswith(name)] for name in ALGORITHMS}
    assert {name: len(seeds) for name, seeds in found.items()} == dict.fromkeys(ALGORITHMS, 3)
    return found


def closed(rows: list[dict[str, Any]]) -> float:
    """Best share of the gold gap that was closed while the KL was within the headline budget."""
    start = rows[0]["eval/gold_reward"]
    within = [row["eval/gold_reward"] for row in rows if row["eval/kl"] <= HEADLINE_BUDGET]
    return (max(within) - start) / (BEST_GOLD - start)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_learned_reward_rises_on_every_seed(algo: str, runs: dict[str, list[list[dict[str, Any]]]]) -> None:
    """By at least 0.4 standard deviations of reference answers' scores; the noise of 120 prompts is below 0.1."""
    for rows in runs[algo]:
        within = [row["eval/reward"] for row in rows if row["eval/kl"] <= HEADLINE_BUDGET]
        assert max(within) - rows[0]["eval/reward"] >= 0.4


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_hidden_reward_rises_on_every_seed(algo: str, runs: dict[str, list[list[dict[str, Any]]]]) -> None:
    """The learned reward is worth following: at least 10% of the gap of the gold reward is closed."""
    assert min(closed(rows) for rows in runs[algo]) >= 0.1


def test_over_optimisation_is_visible(tmp_path: Path) -> None:
    """experiment=overoptimization: the learned reward ends at its highest while gold ends below where it began."""
    main(tmp_path, "experiment=overoptimization", "seed=0")
    (folder,) = (tmp_path / "runs" / "overoptimization").glob("awr-s0-*")
    rows = evaluations(folder)
    reward, gold = ([row[name] for row in rows] for name in ("eval/reward", "eval/gold_reward"))
    assert reward[-1] - reward[0] >= 0.5
    assert reward[-1] >= max(reward) - 0.2
    assert gold[-1] <= max(gold) - 0.5
