"""Learning on a task with a known answer: the six runs of README's main command, and over-optimisation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.compared import Comparison
from analysis.load import load_sweep
from analysis.optimum import ReferenceSamples
from analysis.summary import compare
from analysis.verdict import verdict
from rlhf.data.letters import BEST_GOLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ("apa", "ppo", "awr")
SEEDS = (0, 100)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/kl" in row]


def main(output: Path, cache: Path, *overrides: str) -> None:
    command = [sys.executable, "main.py", "-m", *overrides, f"output_dir={output}/runs", f"cache_dir={cache}"]
    subprocess.run([*command, "tracking=none", "checkpoint.save_final=none"], cwd=ROOT, check=True, timeout=1400)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, default_cache: Path) -> Path:
    """README's main command."""
    output = tmp_path_factory.mktemp("learning")
    main(output, default_cache, f"algo={','.join(ALGORITHMS)}", f"seed={','.join(map(str, SEEDS))}")
    return output / "runs" / "default"


@pytest.fixture(scope="module")
def comparison(sweep: Path) -> Comparison:
    found = compare(load_sweep(sweep))
    assert {setting.algo: len(setting.runs) for setting in found.settings} == dict.fromkeys(ALGORITHMS, len(SEEDS))
    return found


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_learned_and_hidden_reward_rise_on_every_seed(algo: str, sweep: Path) -> None:
    """The learned one by at least 0.4 standard deviations of reference answers' scores, of which the noise of 120
    prompts is below 0.1; the hidden one by at least a tenth of the gap to the best."""
    for folder in sweep.glob(f"{algo}-s*"):
        rows = evaluations(folder)
        reward, gold = ([row[f"eval/{name}"] for row in rows] for name in ("reward", "gold_reward"))
        assert max(reward) - reward[0] >= 0.4
        assert (max(gold) - gold[0]) / (BEST_GOLD - gold[0]) >= 0.1


def test_the_main_command_tells_the_best_algorithm_from_the_last(comparison: Comparison) -> None:
    """Two seeds tell one pair apart; ten tell two (README)."""
    assert any(pair.told_apart for pair in verdict(comparison).pairs)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_model_is_worth_following(seed: int, comparison: Comparison, sweep: Path) -> None:
    """At the KL of the comparison the seed's best run gains at least 40% of what gold's own optimum allows there, up to
    two standard errors of an evaluation."""
    (file,) = (sweep / "reference_samples").iterdir()
    with np.load(file) as scores:
        samples = ReferenceSamples(scores["gold_reward"])
    kl = comparison.settings[0].headline.kl_budget
    assert kl <= samples.trusted_kl
    best, error = 0.0, 0.0
    for run in (run for setting in comparison.settings for run in setting.runs if run.record.seed == seed):
        assert run.evaluations.gold_gains is not None
        for gains in run.evaluations.gold_gains[run.evaluations.kl <= kl]:  # (P,)
            if gains.mean() > best:
                best, error = gains.mean(), gains.std(ddof=1) / len(gains) ** 0.5
    assert best + 2 * error >= 0.4 * samples.optimum(np.array([kl])).gain[0]


def test_over_optimisation_is_visible(tmp_path: Path, default_cache: Path) -> None:
    """experiment=overoptimization: the learned reward ends at its highest while gold ends below where it began."""
    main(tmp_path, default_cache, "experiment=overoptimization", "seed=0")
    (folder,) = (tmp_path / "runs" / "overoptimization").glob("awr-s0-*")
    rows = evaluations(folder)
    reward, gold = ([row[name] for row in rows] for name in ("eval/reward", "eval/gold_reward"))
    assert reward[-1] - reward[0] >= 0.5
    assert reward[-1] >= max(reward) - 0.2
    assert gold[-1] <= max(gold) - 0.5
