"""Run ids: the same for what is the same run, another for what is not; and the runs that a run starts from."""

from __future__ import annotations

import dataclasses
import re

import pytest

from rlhf.config import identity
from rlhf.config.identity import fingerprint, input_runs, run_folder, run_id
from tests.config.composed import config


def test_form_and_folder():
    run = config("seed=3", "output_dir=out", "sweep_name=first")
    assert re.fullmatch(r"apa-s3-[0-9a-f]{8}", run_id(run))
    assert run_folder(run).as_posix() == f"out/first/{run_id(run)}"
    assert re.fullmatch(r"sft-s7-[0-9a-f]{8}", run_id(config("stage=sft", "sft.seed=7", "seed=3")))
    assert run_id(config("stage=reward_model")).startswith("reward_model-s0-")


def test_spelling_does_not_matter():
    assert run_id(config("algo.lam=0.10")) == run_id(config("algo.lam=0.1")) == run_id(config("algo.lam=1e-1"))
    one = config("algo.lam=1")
    assert run_id(one) == run_id(config("algo.lam=1.0"))
    assert run_id(one) == run_id(dataclasses.replace(one, algo=dataclasses.replace(one.algo, lam=1)))


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "cache_dir=elsewhere",
        "sweep_name=another",
        "overwrite=true",
        "tracking=none",
        "hardware.parallel_runs=3",
        "evaluation.samples=1",
    ],
)
def test_what_cannot_change_results_is_no_part_of_it(override):
    assert run_id(config(override)) == run_id(config())


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "algo.lam=0.7",
        "hardware.threads=2",
        "hardware.precision=bf16",
        "sft.steps=301",
        "reward_model.steps=151",
        "dataset.seed=1",
        "rollout.iterations=41",
        "rollout=plain",  # other last bits
        "optimization.pack_by_length=false",
        "reward.batch_size=3",  # another padding, other last bits
    ],
)
def test_what_can_change_results_is_part_of_it(override):
    assert run_id(config(override)) != run_id(config())


def test_inputs_are_shared_by_seeds_and_algorithms(tmp_path):
    first = [run_id(run) for run in input_runs(config())]
    assert [name.partition("-")[0] for name in first] == ["sft", "reward_model", "reference_samples"]
    for overrides in (["seed=5"], ["algo=ppo"], ["optimization.learning_rate=0.5"], ["hardware.threads=2"]):
        assert [run_id(run) for run in input_runs(config(*overrides))] == first
    assert run_id(input_runs(config("reward_model.seed=5"))[0]) == first[0]
    for overrides in (["sft.steps=301"], ["dataset.num_sft=100"], ["model.width=128"], ["hardware.input_threads=1"]):
        changed = [run_id(run) for run in input_runs(config(*overrides))]
        assert changed[0] != first[0] and changed[1] != first[1]
    # What stage=sft does by hand, on as many threads, is the same run.
    assert run_id(config("stage=sft", "hardware.threads=2")) == first[0]
    assert run_id(config("stage=reward_model", "hardware.threads=2")) == first[1]


@pytest.mark.parametrize(
    ("override", "retrained"),
    [
        ("dataset.kl_budgets=[1]", []),
        ("dataset.num_eval_prompts=8", ["reference_samples"]),
        ("dataset.stop_strings=[stop]", ["reference_samples"]),
        ("dataset.num_pairs=8", ["reward_model", "reference_samples"]),
        ("dataset.num_test_pairs=8", ["reward_model", "reference_samples"]),
        ("dataset.num_prompts=8", ["reward_model", "reference_samples"]),  # it is normalised on their reference answers
        ("dataset.label_noise_scale=1", ["reward_model", "reference_samples"]),
        ("dataset.num_sft=8", ["sft", "reward_model", "reference_samples"]),
        ("dataset.seed=8", ["sft", "reward_model", "reference_samples"]),
        ("dataset.max_total_length=36", ["sft", "reward_model", "reference_samples"]),
        ("dataset.max_new_tokens=8", ["sft", "reward_model", "reference_samples"]),
    ],
)
def test_an_option_of_the_data_retrains_what_reads_it_alone(override, retrained):
    before, after = ({run.stage.name: run_id(run) for run in input_runs(config(*o))} for o in ([], [override]))
    assert [stage for stage in before if before[stage] != after[stage]] == retrained


