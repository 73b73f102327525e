"""Settings of the machine: device, precision, threads and how many runs share it."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.readers import ALWAYS, HAS_INPUTS, TRAINING, Is
from rlhf.config.setting import setting


@dataclass(kw_only=True)
class SlurmConfig:
    """What sbatch is told, named as there; none of it changes a run's results."""

    partition: str | None = setting("partition; null: the cluster's default", read_by=ALWAYS, identity=False)
    account: str | None = setting("account charged", read_by=ALWAYS, identity=False)
    qos: str | None = setting("quality of service", read_by=ALWAYS, identity=False)
    time_minutes: int = setting(
        "time limit of a job, minutes; a run that meets it checkpoints and is requeued",
        read_by=ALWAYS,
        also_called=("time", "time_limit", "timeout_min", "walltime"),
        low=1,
        identity=False,
    )
    nodes: int = setting("nodes of one job", read_by=ALWAYS, low=1, identity=False)
    tasks_per_node: int = setting("processes (ranks) of one run on each node", read_by=ALWAYS, low=1, identity=False)
    gpus_per_node: int | None = setting(
        "GPUs of a job on each node; null: none are asked for",
        read_by=ALWAYS,
        also_called=("gres",),
        low=1,
        identity=False,
    )
    cpus_per_task: int | None = setting(
        "null: hardware.threads for each of the packed runs",
        read_by=ALWAYS,
        also_called=("cpus",),
        low=1,
        identity=False,
    )
    memory_gb: float | None = setting(
        "memory of a job on each node, GB; null: the default",
        read_by=ALWAYS,
        also_called=("mem", "mem_gb", "memory"),
        above=0,
        identity=False,
    )
    constraint: str | None = setting("node features", read_by=ALWAYS, identity=False)
    dependency: str | None = setting("a condition for all jobs, as afterok:123", read_by=ALWAYS, identity=False)
    exclusive: bool = setting("share nodes with no other job", read_by=ALWAYS, identity=False)
    mail_user: str | None = setting("who gets mail", read_by=ALWAYS, identity=False)
    mail_type: str | None = setting("of what, as END,FAIL", read_by=ALWAYS, identity=False)
    sbatch: list[str] = setting("further options, as nice=100 or reboot", read_by=ALWAYS, identity=False)
    setup: list[str] = setting("shell lines before the run, as module load cuda", read_by=ALWAYS, identity=False)
    signal_seconds: int = setting(
        "warning before the time limit, seconds: one iteration must fit", read_by=ALWAYS, low=1, identity=False
    )
    pack: int = setting("runs of one job side by side", read_by=ALWAYS, low=1, identity=False)
    wait: bool = setting(
        "false: submit and leave; the same command picks the results up", read_by=ALWAYS, identity=False
    )


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
