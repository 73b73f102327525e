"""Which machine, versions and source tree do a run, and how much memory it took: what summary.json says of them."""

from __future__ import annotations

import contextlib
import platform
import resource
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("transformers", "peft", "hydra-core", "wandb", "optuna", "numpy")


def provenance() -> dict[str, Any]:
    """Host, processor, versions and commit. To be asked when a run starts: the tree may be edited meanwhile."""
    return {
        "hostname": socket.gethostname(),
        "cpu": _cpu_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # which says +cpu or +cu130 too
            **{name: version(name) for name in PACKAGES},
        },
        "git_commit": _git_commit(),
    }


def peak_memory(device: torch.device) -> dict[str, float]:
    """MiB of this process, and of its GPU's tensors where it has one."""
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 2**20}
    if device.type == "cuda":
        peak["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peak


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of this source tree, with + where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
