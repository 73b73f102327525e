"""Batch sizes as they come down to forward passes, against numbers worked by hand; what does not divide is refused."""

from __future__ import annotations

import pytest

from rlhf.config.build import ConfigError
from rlhf.config.sizes import derived_sizes
from tests.config.composed import config

LENGTH = "dataset.max_total_length=40"


def sizes(*overrides: str) -> dict[str, int]:
    return {name: number for name, number, _ in derived_sizes(config(LENGTH, "dataset.max_new_tokens=24", *overrides))}


RL = (
    "dataset.num_eval_prompts=20",
    "rollout.iterations=10",
    "rollout.num_responses=64",
    "rollout.batch_size=48",
    "optimization.epochs=3",
)
UPDATE = ("optimization.minibatch_size=16", "optimization.micro_batch_size=4")


def test_ranks_share_the_global_batches_and_not_the_steps():
    assert sizes(*RL, *UPDATE, "hardware.ranks=2") == {
        "responses in all": 640,
        "responses per iteration": 64,
        "responses per iteration and rank": 32,
        "sampled at once": 32,
        "minibatches per epoch": 4,
        "optimizer steps per iteration": 12,
        "optimizer steps in all": 120,
        "micro-batches per minibatch and rank": 2,
        "tokens per forward pass of an update, at most": 4 * 40,
        "tokens per forward pass of the frozen trunk and of evaluations, at most": 32 * 40,
    }


@pytest.mark.parametrize(("stage", "what", "texts"), [("sft", "examples", 1), ("reward_model", "pairs", 2)])
def test_a_stage_before_rl(stage, what, texts):
    numbers = {"steps": 50, "warmup_steps": 0, "batch_size": 24, "micro_batch_size": 6}
    overrides = [f"{stage}.{name}={value}" for name, value in numbers.items()]
    assert sizes(f"stage={stage}", *overrides, "hardware.ranks=2") == {
        f"{what} in all": 1200,
        f"{what} per optimizer step": 24,
        f"{what} per optimizer step and rank": 12,
        "micro-batches per optimizer step and rank": 2,
        "tokens per forward pass, at most": 6 * texts * 40,
    }


def test_an_evaluation():
    assert sizes("stage=evaluate", "dataset.num_eval_prompts=10", "hardware.ranks=4", "rollout.batch_size=2") == {
        "prompts": 10,
        "prompts per rank": 3,
        "sampled at once": 2,
        "tokens per forward pass, at most": 2 * 40,
    }


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["hardware.ranks=3"], "hardware.ranks: 3 does not divide rollout.num_responses = 64"),
        (
            [
                "hardware.ranks=2",
                "optimization.minibatch_size=16",
                "optimization.micro_batch_size=1",
                "sft.batch_size=9",
            ],
            "hardware.ranks: 2 does not divide sft.batch_size = 9",
        ),
        (
            ["rollout.num_responses=72", "optimization.minibatch_size=24", "optimization.micro_batch_size=8"],
            "optimization.micro_batch_size: 8 does not divide optimization.minibatch_size / hardware.ranks = 12",
        ),
        (["hardware.ranks=2", "hardware.sharding=fsdp"], "hardware.sharding: fsdp is for model.train.mode=all"),
        (
            ["hardware.sharding=fsdp", "stage=sft", "sft.train.mode=lora"],
            "hardware.sharding: fsdp is for sft.train.mode=all; lora trains little, use none",
        ),
        (
            ["hardware.sharding=fsdp", "stage=reward_model", "reward_model.train.mode=last_k"],
            "hardware.sharding: fsdp is for reward_model.train.mode=all; last_k trains little, use none",
        ),
        (
            ["hardware.sharding=fsdp", "hardware.ranks=1", "model.train.mode=all"],
            "hardware.sharding: fsdp shares weights among ranks",
        ),
    ],
)
def test_what_does_not_divide_is_refused(overrides, problem):
    with pytest.raises(ConfigError) as error:
        config("hardware.ranks=2", "sft.micro_batch_size=1", "reward_model.micro_batch_size=1", *overrides)
    assert any(one.startswith(problem) for one in error.value.problems), error.value.problems
