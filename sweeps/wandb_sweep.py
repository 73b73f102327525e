"""The sweep's own run on W&B, beside those of its runs: curves over seeds, and the KL efficiency of each setting."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config import RunConfig

if TYPE_CHECKING:
    from analysis.summary import Comparison

FOLDER = "curves"
"""Below the sweep's folder, beside the run folders: one pattern, */wandb, finds the W&B files of all."""


def log_sweep(run: RunConfig, folder: Path, comparison: Comparison) -> None:
    """Log what the sweep's finished runs show by now, once for each set of them.

    Args:
        run: one of the sweep's runs, for `tracking`.
        folder: the sweep's.
    """
    curves = folder / FOLDER
    records = [run.record for setting in comparison.settings for run in setting.runs]
    finished = sorted(record.id for record in records)
    times = sorted((record.id, record.summary.get("finished_at")) for record in records)
    state = hashlib.sha256(json.dumps(times).encode()).hexdigest()[:8]
    marker = curves / f"{state}.logged"
    if run.tracking.wandb == "off" or not finished or marker.exists():
        return
    curves.mkdir(exist_ok=True)
    marker.touch()  # first: a command that is killed below would otherwise have every row logged twice
    from analysis.wandb_run import log_curves, sweep_curves
    from rlhf.runs.mirror import open_wandb_run

    wandb_run = open_wandb_run(
        run.tracking,
        curves,
        id=f"{run.sweep_name}-curves-{state}",
        name=f"{run.sweep_name} curves",
        group=run.sweep_name,
        job_type="sweep",
        tags=[run.dataset.name, run.model.name, *run.tracking.tags],
        config={"runs": finished, "sweep_name": run.sweep_name},
    )
    log_curves(wandb_run, sweep_curves(comparison))
    wandb_run.finish()
