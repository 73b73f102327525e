"""stage=evaluate: a finished policy measured anew has the numbers of its own run's last row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.algorithms.ilql_heads import HEADS
from rlhf.config import RunConfig
from rlhf.config.identity import run_folder, run_id
from rlhf.models.loading import ModelError
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests.config.composed import config
from tests.test_run import tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")


def evaluated(output: Path, cache: Path, *settings: str) -> tuple[RunConfig, list[dict[str, Any]]]:
    run = tiny(output, cache, *settings, "stage=evaluate")
    assert execute(run)["status"] == "finished"
    return run, read_rows(run_folder(run))


def numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("eval/")}


LORA = ("model.train.mode=lora", "optimization.learning_rate=0.01")


@pytest.mark.parametrize(
    "settings",
    [
        ("apa",),
        ("ppo", "model.train.mode=all", "rollout.temperature=0.7"),
        ("awr", *LORA),
        ("ilql", "value.head_init_std=0.5"),
    ],
)
def test_it_has_the_numbers_of_the_runs_last_row(never_stopped, tmp_path, cache, settings):
    stage = "offline" if settings[0] == "ilql" else "online"
    run = never_stopped(*settings, f"stage={stage}")
    (last,) = (row for row in read_rows(run_folder(run)) if row["iteration"] == 4)
    measured, rows = evaluated(tmp_path, cache, *settings, f"evaluation.policy={run_folder(run) / 'final'}")
    assert [(row["step"], row["iteration"], row["samples"]) for row in rows] == [(0, 0, 0)]
    ours, theirs = numbers(rows[0]), numbers(last)
    assert ours.keys() == theirs.keys() and theirs["eval/kl"] > 1e-3
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
    assert ours["eval/reward"] == theirs["eval/reward"]
    summary = json.loads((run_folder(measured) / "summary.json").read_text())
    assert {key: summary[key] for key in ours} == ours
    samples, before = (
        [json.loads(line) for line in (run_folder(one) / "samples.jsonl").read_text().splitlines()]
        for one in (measured, run)
    )
    assert [row["response"] for row in samples] == [row["response"] for row in before if row["iteration"] == 4]
    assert not (run_folder(measured) / "checkpoints").exists() and not (run_folder(measured) / "final").exists()


def test_without_a_policy_it_measures_the_initial_one(never_stopped, tmp_path, cache):
    first = numbers(read_rows(run_folder(never_stopped("apa", "stage=online")))[0])
    run, rows = evaluated(tmp_path, cache, "apa")
    assert numbers(rows[0]) == first
    assert rows[0]["eval/kl"] == 0.0
    assert run_id(run).startswith("evaluate-s1234-")


def test_ilqls_language_model_alone_is_measured_where_another_algorithm_is_named(never_stopped, tmp_path, cache):
    final = run_folder(never_stopped("ilql", "value.head_init_std=0.5", "stage=offline")) / "final"
    _, alone = evaluated(tmp_path, cache, "awr", f"evaluation.policy={final}")
    _, sampler = evaluated(tmp_path, cache, "ilql", f"evaluation.policy={final}")
    assert 0 < alone[0]["eval/kl"] < sampler[0]["eval/kl"] - 1  # top 20 of some 70 words cost more than a nat
    assert not any("beta" in name for name in alone[0])


def test_the_sampler_is_part_of_the_identity_and_training_is_not():
    def identity(*settings: str) -> str:
        return run_id(
            config("stage=evaluate", "evaluation.policy=owner/policy", "reward.missing_eos_score=-2", *settings)
        )

    assert identity("algo=apa") == identity("algo=awr") == identity("seed=1", "optimization.epochs=7", "algo=apa")
    assert identity("algo=ilql") != identity("algo=apa")
    assert identity("algo=ilql", "algo.betas=[2.0]") != identity("algo=ilql")
    assert identity("algo=apa", "evaluation.policy=owner/other") != identity("algo=apa")


def test_a_folder_without_heads_cannot_be_sampled_as_ilql(never_stopped, tmp_path, cache):
    final = run_folder(never_stopped("apa", "stage=online")) / "final"
    with pytest.raises(ModelError, match=f"no ILQL heads for this model in {final / HEADS}"):
        evaluated(tmp_path, cache, "ilql", f"evaluation.policy={final}")


def test_a_policy_with_other_tokens_is_refused(never_stopped, tmp_path, cache):
    final, other = run_folder(never_stopped("apa", "stage=online")) / "final", tmp_path / "other"
    shutil.copytree(final, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=f"evaluation.policy: {other} has another tokenizer"):
        evaluated(tmp_path, cache, "apa", f"evaluation.policy={other}")
    AutoTokenizer.from_pretrained(final).save_pretrained(other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    model.save_pretrained(other)
    evaluated(tmp_path, cache, "apa", f"evaluation.policy={other}")  # rows that no token has are left out
