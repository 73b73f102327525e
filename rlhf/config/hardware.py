"""Settings of the machine: device, precision, threads and how many runs share it."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import setting


@dataclass(kw_only=True)
class SlurmConfig:
    """What sbatch is told, named as there; none of it changes a run's results."""

    partition: str | None = setting("partition; null: the cluster's default", identity=False)
    account: str | None = setting("account charged", identity=False)
    qos: str | None = setting("quality of service", identity=False)
    time_minutes: int = setting(
        "time limit of a job; a run that meets it checkpoints and is requeued", low=1, identity=False
    )
    nodes: int = setting("nodes of one job", low=1, identity=False)
    tasks_per_node: int = setting("processes (ranks) of one run on each node", low=1, identity=False)
    gpus_per_node: int | None = setting("GPUs of a job on each node; null: none are asked for", low=1, identity=False)
    cpus_per_task: int | None = setting("null: hardware.threads for each of the packed runs", low=1, identity=False)
    memory_gb: float | None = setting("memory of a job on each node, GB; null: the default", above=0, identity=False)
    constraint: str | None = setting("node features", identity=False)
    dependency: str | None = setting("a condition for all jobs, as afterok:123", identity=False)
    exclusive: bool = setting("share nodes with no other job", identity=False)
    mail_user: str | None = setting("who gets mail", identity=False)
    mail_type: str | None = setting("of what, as END,FAIL", identity=False)
    sbatch: list[str] = setting("further options, as nice=100 or reboot", identity=False)
    setup: list[str] = setting("shell lines before the run, as module load cuda", identity=False)
    signal_seconds: int = setting(
        "warning before the time limit, seconds: one iteration must fit", low=1, identity=False
    )
    pack: int = setting("runs of one job side by side", low=1, identity=False)
    wait: bool = setting("false: submit and leave; the same command picks the results up", identity=False)


@dataclass(kw_only=True)
class HardwareConfig:
    device: str = setting("where tensors live", choices=("cpu", "cuda"))
    precision: str = setting(
        "float32, or bfloat16 or (with loss scaling) float16 autocast over float32 weights",
        choices=("fp32", "bf16", "fp16"),
    )
    gradient_checkpointing: bool = setting("compute activations again in the backward pass instead of keeping them")
    ranks: int = setting("processes of one run that share its batches (torch.distributed)", low=1)
    sharding: str = setting(
        "each rank holds all weights, or a part of each block's (fully_shard); runs before RL that do not train all "
        "weights run as with none",
        choices=("none", "fsdp"),
    )
    threads: int = setting(
        "torch threads of each rank; part of a run's identity, since another number gives other bits", low=1
    )
    input_threads: int = setting(
        "torch threads of SFT and reward-model runs that come before RL and have the machine to themselves", low=1
    )
    parallel_runs: int | None = setting(
        "runs at a time in a sweep; null: as many as the cores and memory carry", low=1, identity=False
    )
    runs_per_gpu: int = setting("runs that share one GPU", low=1, identity=False)
    slurm: SlurmConfig | None = setting("jobs of a SLURM cluster; null: children of this process", identity=False)
