"""Settings of the machine: device, precision, threads and how many runs share it."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.readers import ALWAYS, HAS_INPUTS, TRAINING, Is
from rlhf.config.setting import scheduling, setting


@dataclass(kw_only=True)
class SlurmConfig:
    """What sbatch is told, named as there; none of it changes a run's results."""

    partition: str | None = scheduling("partition; null: the cluster's default")
    account: str | None = scheduling("account charged")
    qos: str | None = scheduling("quality of service")
    time_minutes: int = scheduling(
        "time limit of a job, minutes; a run that meets it checkpoints and is requeued",
        also_called=("time", "time_limit", "timeout_min", "walltime"),
        low=1,
    )
    nodes: int = scheduling("nodes of one job", low=1)
    tasks_per_node: int = scheduling("processes (ranks) of one run on each node", low=1)
    gpus_per_node: int | None = scheduling(
        "GPUs of a job on each node; null: none are asked for", also_called=("gres",), low=1
    )
    cpus_per_task: int | None = scheduling(
        "null: hardware.threads for each of the packed runs", also_called=("cpus",), low=1
    )
    memory_gb: float | None = scheduling(
        "memory of a job on each node, GB; null: the default", also_called=("mem", "mem_gb", "memory"), above=0
    )
    constraint: str | None = scheduling("node features")
    dependency: str | None = scheduling("a condition for all jobs, as afterok:123")
    exclusive: bool = scheduling("share nodes with no other job")
    mail_user: str | None = scheduling("who gets mail")
    mail_type: str | None = scheduling("of what, as END,FAIL")
    sbatch: list[str] = scheduling("further options, as nice=100 or reboot")
    setup: list[str] = scheduling("shell lines before the run, as module load cuda")
    signal_seconds: int = scheduling("warning before the time limit, seconds: one iteration must fit", low=1)
    pack: int = scheduling("runs of one job side by side", low=1)
    wait: bool = scheduling("false: submit and leave; the same command picks the results up")


@dataclass(kw_only=True)
class HardwareConfig:
    device: str = setting("where tensors live", read_by=ALWAYS, also_called=("gpu", "cuda"), choices=("cpu", "cuda"))
    precision: str = setting(
        "float32, or bfloat16 or (with loss scaling) float16 autocast over float32 weights",
        read_by=ALWAYS,
        also_called=("bf16", "fp16", "dtype", "torch_dtype", "mixed_precision"),
        choices=("fp32", "bf16", "fp16"),
    )
    gradient_checkpointing: bool = setting(
        "compute activations again in the backward pass instead of keeping them",
        read_by=TRAINING,
        also_called=("use_gradient_checkpointing",),
    )
    ranks: int = setting(
        "processes of one run that share its batches (torch.distributed)",
        read_by=ALWAYS,
        also_called=("num_gpus", "n_gpus", "gpus", "nproc_per_node", "world_size", "num_processes"),
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
        read_by=ALWAYS,
        also_called=("num_threads", "num_workers"),
        low=1,
    )
    input_threads: int = setting(
        "torch threads of SFT and reward-model runs that come before RL and have the machine to themselves",
        read_by=HAS_INPUTS,
        low=1,
    )
    parallel_runs: int | None = setting(
        "runs at a time in a sweep; null: as many as the cores and memory carry",
        read_by=ALWAYS,
        also_called=("jobs", "n_jobs", "workers"),
        low=1,
        identity=False,
    )
    runs_per_gpu: int = setting(
        "runs that share one GPU",
        read_by=Is("hardware.device", ("cuda",), remedy="hardware=gpu"),
        low=1,
        identity=False,
    )
    slurm: SlurmConfig | None = setting(
        "jobs of a SLURM cluster; null: children of this process", read_by=ALWAYS, identity=False
    )
