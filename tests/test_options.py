"""Options that are off by default, each in a whole tiny run: it changes what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.data import load_text_data
from rlhf.models.reward_model import load_reward_model
from rlhf.random import endless_order
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests.test_run import tiny, without_time

ROLLOUT = {f"train/{name}" for name in ("kl", "kl_k3", "entropy", "response_length", "eos_rate", "kl_coef")}
"""What row 1 says of rollouts that the initial policy sampled, their reward apart."""


@pytest.fixture(scope="module")
def rows_with(tmp_path_factory) -> Callable[..., tuple[RunConfig, list[dict[str, Any]]]]:
    """A finished run with these overrides and its rows, made on first use."""
    threads, made = torch.get_num_threads(), {}
    output, cache = (tmp_path_factory.mktemp(name) for name in ("runs", "cache"))

    def run(*overrides: str) -> tuple[RunConfig, list[dict[str, Any]]]:
        if overrides not in made:
            made[overrides] = tiny(output, cache, "apa", *overrides)
            assert execute(made[overrides])["status"] == "finished"
        return made[overrides], [without_time(row) for row in read_rows(run_folder(made[overrides]))]

    yield run
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def same(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """The metrics that two rows have in common, value and all."""
    return {name for name in first if "/" in name and first[name] == second.get(name)}


def test_released_k3_is_one_metric_more(rows_with):
    (_, plain), (_, rows) = rows_with(), rows_with("evaluation.released_k3=true")
    logged = [row.pop("train/kl_released_k3") for row in rows[1:]]
    assert rows == plain
    assert logged[0] == 0.0  # the initial policy sampled
    assert all(value > 0 for value in logged[1:])
    assert all(value != row["train/kl_k3"] for value, row in zip(logged[1:], plain[2:], strict=True))


def test_the_baseline_takes_the_reference_answers_scores_off_the_training_rewards(rows_with):
    (run, plain), (_, rows) = rows_with(), rows_with("reward.baseline=reference")
    assert rows[0] == plain[0]  # evaluations have no baseline
    prompts = load_text_data(run.dataset).prompts
    first = [prompts[i] for i in endless_order(run.seed, "prompts", 0, 8, len(prompts)).tolist()]
    reward_model = load_reward_model(
        run_folder(input_runs(run)[1]) / "final",
        max_prompt_tokens=run.dataset.max_prompt_tokens,
        max_new_tokens=run.dataset.max_new_tokens,
    )
    scores = reward_model.score([example.prompt for example in first], [example.response for example in first])
    shift = plain[1]["train/reward"] - rows[1]["train/reward"]
    assert shift == pytest.approx(float(scores.mean()), abs=1e-5) and abs(shift) > 0.01
    assert same(rows[1], plain[1]) >= ROLLOUT
    assert rows[1]["train/policy_loss"] != plain[1]["train/policy_loss"]
    assert rows[-1]["eval/kl"] != plain[-1]["eval/kl"]


def test_whitening_each_minibatch_changes_the_policys_update_and_nothing_before_it(rows_with):
    (_, plain), (_, rows) = rows_with(), rows_with("advantages.whiten_over=minibatch")
    assert rows[0] == plain[0]
    # Returns are not whitened: the value network's first updates are the same too.
    values = {"train/reward", "train/explained_variance", "train/value_loss", "train/value_grad_norm"}
    changed = {name for name in plain[1] if "/" in name} - same(rows[1], plain[1])
    assert same(rows[1], plain[1]) >= ROLLOUT | values
    assert changed >= {"train/policy_loss", "train/grad_norm"}
    assert rows[2]["train/reward"] != plain[2]["train/reward"] and rows[-1]["eval/kl"] != plain[-1]["eval/kl"]
