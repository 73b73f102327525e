"""Packages and model folders that a config names, looked for before any stage starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import SCORING_STAGES
from rlhf.config.packages import PACKAGES

MODEL_FILES = ("config.json", "adapter_config.json")


def check_inputs(runs: Iterable[RunConfig]) -> None:
    """Refuse runs whose packages are not installed, or whose folders of weights hold no model.

    Args:
        runs: with those that they start from and that are still to be done.

    Raises:
        ConfigError: with all problems, one a line.
    """
    if problems := dict.fromkeys(problem for run in runs for problem in (*_packages(run), *_folders(run))):
        raise ConfigError(list(problems))


def _packages(run: RunConfig) -> Iterator[str]:
    for package in PACKAGES:
        value = attrgetter(package.option)(run)
        if value in package.values and package.when(run) and (problem := package.missing_for(value)):
            yield problem


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
