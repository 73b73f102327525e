"""Settings of the machine: device, precision, threads and how many runs share it."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import setting


@dataclass(kw_only=True)
class HardwareConfig:
    device: str = setting("where tensors live", choices=("cpu", "cuda"))
    precision: str = setting("float32, or bfloat16 autocast over float32 weights", choices=("fp32", "bf16"))
    threads: int = setting(
        "torch threads of one run; part of its identity, since another number gives other bits", low=1
    )
    input_threads: int = setting(
        "torch threads of SFT and reward-model runs that come before RL and have the machine to themselves", low=1
    )
    parallel_runs: int | None = setting(
        "runs at a time in a sweep; null: as many as the cores and memory carry", low=1, identity=False
    )
