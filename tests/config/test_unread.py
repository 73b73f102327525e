"""Every option that a combination does not read is refused when it is set, every other one is not: generated from the
config classes, so that an option that is added is among them."""

from __future__ import annotations

import pytest

from rlhf.config.build import ConfigError, paths_without_effect
from rlhf.config.check import COMMAND_LINE, check, unread
from rlhf.config.identity import input_runs, run_id
from rlhf.config.options import options
from tests.config.changes import changed
from tests.config.composed import typed

LOADED = ("model=hub", "model.path=owner/policy", "dataset=hh")
GIVEN = (*LOADED, "model.sft=false", "reward.path=owner/reward")
COMBINATIONS = {
    "sft": ("stage=sft",),
    "sft of loaded weights": ("stage=sft", *LOADED),
    "sft of conversations": ("stage=sft", *LOADED[:2], "dataset=prompts", "dataset.hub=owner/name"),
    "reward_model": ("stage=reward_model",),
    "online apa": ("algo=apa",),
    "online ppo": ("algo=ppo",),
    "online ppo, fixed controller": ("algo=ppo", "algo.kl.controller=fixed"),
    "online ppo, no penalty": ("algo=ppo", "algo.kl.controller=none"),
    "online awr, sentiment": ("algo=awr", "reward=sentiment"),
    "online rloo": ("algo=rloo",),
    "online grpo": ("algo=grpo",),
    "online a_star_po": ("algo=a_star_po",),
    "online oapl": ("algo=oapl",),
    "online dro": ("algo=dro",),
    "offline dro_v": ("stage=offline", "algo=dro_v"),
    "offline dpo": ("stage=offline", "algo=dpo"),
    "online apa, server": ("reward=http", "reward.url=http://localhost/score"),
    "online apa, loaded": GIVEN,
    "online apa, head": ("value.network=head", "advantages.whiten=none"),
    "offline apa": ("stage=offline",),
    "offline ilql": ("stage=offline", "algo=ilql"),
    "evaluate": ("stage=evaluate", *GIVEN, "evaluation.policy=owner/trained"),
    "evaluate ilql": ("stage=evaluate", *GIVEN, "evaluation.policy=owner/trained", "algo=ilql"),
    "online sums": ("dataset=sums", "reward=verifiable"),
    "online, a function": ("reward=python", "reward.path=tests.scorers.made_up:lengths"),
    "slurm": ("hardware=slurm", "tracking=none"),
    "gptj": ("reward=hh_gptj", "dataset=hh", "model=llama_7b", "hardware=gpu"),
}
UNREAD = {
    "online apa, server": ("reward.precision", "reward_model.steps", "dataset.num_pairs", "reward.prefix"),
    "online apa, loaded": ("model.width", "sft.steps", "sft.seed", "dataset.label_noise_scale"),
    "sft of loaded weights": ("sft.turns", "model.num_layers", "dataset.num_pairs", "dataset.num_eval_prompts"),
    "online rloo": ("value.network", "value.coef", "value.head_init_std", "advantages.gamma", "advantages.whiten"),
    "online sums": ("reward.compare", "reward.answer", "reward.path", "dataset.num_pairs", "reward_model.steps"),
    "online, a function": ("reward.url", "reward.batch_size", "reward.overlap", "dataset.difficulty"),
    "online oapl": ("algo.reference_responses", "algo.quantile", "algo.kl.init_coef", "value.coef", "advantages.gamma"),
    "offline dro_v": ("advantages.gae_lambda", "algo.value_clip"),
    "slurm": ("tracking.project", "tracking.tags"),
}
READ = {
    "sft of conversations": ("sft.turns",),
    "online a_star_po": ("algo.reference_responses", "algo.reference_lam"),
    "online dro": ("advantages.gamma", "value.coef", "algo.value_clip"),
    "offline dro_v": ("value.coef", "value.learning_rate", "offline.refresh_values"),
    "online rloo": ("algo.group_size", "algo.kl.init_coef", "optimization.pack_by_length"),
    "online apa, server": ("reward.batch_size", "reward.overlap", "reward.retries"),
    "online apa, loaded": ("model.path", "dataset.max_bad_rows", "dataset.num_prompts", "reward.prefix"),
    "online sums": ("dataset.difficulty",),
    "online, a function": ("reward.path", "reward.weights", "reward.timeout_seconds"),
    "slurm": ("hardware.slurm.partition", "tracking.wandb"),
    "gptj": ("reward.checkpoint_file", "hardware.runs_per_gpu", "reward.overlap", "model.frozen_weights"),
}
"""Of combinations that tests/config/test_read.py does not run."""


