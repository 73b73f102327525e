"""Settings of the machine (device, precision, threads, how many runs share it) and of tracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf.config.setting import HAS_INPUTS, ON_GPU, TRAINING, option_is, setting


def _scheduling(meaning: str, **stated: Any) -> Any:
    """What launchers read; it changes no run's results."""
    return setting(meaning, identity=False, **stated)


@dataclass(kw_only=True)
class SlurmConfig:
    """What sbatch is told, named as there; none of it changes a run's results."""

    partition: str | None = _scheduling("partition; null: the cluster's default")
    account: str | None = _scheduling("account charged")
    qos: str | None = _scheduling("quality of service")
    time_minutes: int = _scheduling(
        "time limit of a job, minutes; a run that meets it checkpoints and is requeued",
        also_called="time time_limit timeout_min walltime",
        low=1,
    )
    nodes: int = _scheduling("nodes of one job", low=1)
    tasks_per_node: int = _scheduling("processes (ranks) of one run on each node", low=1)
    gpus_per_node: int | None = _scheduling(
        "GPUs of a job on each node; null: none are asked for", also_called="gres", low=1
    )
    cpus_per_task: int | None = _scheduling(
        "null: hardware.threads for each of the packed runs", also_called="cpus", low=1
    )
    memory_gb: float | None = _scheduling(
        "memory of a job on each node, GB; null: the default", also_called="mem mem_gb memory", above=0
    )
    constraint: str | None = _scheduling("node features")
    dependency: str | None = _scheduling("a condition for all jobs, as afterok:123")
    exclusive: bool = _scheduling("share nodes with no other job")
    mail_user: str | None = _scheduling("who gets mail")
    mail_type: str | None = _scheduling("of what, as END,FAIL")
    sbatch: list[str] = _scheduling("further options, as nice=100 or reboot")
    setup: list[str] = _scheduling("shell lines before the run, as module load cuda")
    signal_seconds: int = _scheduling("warning before the time limit, seconds: one iteration must fit", low=1)
    pack: int = _scheduling("runs of one job side by side", low=1)
    wait: bool = _scheduling("false: submit and leave; the same command picks the results up")


@dataclass(kw_only=True)
class HardwareConfig:
    device: str = setting("where tensors live", also_called="gpu cuda", choices=("cpu", "cuda"))
    precision: str = setting(
        "float32, or bfloat16 or (with loss scaling) float16 autocast over float32 weights",
        also_called="bf16 fp16 dtype torch_dtype mixed_precision",
        choices=("fp32", "bf16", "fp16"),
    )
    gradient_checkpointing: bool = setting(
        "compute activations again in the backward pass instead of keeping them",
        read_by=TRAINING,
        also_called="use_gradient_checkpointing",
    )
    ranks: int = setting(
        "processes of one run that share its batches (torch.distributed)",
        also_called="num_gpus n_gpus gpus nproc_per_node world_size num_processes",
        low=1,
    )
    sharding: str = setting(
        "each rank holds all weights, or a part of each block's (fully_shard); runs before RL that do not train all "
        "weights run as with none",
        read_by=TRAINING,
        choices=("none", "fsdp"),
    )
    threads: int = setting(
        "torch threads of each rank; part of a run's identity, since another number gives other bits",
        also_called="num_threads num_workers",
        low=1,
    )
    input_threads: int = setting(
        "torch threads of SFT and reward-model runs that come before RL and have the machine to themselves",
        read_by=HAS_INPUTS,
        low=1,
    )
    parallel_runs: int | None = setting(
        "runs at a time in a sweep; null: as many as the cores and memory carry",
        also_called="jobs n_jobs workers",
        low=1,
        identity=False,
    )
    runs_per_gpu: int = setting("runs that share one GPU", read_by=ON_GPU, low=1, identity=False)
    slurm: SlurmConfig | None = setting("jobs of a SLURM cluster; null: children of this process", identity=False)


_ON_WANDB = option_is("tracking.wandb", "auto", "offline", remedy="tracking=wandb")


@dataclass(kw_only=True)
class TrackingConfig:
    tensorboard: bool = setting(
        "write TensorBoard's event files into the run's folder, beside metrics.jsonl; typed as tracking=tensorboard",
        identity=False,
    )
    wandb: str = setting(
        "W&B: online where one is logged in and offline otherwise, always offline, or not at all",
        also_called="use_wandb report_to log_with",
        choices=("auto", "offline", "off"),
        identity=False,
    )
    project: str = setting("W&B project", read_by=_ON_WANDB, also_called="wandb_project project_name", identity=False)
    entity: str | None = setting("W&B user or team; null: the account's default", read_by=_ON_WANDB, identity=False)
    tags: list[str] = setting("W&B tags beside the algorithm's name", read_by=_ON_WANDB, identity=False)
    init_timeout: float = setting(
        "seconds to wait for the W&B server before going on offline", read_by=_ON_WANDB, above=0, identity=False
    )
