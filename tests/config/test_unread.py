"""Every option that a combination does not read is refused when it is set, every other one is not: generated from the
config classes, so that an option that is added is among them."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import pytest

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError, config_to_mapping, option_types, paths_without_effect
from rlhf.config.check import check, checked_config
from rlhf.config.identity import input_runs, run_id
from rlhf.config.options import Option, options
from rlhf.config.setting import setting
from rlhf.config.unread import COMMAND_LINE, unread
from tests.config.composed import composed, typed

LOADED = ("model=hub", "model.path=owner/policy", "dataset=hh")
GIVEN = (*LOADED, "model.sft=false", "reward.path=owner/reward")
COMBINATIONS = {
    "sft": ("stage=sft",),
    "sft of loaded weights": ("stage=sft", *LOADED),
    "reward_model": ("stage=reward_model",),
    "online apa": ("algo=apa",),
    "online ppo": ("algo=ppo",),
    "online ppo, fixed controller": ("algo=ppo", "algo.kl.controller=fixed"),
    "online ppo, no penalty": ("algo=ppo", "algo.kl.controller=none"),
    "online awr, sentiment": ("algo=awr", "reward=sentiment"),
    "online rloo": ("algo=rloo",),
    "online apa, server": ("reward=http", "reward.url=http://localhost/score"),
    "online apa, loaded": GIVEN,
    "online apa, head": ("value.network=head", "advantages.whiten=none"),
    "offline apa": ("stage=offline",),
    "offline ilql": ("stage=offline", "algo=ilql"),
    "evaluate": ("stage=evaluate", *GIVEN, "evaluation.policy=owner/trained"),
    "evaluate ilql": ("stage=evaluate", *GIVEN, "evaluation.policy=owner/trained", "algo=ilql"),
    "slurm": ("hardware=slurm", "tracking=none"),
    "gptj": ("reward=hh_gptj", "dataset=hh", "model=llama_7b", "hardware=gpu"),
}
UNREAD = {
    "sft": ("algo.lam", "seed", "reward.path", "rollout.iterations", "model.train.mode", "value.coef", "model.sft"),
    "reward_model": ("rollout.temperature", "reward.url", "evaluation.samples"),
    "online apa": ("model.path", "dataset.path", "dataset.hub", "offline.refresh_values", "evaluation.policy"),
    "online ppo": ("hardware.runs_per_gpu", "reward.checkpoint_file", "model.train.lora_rank", "sft.train.last_k"),
    "online ppo, fixed controller": ("algo.kl.target", "algo.kl.horizon"),
    "online ppo, no penalty": ("algo.kl.init_coef", "algo.kl.target"),
    "online awr, sentiment": ("reward.precision", "reward.batch_size", "reward_model.steps"),
    "online apa, loaded": ("model.width", "model.num_heads", "sft.steps", "sft.seed", "dataset.label_noise_scale"),
    "online apa, head": ("value.train", "value.learning_rate", "advantages.whiten_over"),
    "online rloo": ("value.network", "value.coef", "value.head_init_std", "advantages.gamma", "advantages.whiten"),
    "offline ilql": ("advantages.gamma", "value.coef", "optimization.pack_by_length", "reward.scale"),
    "evaluate": ("seed", "algo.lam", "optimization.learning_rate", "checkpoint.save_final", "hardware.sharding"),
    "slurm": ("tracking.project", "tracking.tags"),
}
READ = {
    "sft": ("sft.seed", "dataset.num_test_pairs", "dataset.num_eval_prompts", "model.num_layers", "hardware.threads"),
    "online ppo": ("algo.kl.target", "sft.steps", "reward_model.margin", "hardware.input_threads"),
    "online apa, loaded": ("model.path", "dataset.max_bad_rows", "model.num_layers", "reward.prefix"),
    "online rloo": ("algo.group_size", "algo.kl.init_coef", "optimization.pack_by_length"),
    "offline ilql": ("algo.tau", "value.head_init_std", "reward.clip"),
    "evaluate ilql": ("algo.top_k", "evaluation.seed", "rollout.temperature"),
    "slurm": ("hardware.slurm.partition", "tracking.wandb"),
    "gptj": ("reward.checkpoint_file", "hardware.runs_per_gpu", "reward.overlap", "model.frozen_weights"),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_an_option_that_is_not_read_is_refused_whatever_its_value_and_another_is_not(name: str):
    run = typed(*COMBINATIONS[name])
    runs = [run, *input_runs(run)]
    for option in options(run):
        lines = unread(run, {option.path: COMMAND_LINE})
        assert set(lines) == ({option.path} if option.unread_by(runs) else set())
        assert all(line.startswith(f"{option.path}: ") and "does not read it" in line for line in lines.values())
        assert check(run, {option.path: COMMAND_LINE}) == list(lines.values())
    unread_here = {option.path for option in options(run) if option.unread_by(runs)}
    assert unread_here >= set(UNREAD.get(name, ()))
    assert unread_here.isdisjoint(READ.get(name, ()))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_is_not_read_is_no_part_of_the_id(name: str):
    run = typed(*COMBINATIONS[name])
    runs = [run, *input_runs(run)]
    idle = [option for option in options(run) if option.unread_by(runs) and option.path != "algo.name"]
    assert {run_id(changed(run, option)) for option in idle} == {run_id(run)}


def changed(run: RunConfig, option: Option) -> RunConfig:
    """The run with another value of the option."""

    def replaced(section: Any, path: str) -> Any:
        name, _, rest = path.partition(".")
        value = replaced(getattr(section, name), rest) if rest else another(option)
        return dataclasses.replace(section, **{name: value})

    return replaced(run, option.path)


def another(option: Option) -> Any:
    kinds = typing.get_args(kind) if isinstance(kind := option_types()[option.path], types.UnionType) else (kind,)
    value, choices = option.value, option.stated["choices"]
    if choices is not None:
        return next(choice for choice in choices if choice != value)
    if typing.get_origin(kinds[0]) is list:
        return [] if value else [1.0] if float in typing.get_args(kinds[0]) else ["x"]
    made = {bool: not value, int: (value or 0) + 1, float: (value or 0.2) / 2} if not isinstance(value, str) else {}
    return made.get(kinds[0], f"{value}x")


def test_an_option_that_does_not_say_who_reads_it_cannot_be_declared():
    with pytest.raises(TypeError, match="read_by"):
        setting("a new option")  # type: ignore[call-arg]


def test_a_file_may_set_what_another_stage_reads():
    run = typed("stage=sft")
    assert unread(run, {"rollout.iterations": "mine.yaml"}) == {}
    assert list(unread(run, {"dataset.path": "mine.yaml"}).values()) == [
        "dataset.path: dataset=letters does not read it (mine.yaml sets it); leave it out, or add dataset=hh or "
        "dataset=tldr or dataset=stackexchange or dataset=reviews"
    ]


def test_a_file_may_lose_a_reader_to_what_is_typed():
    run = typed("algo=ppo", "algo.kl.controller=fixed")
    assert unread(run, {"algo.kl.target": "mine.yaml", "algo.kl.controller": COMMAND_LINE}) == {}
    assert list(unread(run, {"algo.kl.target": "mine.yaml"})) == ["algo.kl.target"]
    assert list(unread(typed(), {"model.path": "mine.yaml"})) == ["model.path"]
    assert unread(typed(), {"model.path": "mine.yaml", "model": COMMAND_LINE}) == {}


def test_without_knowing_what_was_set_whatever_differs_from_conf_counts():
    mapping = composed()
    checked_config(mapping)
    mapping["model"]["path"] = "owner/policy"
    mapping["dataset"]["max_bad_rows"] = 3
    with pytest.raises(ConfigError) as error:
        checked_config(mapping)
    assert [line.partition(":")[0] for line in error.value.problems] == ["dataset.max_bad_rows", "model.path"]


@pytest.mark.parametrize("overrides", COMBINATIONS.values(), ids=COMBINATIONS)
def test_a_checked_config_is_checked_again_without_a_word(overrides: tuple[str, ...]):
    run = typed(*overrides)
    assert check(dataclasses.replace(run), {}) == []
    assert checked_config(config_to_mapping(run), {}) == run


def test_what_changes_no_result_is_known_by_its_path():
    found = paths_without_effect()
    assert {"tracking", "hardware.slurm", "hardware.slurm.pack", "reward.retries", "evaluation.samples"} <= found
    assert found.isdisjoint({"seed", "checkpoint", "model.path", "dataset.num_pairs"})
