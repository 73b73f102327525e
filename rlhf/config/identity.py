"""Which run a config is: its id, its folder and the runs whose weights it starts from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.config import RL_STAGES, CheckpointConfig, RunConfig, StageConfig
from rlhf.config.build import build_config, config_to_mapping
from rlhf.config.options import options
from rlhf.config.readers import input_stages

REVISION = 6
"""Raised whenever code changes results under the same config: cached inputs and finished runs then no longer match."""

# The folder of cache_dir that holds the SFT and reward-model runs which other runs start from.
INPUTS = "inputs"

# Beside the fields of a config, which nothing changes once it is built; copies with other values start without.
_RUN_ID = "_run_id"

# Files beyond this size enter a fingerprint by their two ends and their size.
WHOLE_FILE_BYTES = 64 * 2**20
END_BYTES = 2**20

# The stages that ask the reward for scores.
SCORING_STAGES = (*RL_STAGES, "evaluate", "reference_samples")


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
        "reference_samples": ("reference_samples", config.evaluation.seed),
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
    return [
        dataclasses.replace(
            config,
            stage=StageConfig(name=stage),
            output_dir=config.cache_dir,
            sweep_name=INPUTS,
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
                sharding=config.hardware.sharding if _trains_all(config, stage) else "none",
            ),
            tracking=dataclasses.replace(config.tracking, wandb="off"),
        )
        for stage in input_stages(config)
    ]


def _trains_all(config: RunConfig, stage: str) -> bool:
    return stage != "reference_samples" and getattr(config, stage).train.mode == "all"


def _identity(config: RunConfig) -> dict[str, Any]:
    """What the hash covers: every option that can change the results of this config's stage or of its inputs."""
    # By way of build_config, so that a float field holds a float (1 and 1.0 are one run) however it was made.
    built = build_config(config_to_mapping(config))
    return identifying(built, [built, *input_runs(built)])


def identifying(config: RunConfig, runs: Sequence[RunConfig]) -> dict[str, Any]:
    """{dotted path: value} of the options that can change the results of `runs`; paths by what lies there."""
    result = {}
    for option in options(config):
        if any(option.changes(run) for run in runs):
            value: Any = option.value
            result[option.path] = fingerprint(value) if option.stated["content"] and value is not None else value
    return result


def read_by_stage(config: RunConfig, stage: str, section: str) -> dict[str, Any]:
    """`identifying` for one stage and one section of the config, inputs left out."""
    run = dataclasses.replace(config, stage=StageConfig(name=stage))
    return {path: value for path, value in identifying(config, [run]).items() if path.startswith(f"{section}.")}


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