@pytest.mark.parametrize("name", COMBINATIONS)
def test_an_option_that_is_not_read_is_refused_and_no_part_of_the_id_and_another_is_not_refused(name: str):
    run = typed(*COMBINATIONS[name])
    runs, found = [run, *input_runs(run)], list(options(run))
    idle = {option.path: option for option in found if option.unread_by(runs)}
    lines = unread(run, {option.path: COMMAND_LINE for option in found})
    assert set(lines) == set(idle) and check(run, dict.fromkeys(idle, COMMAND_LINE)) == list(lines.values())
    assert all(line.startswith(f"{path}: ") and "does not read it" in line for path, line in lines.items())
    assert check(run, {option.path: COMMAND_LINE for option in found if option.path not in idle}) == []
    assert set(idle) >= set(UNREAD.get(name, ()))
    assert set(idle).isdisjoint(READ.get(name, ()))
    other = run
    for path in idle.keys() - {"algo.name", "settings_from"}:
        other = changed(other, idle[path])
    assert other != run and run_id(other) == run_id(run)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("stage=sft", "dataset.num_pairs=7"), "stage=reward_model"),
        (("reward=sentiment", "dataset.num_pairs=7"), "reward=learned or stage=reward_model"),
        (("algo=rloo", "value.coef=2"), "algo=apa or algo=ppo or algo=awr"),
        (("stage=evaluate", "evaluation.policy=owner/trained", "algo=rloo", "algo.group_size=4"), "stage=online"),
    ],
)
def test_what_a_refusal_tells_to_add_makes_the_option_read(overrides: tuple[str, ...], remedy: str):
    with pytest.raises(ConfigError) as error:
        typed(*overrides)
    path = overrides[-1].partition("=")[0]
    (problem,) = [line for line in error.value.problems if line.startswith(f"{path}: ")]
    additions = problem.partition(", or use ")[2]
    assert additions.startswith(remedy)
    for addition in additions.split(" or "):
        kept = [text for text in overrides if text.partition("=")[0] != addition.partition("=")[0]]
        try:
            typed(*kept, addition)
        except ConfigError as still:
            assert not any(f"{path}:" in line for line in still.problems), (addition, still.problems)


def test_a_file_may_set_what_another_stage_reads():
    run = typed("stage=sft")
    assert unread(run, {"rollout.iterations": "mine.yaml"}) == {}
    assert list(unread(run, {"dataset.path": "mine.yaml"}).values()) == [
        "dataset.path: dataset=letters does not read it (mine.yaml sets it); leave it out, or use dataset=preferences "
        "or dataset=prompts or dataset=hh or dataset=tldr or dataset=stackexchange or dataset=reviews"
    ]


def test_a_file_may_lose_a_reader_to_what_is_typed():
    run = typed("algo=ppo", "algo.kl.controller=fixed")
    assert unread(run, {"algo.kl.target": "mine.yaml", "algo.kl.controller": COMMAND_LINE}) == {}
    assert list(unread(run, {"algo.kl.target": "mine.yaml"})) == ["algo.kl.target"]
    assert list(unread(typed(), {"model.path": "mine.yaml"})) == ["model.path"]
    assert unread(typed(), {"model.path": "mine.yaml", "model": COMMAND_LINE}) == {}


def test_what_changes_no_result_is_known_by_its_path():
    found = paths_without_effect()
    assert {"tracking", "hardware.slurm", "hardware.slurm.pack", "reward.retries", "evaluation.samples"} <= found
    assert found.isdisjoint({"seed", "checkpoint", "model.path", "dataset.num_pairs"})
