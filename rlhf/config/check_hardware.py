"""Checks of `hardware`: ranks, FSDP, SLURM. `rlhf.config.check` has the others and asks for these."""

from __future__ import annotations

from rlhf.config import RunConfig, TrainableConfig


def divides(inner: int, inner_path: str, outer: int, outer_path: str) -> list[str]:
    """The line that says so where `inner` does not divide `outer`."""
    return [f"{inner_path}: {inner} does not divide {outer_path} = {outer}"] if outer % inner else []


def rank_problems(config: RunConfig) -> list[str]:
    """Batches that ranks cannot share, and weights that they cannot cut up."""
    hardware, ranks = config.hardware, config.hardware.ranks
    problems = []
    if hardware.sharding == "fsdp":
        problems += _fsdp(config)
    slurm = hardware.slurm
    if slurm is not None and slurm.nodes * slurm.tasks_per_node != ranks:
        problems.append(
            f"hardware.ranks: {ranks}, but hardware.slurm.nodes x tasks_per_node = "
            f"{slurm.nodes * slurm.tasks_per_node}; make them equal"
        )
    problems += divides(ranks, "hardware.ranks", config.rollout.num_responses, "rollout.num_responses")
    for section, path in {"optimization": "minibatch_size", "sft": "batch_size", "reward_model": "batch_size"}.items():
        settings = getattr(config, section)
        size, micro = getattr(settings, path), settings.micro_batch_size
        if size % ranks:
            problems += divides(ranks, "hardware.ranks", size, f"{section}.{path}")
        elif ranks > 1 and micro < size // ranks:  # a larger one is the rank's whole part
            problems += divides(
                micro, f"{section}.micro_batch_size", size // ranks, f"{section}.{path} / hardware.ranks"
            )
    return problems


def _fsdp(config: RunConfig) -> list[str]:
    problems = []
    if config.hardware.ranks == 1:
        problems.append("hardware.sharding: fsdp shares weights among ranks; hardware.ranks is 1")
    if config.model.frozen_weights in ("int8", "int4"):
        problems.append("hardware.sharding: fsdp cannot cut up int8 or int4; use model.frozen_weights=bfloat16")
    section, train = _trained(config)
    if train.mode != "all":
        problems.append(f"hardware.sharding: fsdp is for {section}.mode=all; {train.mode} trains little, use none")
    if config.algo.heads:
        problems.append(f"hardware.sharding: fsdp does not cut up {config.algo.name}'s heads; use none")
    if not config.offline.refresh_values:
        problems.append("hardware.sharding: fsdp does not keep values for offline.refresh_values=false; use none")
    if config.checkpoint.save_final == "trained":
        problems.append("hardware.sharding: fsdp trains the whole policy; use checkpoint.save_final=full")
    return problems


def _trained(config: RunConfig) -> tuple[str, TrainableConfig]:
    """Which parameters the stage itself trains, and what says so; its input runs are configs of their own."""
    stages = {"sft": config.sft.train, "reward_model": config.reward_model.train}
    if config.stage.name in stages:
        return f"{config.stage.name}.train", stages[config.stage.name]
    return "model.train", config.model.train


def slurm_problems(config: RunConfig) -> list[str]:
    """Jobs that could not run, or not as they say."""
    slurm, at_a_time = config.hardware.slurm, config.hardware.parallel_runs
    if slurm is None:
        return []
    problems = []
    if slurm.signal_seconds >= 60 * slurm.time_minutes:
        problems.append(
            f"hardware.slurm.signal_seconds: {slurm.signal_seconds} is not below the time limit of "
            f"{slurm.time_minutes} minutes; every job would be warned as it starts"
        )
    if slurm.pack > 1 and slurm.nodes * slurm.tasks_per_node > 1:
        problems.append("hardware.slurm.pack: runs of several processes have a job each; pack=1")
    if at_a_time is not None and at_a_time < slurm.pack:
        problems.append(f"hardware.slurm.pack: {slurm.pack} in a job, and hardware.parallel_runs allows {at_a_time}")
    return problems
