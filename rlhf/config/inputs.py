"""Packages and model folders that a config names, looked for before any stage starts. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import SCORING_STAGES

EXTRAS = {"datasets": "hub", "sklearn": "real", "bitsandbytes": "quantized", "accelerate": "quantized"}
"""By package: the extra of this project that installs it."""
READ_WITH = {"hh": "datasets", "tldr": "datasets", "stackexchange": "datasets", "reviews": "sklearn"}
"""By dataset.name."""
MODEL_FILES = ("config.json", "adapter_config.json")


def check_inputs(runs: Iterable[RunConfig]) -> None:
    """Refuse runs whose packages are not installed, or whose folders of weights hold no model.

    Raises:
        ConfigError: with all problems, one a line.
    """
    if problems := dict.fromkeys(problem for run in runs for problem in (*_packages(run), *_folders(run))):
        raise ConfigError(list(problems))


def _packages(run: RunConfig) -> Iterator[str]:
    needed = [(f"dataset={run.dataset.name}", READ_WITH.get(run.dataset.name))]
    if run.model.frozen_weights in ("int8", "int4"):
        option = f"model.frozen_weights: {run.model.frozen_weights}"
        needed += [(option, "bitsandbytes"), (option, "accelerate")]
    for option, package in needed:
        if package is not None and importlib.util.find_spec(package) is None:
            yield f"{option} needs the package {package}: pip install -e '.[{EXTRAS[package]}]'"


def _folders(run: RunConfig) -> Iterator[str]:
    scored = run.stage.name in SCORING_STAGES
    folders = {
        "model.path": run.model.path if run.model.source == "pretrained" else None,
        "evaluation.policy": run.evaluation.policy if run.stage.name == "evaluate" else None,
        "reward.path": run.reward.path if scored and run.reward.name == "learned" else None,
        "reward.base": run.reward.base if scored else None,
    }
    for option, name in folders.items():
        folder = Path(name or "")
        if name is None or not folder.is_dir() or any((folder / file).is_file() for file in MODEL_FILES):
            continue
        final = folder / "final"
        remedy = f"give {final}" if (final / MODEL_FILES[0]).is_file() else "give a folder that holds a whole model"
        yield f"{option}: {folder} has no {MODEL_FILES[0]}; {remedy}"
