"""A run of several processes: they meet by the environment's addresses and add up their ranks."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder


def execute(run: RunConfig) -> dict[str, Any]:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    total = torch.tensor(float(distributed.get_rank()))
    distributed.all_reduce(total)
    sums = Path(run.cache_dir).parent / "sums"
    sums.mkdir(exist_ok=True)
    (sums / str(distributed.get_rank())).write_text(str(total.item()))
    summary = {"status": "finished", "local_rank": os.environ["LOCAL_RANK"]}
    if distributed.get_rank() == 0:
        run_folder(run).mkdir(parents=True, exist_ok=True)
        (run_folder(run) / "summary.json").write_text(json.dumps(summary))
    distributed.destroy_process_group()
    return summary
