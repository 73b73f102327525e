"""Every YAML of conf/ composes into a config that passes the checks; experiments: tests/sweeps/test_sources.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.build import build_config, config_to_mapping
from tests.config.composed import CONF, checked, composed, config

FOLDERS = [folder for folder in CONF.iterdir() if folder.is_dir()]
GROUPS = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in FOLDERS}

# source=random brings a tokenizer for made-up languages alone.
REAL_MODEL = {"dataset": ["model=smollm2_135m"]}
# Some algorithms have no online form, and a server's address or the place of a model or of data is nobody's default.
BESIDE = {
    **{f"algo={name}": ["stage=offline"] for name in ("ilql", "dpo", "ipo")},
    "algo=custom": ["algo.loss=rlhf.algorithms.apa:APA", "algo.lam=1", "algo.anchor=initial"],
    "dataset=reasoning_gym": ["dataset.task=leg_counting"],
    "reward=http": ["reward.url=http://localhost:8000/score"],
    "reward=python": ["reward.path=posixpath:join"],
    "reward=verifiable": ["dataset=sums"],
    "stage=reference_samples": ["evaluation.reference_responses=2"],
    "model=hub": ["model.path=owner/hub", "dataset=hh"],
    "dataset=preferences": ["dataset.hub=owner/pairs"],
    "dataset=prompts": ["dataset.hub=owner/prompts", "reward=sentiment"],
}


@pytest.mark.parametrize(
    "choice", [f"{group}={name}" for group in sorted(GROUPS.keys() - {"tuned", "experiment"}) for name in GROUPS[group]]
)
def test_every_file_composes(choice):
    group, _, name = choice.partition("=")
    real = REAL_MODEL.get(group, []) if name != "letters" else []
    run = config(choice, *real, *BESIDE.get(choice, []))
    named = {
        "algo": "custom" if choice == "algo=custom" else run.algo.name,
        "stage": run.stage.name,
        "model": run.model.name,
        "dataset": run.dataset.name,
    }
    assert named.get(group, name).removeprefix("hub-") == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("gpt2", "gpt2"),
        ("/data/my model/", "my-model"),
        ("runs/default/apa-s0-0123abcd/final", "apa-s0-0123abcd"),
        ("models/tiny", "hub-tiny"),  # another model of ours has that name
    ],
)
def test_a_model_of_ones_own_is_named_after_its_place(path, name):
    mapping = composed("model=hub", "dataset=hh")
    mapping["model"]["path"] = path
    run = build_config(mapping)
    assert run.model.name == name == build_config(config_to_mapping(run)).model.name
    assert run.optimization.learning_rate <= 2e-5 and run.sft.learning_rate <= 2e-5


@pytest.mark.parametrize("file", sorted((CONF / "tuned").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_tuned_file_is_reached(file: Path):
    model, dataset, *algo = file.stem.split("-")
    assert model in GROUPS["model"] and dataset in GROUPS["dataset"] and len(algo) <= 1 and {*algo} <= {*GROUPS["algo"]}


def test_tuned_settings_lie_between_groups_and_command_line():
    generic = config("model=smollm2_135m").algo
    tuned = config().algo
    assert (generic.lam, tuned.lam) == (0.1, 0.6)  # type: ignore[attr-defined]
    assert composed("algo.lam=3")["algo"]["lam"] == 3
    assert composed("algo=ppo", "model=tiny")["algo"]["name"] == "ppo"


@pytest.mark.parametrize("data", ["letters", "hh"])
def test_one_step_reads_as_few_pairs_of_every_data_set(data):
    """stage=offline scores both answers of each."""
    run = config("debug=one_step", f"dataset={data}", *([] if data == "letters" else ["model=smollm2_135m"]))
    assert run.dataset.num_pairs is not None and run.dataset.num_test_pairs <= 16
    assert run.rollout.num_responses <= 2 * run.dataset.num_pairs <= 64


def test_one_step_has_whole_groups():
    run = checked(composed("debug=one_step", "algo=rloo", "algo.group_size=3"), {})
    assert run.rollout.num_responses == run.optimization.micro_batch_size == 3
