"""Which run a config is: its id, its folder, the runs whose weights it starts from, and which other run is near."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.config import RL_STAGES, SCORING_STAGES, CheckpointConfig, RunConfig, StageConfig
from rlhf.config.build import ConfigError, build_config, config_to_mapping, shown
from rlhf.config.options import Option, options
from rlhf.config.reward import NORMALISATION
from rlhf.config.setting import input_stages
from rlhf.config.user_code import source_file
from rlhf.urls import address

REVISION = 6
"""Raised whenever code changes results under the same config: cached inputs and finished runs then no longer match."""

# The folder of cache_dir that holds the SFT and reward-model runs which other runs start from.
INPUTS = "inputs"

# Beside the fields of a config, which nothing changes once it is built; copies with other values start without.
_RUN_ID = "_run_id"

# Files beyond this size enter a fingerprint by their two ends and their size.
WHOLE_FILE_BYTES = 64 * 2**20
END_BYTES = 2**20

CONFIG_FILE = "config.yaml"
"""In a run folder: the run's config."""
MOST_SHOWN = 3
_ANOTHER_EXPERIMENT = 20  # differences: a run with more of them is not what the user changed
"""Settings that a line names."""
NOT_READ = object()
"""In the place of a value that a run does not read."""


def run_id(config: RunConfig) -> str:
    """`<algo>-s<seed>-<8 hex>`; a stage before RL puts its own name and seed in front. Worked out once for a config."""
    known = config.__dict__.get(_RUN_ID)
    if known is None:
        known = config.__dict__[_RUN_ID] = _run_id(config)
    return known


def code_has_changed(config: RunConfig) -> str:
    """The line that refuses a run whose user's code is another one than when the run was named; "" where it is not."""
    code = {"algo.loss": getattr(config.algo, "loss", None)}
    code["reward.path"] = config.reward.path if config.reward.name == "python" else None
    given = [f"{option}: {spec}" for option, spec in code.items() if spec is not None]
    if not given or _run_id(config) == run_id(config):
        return ""
    return f"{'; '.join(given)}: changed since the run was started; type the command again, which makes it another run"


