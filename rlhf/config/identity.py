"""Which run a config is: its id, its folder and the runs whose weights it starts from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlhf.config import RL_STAGES, CheckpointConfig, ILQLConfig, RunConfig, StageConfig
from rlhf.config.build import build_config, config_to_mapping

REVISION = 4
"""Raised whenever code changes results under the same config: cached inputs and finished runs then no longer match."""

# Beside the fields of a config, which nothing changes once it is built; copies with other values start without.
_RUN_ID = "_run_id"

# Files beyond this size enter a fingerprint by their two ends and their size.
WHOLE_FILE_BYTES = 64 * 2**20
END_BYTES = 2**20

# The stages that ask the reward for scores.
SCORING_STAGES = (*RL_STAGES, "evaluate")

# Options of ILQL that its sampler has.
_ILQL_SAMPLER = {"name", "top_k", "betas"}

# Sections and options that a stage never reads; those that its input runs read are not among them.
UNREAD = {
    "online": {"offline"},
    "offline": {"reward.overlap"},
    "evaluate": {
        *("seed", "value", "offline", "advantages", "optimization", "checkpoint"),
        *("rollout.iterations", "rollout.num_responses"),
        *("reward.scale", "reward.clip", "reward.baseline", "reward.overlap"),
        *("evaluation.eval_every", "evaluation.released_k3", "dataset.kl_budgets", "hardware.sharding"),
        *(f"model.train.{option}" for option in ("last_k", "lora_rank", "lora_alpha", "lora_targets")),
        "model.train.merge_adapters",
    },
}

# What an evaluation reads for its input runs alone.
_READ_FOR_INPUTS = {"hardware.gradient_checkpointing", "hardware.input_threads"}

# The sections of a RunConfig that can change what a stage before RL makes.
_INPUT_SECTIONS = ("stage", "dataset", "model", "hardware")

# Options of `dataset` that a stage before RL never reads, nor do they move the random numbers of what it reads. The
# reward model does read num_prompts: its scores are normalised on the prompts' reference answers.
_UNREAD_BY_REWARD_MODEL = {"num_eval_prompts", "stop_strings", "kl_budgets"}
UNREAD_OF_DATASET = {
    "sft": {*_UNREAD_BY_REWARD_MODEL, "num_pairs", "num_test_pairs", "num_prompts", "label_noise_scale"},
    "reward_model": _UNREAD_BY_REWARD_MODEL,
}


def run_id(config: RunConfig) -> str:
    """`<algo>-s<seed>-<8 hex>`; a stage before RL puts its own name and seed in front. Worked out once for a config."""
    known = config.__dict__.get(_RUN_ID)
    if known is None:
        known = config.__dict__[_RUN_ID] = _run_id(config)
    return known


def _run_id(config: RunConfig) -> str:
    names = {
        **dict.fromkeys(RL_STAGES, (config.algo.name, config.seed)),
        "sft": ("sft", config.sft.seed),
        "reward_model": ("reward_model", config.reward_model.seed),
        "evaluate": ("evaluate", config.evaluation.seed),
    }
    name, seed = names[config.stage.name]
    text = json.dumps(
        {"revision": REVISION, **_identity(config)}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return f"{name}-s{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_folder(config: RunConfig) -> Path:
    """Where the run writes: output_dir/sweep_name/run id."""
    return sweep_folder(config) / run_id(config)


def sweep_folder(config: RunConfig) -> Path:
    return Path(config.output_dir) / config.sweep_name


def input_runs(config: RunConfig) -> list[RunConfig]:
    """The runs that must be finished before this one, in order; other RL seeds and algorithms give the same ones."""
    stages = []
    if config.stage.name != "sft" and config.model.sft:
        stages.append("sft")
    if config.stage.name in SCORING_STAGES and config.reward.name == "learned" and config.reward.path is None:
        stages.append("reward_model")
    return [
        dataclasses.replace(
            config,
            stage=StageConfig(name=stage),
            output_dir=config.cache_dir,
            sweep_name="inputs",
            overwrite=False,
            # Whatever the run itself keeps, it starts from its inputs' weights.
            checkpoint=CheckpointConfig(
                checkpoint_every=config.checkpoint.checkpoint_every,
                save_final="full",
            ),
            hardware=dataclasses.replace(
                config.hardware,
                threads=config.hardware.input_threads,
                # What trains little has little to share, and runs whole.
                sharding=config.hardware.sharding if getattr(config, stage).train.mode == "all" else "none",
            ),
            tracking=dataclasses.replace(config.tracking, wandb="off"),
        )
        for stage in stages
    ]


def _identity(config: RunConfig) -> dict[str, Any]:
    """What the hash covers: every field that can change the results of this config's stage."""
    # By way of build_config, so that a float field holds a float (1 and 1.0 are one run) however it was made.
    identity = identifying(build_config(config_to_mapping(config)))
    stage = config.stage.name
    inputs = {run.stage.name for run in input_runs(config)}
    if stage in SCORING_STAGES:
        unread = UNREAD[stage] | ({"sft", "reward_model"} - inputs)
    else:
        unread = {*identity} - {*_INPUT_SECTIONS, stage, *inputs} | {"model.train"}
        unread |= {f"dataset.{option}" for option in UNREAD_OF_DATASET[stage]}
    if stage == "evaluate":
        unread |= set() if inputs else _READ_FOR_INPUTS
        unread |= {f"algo.{option}" for option in {*identity["algo"]} - _ILQL_SAMPLER}
        unread |= set() if isinstance(config.algo, ILQLConfig) else {"algo"}
    if isinstance(config.algo, ILQLConfig):
        unread |= {"optimization.pack_by_length"}
    kept = without(identity, unread)
    if stage != "sft" and not config.model.sft and config.model.source == "random":
        kept["sft"] = {"seed": identity["sft"]["seed"]}  # which the weights are drawn from
    return kept


def without(identity: dict[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """`identity` but for the sections and options at the dotted `paths`."""
    kept = {}
    for name, value in identity.items():
        inner = [path.removeprefix(f"{name}.") for path in paths if path.startswith(f"{name}.")]
        if name not in paths:
            kept[name] = without(value, inner) if inner else value
    return kept


def identifying(config: Any) -> dict[str, Any]:
    """The fields of a config, or of one of its sections, that can change results; paths by what lies there."""
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.metadata["identity"]:
            continue
        if dataclasses.is_dataclass(value):
            result[field.name] = identifying(value)
        elif field.metadata["content"] and value is not None:
            result[field.name] = fingerprint(value)
        else:
            result[field.name] = value
    return result


def fingerprint(name: str) -> str:
    """Of what a file or folder holds, wherever it lies; a hub name stands for itself."""
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        content = [(file.relative_to(path).as_posix(), file.stat().st_size, _file_hash(file)) for file in files]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return _file_hash(path) if path.is_file() else name


def _file_hash(path: Path) -> str:
    state = path.stat()
    return _hash_once(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.cache
def _hash_once(path: Path, size: int, _modified: int) -> str:
    """Read once per state of the file: a sweep asks for the ids of its runs again and again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            digest.update(file.read())
        else:
            digest.update(f"{size} bytes".encode() + file.read(END_BYTES))
            file.seek(size - END_BYTES)
            digest.update(file.read())
    return digest.hexdigest()
