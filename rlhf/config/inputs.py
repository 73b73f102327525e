"""Packages and model folders that a config names, looked for before any stage starts. Imports no torch.

A job may run where its files lie elsewhere, so that this is no check of the config itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import SCORING_STAGES

HUB, REAL = "pip install -e '.[hub]'", "pip install -e '.[real]'"
PACKAGES = {
    "hh": {"datasets": HUB},
    "tldr": {"datasets": HUB},
    "stackexchange": {"datasets": HUB},
    "reviews": {"sklearn": REAL},
}
"""By dataset.name: what it is read with, beside what every run needs, and how that is installed."""
QUANTISED = dict.fromkeys(("bitsandbytes", "accelerate"), "pip install -e '.[quantized]'")

MODEL_FILES = ("config.json", "adapter_config.json")


def check_inputs(runs: Iterable[RunConfig]) -> None:
    """Refuse runs whose packages are not installed, or whose folders of weights hold no model.

    Raises:
        ConfigError: with all problems, one a line.
    """
    if problems := dict.fromkeys(problem for run in runs for problem in (*_packages(run), *_folders(run))):
        raise ConfigError(list(problems))


def _packages(run: RunConfig) -> Iterator[str]:
    needed = {f"dataset={run.dataset.name}": PACKAGES.get(run.dataset.name, {})}
    if run.model.frozen_weights in ("int8", "int4"):
        needed[f"model.frozen_weights: {run.model.frozen_weights}"] = QUANTISED
    for option, packages in needed.items():
        for package, install in packages.items():
            if importlib.util.find_spec(package) is None:
                yield f"{option} needs the package {package}: {install}"


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
        inner = folder / "final"
        remedy = f"give {inner}" if (inner / MODEL_FILES[0]).is_file() else "give a folder that holds a whole model"
        yield f"{option}: {folder} has no {MODEL_FILES[0]}; {remedy}"
