"""Hydra's side of launching: our sweepers start runs through `sweeps.experiment`, foreign ones through this plugin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class HarnessLauncherConf:
    _target_: str = "sweeps.launcher.HarnessLauncher"
    target: str = "rlhf.run:execute"


class HarnessLauncher(Launcher):
    """Children of this machine, or SLURM jobs where `hardware.slurm` is set."""

    def __init__(self, target: str = "rlhf.run:execute") -> None:
        """Args: target: "module:function" that takes a RunConfig and returns the run's summary."""
        self.target = target

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.sweep_config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """For sweepers other than ours: all runs to their end, in Hydra's form."""
        from sweeps.experiment import hydra_returns

        return hydra_returns(self.target, self.context, self.sweep_config, job_overrides)