def _run_id(config: RunConfig) -> str:
    names = {
        **dict.fromkeys(RL_STAGES, (config.algo.name, config.seed)),
        "sft": ("sft", config.sft.seed),
        "reward_model": ("reward_model", config.reward_model.seed),
        "evaluate": ("evaluate", config.evaluation.seed),
        "reference_samples": ("reference_samples", config.evaluation.seed),
    }
    name, seed = names[config.stage.name]
    # By way of build_config, so that a float field holds a float (1 and 1.0 are one run) however it was made.
    built = build_config(config_to_mapping(config))
    covered = {"revision": REVISION, **identifying(built, [built, *input_runs(built)])}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{name}-s{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_folder(config: RunConfig) -> Path:
    """Where the run writes: output_dir/sweep_name/run id."""
    return sweep_folder(config) / run_id(config)


def sweep_folder(config: RunConfig) -> Path:
    return Path(config.output_dir) / config.sweep_name


def input_runs(config: RunConfig) -> list[RunConfig]:
    """The runs that must be finished before this one, in order; other RL seeds and algorithms give the same ones."""
    rollout = config.rollout
    if config.stage.name == "online" and rollout.sampling == "vllm":  # a server samples rollouts alone
        rollout = dataclasses.replace(rollout, sampling="fast")
    return [
        dataclasses.replace(
            config,
            stage=StageConfig(name=stage),
            output_dir=config.cache_dir,
            sweep_name=INPUTS,
            overwrite=False,
            rollout=rollout,
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
            tracking=dataclasses.replace(config.tracking, wandb="off", tensorboard=False),
        )
        for stage in input_stages(config)
    ]


def _trains_all(config: RunConfig, stage: str) -> bool:
    return stage != "reference_samples" and getattr(config, stage).train.mode == "all"


def identifying(config: RunConfig, runs: Sequence[RunConfig]) -> dict[str, Any]:
    """{dotted path: value} of the options that can change the results of `runs`; paths by what lies there."""
    values = {
        option.path: fingerprint(option.value)
        if option.stated["content"] and option.value is not None
        else option.value
        for option in _effective(config, runs)
    }
    if any(run.stage.name in SCORING_STAGES for run in runs) and _scores_by_template(config):
        values["reward.reads"] = "chat template"  # revision of this case alone: it read plain text before
    return values


def _scores_by_template(config: RunConfig) -> bool:
    """Whether a reward model of others may read conversations through the chat template of its own tokenizer; a hub
    name may."""
    reward, path = config.reward, Path(config.reward.path or "")
    given = reward.name == "learned" and reward.path is not None and not (path / NORMALISATION).is_file()
    if not given or reward.prefix or reward.suffix or config.dataset.template == "none":
        return False
    folder = Path(reward.tokenizer or path)
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # on the hub, or an adapter's base has it
    return bool(settings.get("chat_template")) or any(folder.glob("chat_template.*"))


def _effective(config: RunConfig, runs: Sequence[RunConfig]) -> list[Option]:
    return [option for option in options(config) if any(option.changes(run) for run in runs)]


def read_by_stage(config: RunConfig, stage: str, section: str) -> dict[str, Any]:
    """`identifying` for one stage and one section of the config, inputs left out."""
    run = dataclasses.replace(config, stage=StageConfig(name=stage))
    return {path: value for path, value in identifying(config, [run]).items() if path.startswith(f"{section}.")}


def fingerprint(name: str) -> str:
    """Of what a file or folder holds, wherever it lies; of `file.py:name`, the file's and the name; a hub name stands
    for itself."""
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        content = [(file.relative_to(path).as_posix(), file.stat().st_size, _file_hash(file)) for file in files]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
    if path.is_file() or (code := source_file(name)) is None:
        return _file_hash(path) if path.is_file() else name
    return f"{_file_hash(code)}:{name.rpartition(':')[2]}"


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


def edited(folder: Path, config: RunConfig) -> str:
    """What in the folder's config.yaml is not the run's, although the folder is the run's by its id; "" where nothing
    is, or there is no such file."""
    file = folder / CONFIG_FILE
    if not file.exists():
        return ""
    there = _read(file)
    if there is None:
        return "it is no config of a run"
    by_content = {option.path for option in options(config) if option.stated["content"]}  # what lies there counts
    differing = [path for path, *_ in _differences(there, config) if path not in by_content]
    return f"{', '.join(differing[:MOST_SHOWN])} had been edited" if differing else ""


def other_server(folder: Path, config: RunConfig) -> str:
    """The line that says that the run goes on with another reward server than the folder's config.yaml names; ""
    where it does not."""
    there = _read(folder / CONFIG_FILE)
    ours, theirs = config.reward.url, there and there.reward.url
    if config.reward.name != "http" or not ours or not theirs or address(ours) == address(theirs):
        return ""
    return (
        f"reward.url is {shown(address(ours))} and was {shown(address(theirs))}; if the two score differently, "
        "reward.server=NAME makes this another run"
    )


def starts_anew(runs: Sequence[RunConfig]) -> str:
    """The line that says which earlier run in the sweep folder one of `runs`, not begun yet, is nearest to; "" where
    there is none of its algorithm and seed, or it is another experiment."""
    for run in runs:
        folder = run_folder(run)
        start = run_id(run).rpartition("-")[0]
        if folder.exists() or not folder.parent.is_dir():
            continue
        near = []
        for other in sorted(folder.parent.glob(f"{start}-*/{CONFIG_FILE}")):
            there = _read(other)
            if there is not None and 0 < len(differing := _differences(there, run)) <= _ANOTHER_EXPERIMENT:
                near.append((len(differing), other.parent.name, differing))
        if near:
            _, name, differing = min(near)
            words = [f"{path} ({_value(ours)} here, {_value(theirs)} there)" for path, theirs, ours in differing]
            more = f" and {len(words) - MOST_SHOWN} more" if len(words) > MOST_SHOWN else ""
            verb = "differs" if len(words) == 1 else "differ"
            return f"starts anew: {', '.join(words[:MOST_SHOWN])}{more} {verb} from run {name}"
    return ""


def _value(value: Any) -> str:
    return "not read" if value is NOT_READ else shown(value)


def _read(file: Path) -> RunConfig | None:
    import yaml

    try:
        return build_config(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError, ConfigError, AttributeError):
        return None


def _differences(there: RunConfig, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """(path, value there, value here) of what can change the results of `config`'s stage or its inputs."""
    ours = _results(build_config(config_to_mapping(config)))
    theirs = _results(there)
    paths = dict.fromkeys([*ours, *theirs])
    pairs = ((path, theirs.get(path, NOT_READ), ours.get(path, NOT_READ)) for path in paths)
    return [(path, there, here) for path, there, here in pairs if there != here]


def _results(config: RunConfig) -> dict[str, Any]:
    return {option.path: option.value for option in _effective(config, [config, *input_runs(config)])}
