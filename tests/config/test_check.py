"""Impossible combinations are refused, each in one line; possible ones are not."""

from __future__ import annotations

import pytest

from rlhf.config.build import ConfigError
from tests.config.composed import typed


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
        (["model.num_heads=5"], "model.num_heads: 5 does not divide model.width = 168"),
        (["model.num_heads=8"], "model.num_heads: width / num_heads = 21 is odd"),
        (
            ["model=smollm2_135m", "model.train.last_k=40"],
            "model.train.last_k: 40 is more than model.num_layers = 30",
        ),
        (["sft.train.mode=last_k", "sft.train.last_k=5"], "sft.train.last_k: 5 is more than model.num_layers = 3"),
        (["model.source=pretrained"], "model.source: the settings of model=tiny are for weights of another kind; type"),
        (["model=hub", "dataset=hh"], "model.path: missing"),
        (["model=pythia_1b", "model.frozen_weights=int8"], "model.frozen_weights: int8 needs model.train.mode=lora"),
        (
            ["model=llama_7b", "model.frozen_weights=int4", "sft.train.mode=last_k"],
            "model.frozen_weights: int4 needs sft.train.mode=lora",
        ),
        (
            ["model=llama_7b", "model.frozen_weights=int4", "value.train=all"],
            "model.frozen_weights: int4 cannot be trained; use value.train=as_policy",
        ),
        (
            ["model.frozen_weights=int8", *(f"{part}.train.mode=lora" for part in ("model", "sft", "reward_model"))],
            "model.frozen_weights: int8 is what weights become as they are loaded; model.source=random draws them",
        ),
        (["dataset.num_eval_prompts=5"], "dataset.num_eval_prompts: 5 is odd"),
        (["dataset.kl_budgets=[]"], "dataset.kl_budgets: empty"),
        (["dataset.stop_strings=['']"], "dataset.stop_strings: an empty text"),
        (["dataset.name=hh"], "model.source: random needs a data set that brings its own words (letters,"),
        (["optimization.betas=[0.9]"], "optimization.betas: 1 numbers; AdamW has two"),
        (["optimization.betas=[0.9,1]"], "optimization.betas: 1 never forgets"),
        (["algo=ppo", "algo.kl.init_coef=0"], "algo.kl.init_coef: the adaptive controller multiplies"),
        (
            ["dataset=hh", "model=smollm2_135m", "dataset.path=/nonexistent"],
            "dataset.path: /nonexistent does not exist",
        ),
        (["reward.path=nonexistent"], "reward.path: nonexistent does not exist"),
        (["reward=hh_gptj", "reward.base=./gptj"], "reward.base: ./gptj does not exist"),
        (["model=pythia_125m", "model.path=./nonexistent"], "model.path: ./nonexistent does not exist"),
        (["reward=http"], "reward.url: missing; reward=http needs the address"),
        (["reward=http", "reward.url=localhost:80"], "reward.url: 'localhost:80' begins with neither http:// nor"),
        (["reward=http", "reward.url=http://a/score?model=b"], "reward.url: its query may choose what scores"),
        (["reward=hh_gptj", "reward.base=null"], "reward.base: missing; reward=hh_gptj needs the architecture"),
        (["sweep_name=../up"], "sweep_name: '../up' is no folder name"),
    ],
)
def test_refuses(overrides, problem):
    with pytest.raises(ConfigError) as error:
        typed(*overrides)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(problem)


def test_tells_all_at_once():
    with pytest.raises(ConfigError) as error:
        typed("dataset.num_eval_prompts=5", "model.num_heads=5", "sft.warmup_steps=400")
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
        ["model.train.mode=all"],
        ["model=pythia_1b", "model.train.mode=all"],
        ["model=pythia_125m", "model.path=some/hub-name"],
        ["algo=ppo", "algo.kl.controller=none"],
        ["reward=hh_gptj", "reward.precision=fp32", "reward.max_tokens=null", "reward.prefix=x"],
        ["reward=hh_gptj", "reward.tokenizer=gpt2"],
        ["reward=tldr_gptj"],
        ["reward=http", "reward.url=https://scores.example/v1", "reward.batch_size=3", "reward.normalize=mean"],
        ["reward=http", "reward.url=http://a/score?model=b", "reward.server=b"],
        ["reward.path=owner/name", "reward.prefix=x", "reward.suffix=y", "reward.tokenizer=owner/other"],
        ["reward.max_tokens=20", "reward.precision=bf16"],
        ["hardware.ranks=2", "hardware.sharding=fsdp", "model.train.mode=all", "sft.train.mode=lora"],
        ["hardware.ranks=2", "hardware.sharding=fsdp", "stage=sft"],
    ],
)
def test_allows(overrides):
    typed(*overrides)