def test_inputs_lie_in_the_cache_and_keep_their_weights():
    run = config("cache_dir=kept", "overwrite=true", "checkpoint.save_final=none")
    for needed in input_runs(run):
        assert run_folder(needed).parent.as_posix() == "kept/inputs"
        assert not needed.overwrite and needed.tracking.wandb == "off" and needed.checkpoint.save_final == "full"


def test_only_what_is_needed_is_an_input(tmp_path):
    assert [run.stage.name for run in input_runs(config("stage=reward_model"))] == ["sft"]
    assert input_runs(config("stage=sft")) == []
    (tmp_path / "weights").write_text("1")
    given = ["model.sft=false", f"reward.path={tmp_path}"]
    assert [run.stage.name for run in input_runs(config(*given))] == ["reference_samples"]
    given.append("evaluation.reference_responses=0")
    assert input_runs(config(*given)) == []
    # ... and what is not used does not tell runs apart.
    assert run_id(config(*given)) == run_id(config(*given, "sft.steps=301", "reward_model.steps=151"))
    assert run_id(config("model.sft=false")) != run_id(config("model.sft=false", "reward_model.steps=151"))


@pytest.mark.parametrize("stage", ["online", "offline", "evaluate", "reward_model"])
def test_weights_that_are_drawn_and_go_without_sft_have_a_seed(stage):
    def identity(*settings: str) -> str:
        return run_id(config(f"stage={stage}", "model.sft=false", *settings))

    assert identity("sft.seed=1") != identity() == identity("sft.steps=301")
    loaded = ("model=pythia_125m", "model.path=owner/policy", "dataset=hh")
    assert identity(*loaded) == identity(*loaded, "sft.seed=1")


def test_an_evaluation_still_has_the_inputs_that_an_option_makes():
    first, other = (config("stage=evaluate", *more) for more in ([], ["hardware.gradient_checkpointing=true"]))
    assert run_id(input_runs(first)[0]) != run_id(input_runs(other)[0]) and run_id(first) != run_id(other)


def test_an_input_that_trains_little_is_not_sharded():
    ranks = ("hardware.ranks=2", "hardware.sharding=fsdp", "model.train.mode=all", "sft.train.mode=lora")
    assert [run.hardware.sharding for run in input_runs(config(*ranks))] == ["none", "fsdp", "none"]
    by_hand = config("stage=sft", *ranks, "hardware.sharding=none", "hardware.threads=2")
    assert run_id(input_runs(config(*ranks))[0]) == run_id(by_hand)


def test_paths_enter_by_their_content(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "weights").write_text("1")
    assert run_id(config(f"reward.path={first}")) == run_id(config(f"reward.path={second}"))
    before = fingerprint(str(first))
    (first / "inner" / "weights").write_text("2")
    assert fingerprint(str(first)) != before
    (second / "inner" / "weights").rename(second / "inner" / "renamed")
    assert fingerprint(str(second)) != before
    assert fingerprint("some/hub-name") == "some/hub-name"


def test_long_files_enter_by_their_ends_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE_FILE_BYTES", 10)
    monkeypatch.setattr(identity, "END_BYTES", 4)
    contents = ["head-------tail", "head-++++--tail", "head--------tail", "Head-------tail", "head-------taiL"]
    prints = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_text(content)
        prints.append(fingerprint(str(tmp_path / str(number))))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_a_reward_model_with_a_chat_template_of_its_own_makes_another_run_and_nothing_else_does(tmp_path):
    """It reads conversations by it, and read plain text under the ids before."""
    (tmp_path / "config.json").write_text("{}")
    settings = tmp_path / "tokenizer_config.json"
    given = ("model=hub", "model.path=a/b", "dataset=hh", "model.sft=false", f"reward.path={tmp_path}")

    def read(*overrides: str) -> bool:
        return "reward.reads" in identity.read_by_stage(config(*given, *overrides), "evaluate", "reward")

    settings.write_text('{"chat_template": "{{ messages }}"}')
    assert read()
    assert not any(map(read, ("reward.prefix=x", "reward.suffix=x", "dataset.template=none")))
    settings.write_text("{}")
    assert not read()
    assert not read("reward.path=null", "model.sft=true")
