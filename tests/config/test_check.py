"""Impossible combinations are refused, each in one line; possible ones are not."""

from __future__ import annotations

import pytest

from rlhf.config.build import ConfigError
from tests.config.composed import config


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["optimization.minibatch_size=48"],
            "optimization.minibatch_size: 48 does not divide rollout.num_responses",
        ),
        (
            ["optimization.micro_batch_size=3"],
            "optimization.micro_batch_size: 3 does not divide optimization.minibatch_size = 16",
        ),
        (["sft.micro_batch_size=48"], "sft.micro_batch_size: 48 does not divide sft.batch_size = 32"),
        (["sft.warmup_steps=260"], "sft.warmup_steps: 260 is not below sft.steps = 260"),
        (["reward_model.micro_batch_size=5"], "reward_model.micro_batch_size: 5 does not divide"),
        (["model.num_heads=5"], "model.num_heads: 5 does not divide model.width = 168"),
        (["model.num_heads=8"], "model.num_heads: width / num_heads = 21 is odd"),
        (
            ["model=smollm2_135m", "model.train.last_k=40"],
            "model.train.last_k: 40 is more than model.num_layers = 30",
        ),
        (["model.train.last_k=5"], "model.train.last_k: 5 is more than model.num_layers = 3"),
        (["sft.train.mode=last_k", "sft.train.last_k=5"], "sft.train.last_k: 5 is more than model.num_layers = 3"),
        (["model.source=pretrained"], "model.path: missing"),
        (["value.network=head", "value.train=all"], "value.train: all is a choice of value.network=separate"),
        (["dataset.num_eval_prompts=5"], "dataset.num_eval_prompts: 5 is odd"),
        (["dataset.kl_budgets=[]"], "dataset.kl_budgets: empty"),
        (["dataset.stop_strings=['']"], "dataset.stop_strings: an empty text"),
        (["dataset.name=hh"], "model.source: random needs a data set that brings its own words (letters), not hh"),
        (["optimization.betas=[0.9]"], "optimization.betas: 1 numbers; AdamW has two"),
        (["optimization.betas=[0.9,1]"], "optimization.betas: 1 never forgets"),
        (["algo=ppo", "algo.kl.init_coef=0"], "algo.kl.init_coef: the adaptive controller multiplies"),
        (["dataset.path=/nonexistent"], "dataset.path: /nonexistent does not exist"),
        (["reward.path=nonexistent"], "reward.path: nonexistent does not exist"),
        (["model=pythia_125m", "model.path=./nonexistent"], "model.path: ./nonexistent does not exist"),
        (["model=pythia_125m", "model.path=a/b.safetensors"], "model.path: a/b.safetensors does not exist"),
        (["sweep_name=../up"], "sweep_name: '../up' is no folder name"),
    ],
)
def test_refuses(overrides, problem):
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(problem)


def test_tells_all_at_once():
    with pytest.raises(ConfigError) as error:
        config("dataset.num_eval_prompts=5", "model.num_heads=5", "sft.warmup_steps=400")
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "sft.warmup_steps",
        "model.num_heads",
        "dataset.num_eval_prompts",
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.train.mode=lora"],
        ["hardware.precision=bf16"],
        ["hardware=gpu"],
        ["value.network=head"],
        ["value.train=all"],
        ["model.train.mode=all", "model.train.last_k=5"],
        ["model=pythia_125m", "model.path=some/hub-name"],
        ["algo=ppo", "algo.kl.controller=none", "algo.kl.init_coef=0"],
    ],
)
def test_allows(overrides):
    config(*overrides)
