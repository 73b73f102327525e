"""What `hydra.sweeper.*` can be, checked before anything is launched."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rlhf.config.build import ConfigError, build_group, no_such_option
from rlhf.config.setting import ALWAYS, setting
from rlhf.urls import secret_in_url

DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class StudySettings:
    n_trials: int = setting("trials of each study; null: 20, or every point of sampler=grid", read_by=ALWAYS, low=1)
    objective: str = setting(
        "reward_at_budget: the best gain in eval/reward within the KL budget; kl_efficiency: E(K); reward_and_kl: two",
        read_by=ALWAYS,
        choices=("reward_at_budget", "kl_efficiency", "reward_and_kl"),
    )
    kl_budget: float | None = setting("nats; null: the first of dataset.kl_budgets", read_by=ALWAYS, above=0)
    constraint: bool = setting(
        "whether only trials whose last eval/kl, mean over seeds, lies within the budget are feasible", read_by=ALWAYS
    )
    sampler: str = setting("Optuna's", read_by=ALWAYS, choices=("tpe", "random", "qmc", "grid"))
    sampler_seed: int = setting("seed of the sampler", read_by=ALWAYS, low=0)
    pruner: str = setting(
        "median: worse than the median of earlier trials at the same samples; halving: successive halving",
        read_by=ALWAYS,
        choices=("none", "median", "halving"),
    )
    storage: str | None = setting(
        "null: <sweep folder>/study.journal; another journal file; a database URL without a password, as "
        "mysql://me@host/db; or env:VARIABLE, the environment variable that holds such a URL, password included",
        read_by=ALWAYS,
    )
    retry_failed: bool = setting(
        "try the settings of failed trials again, each as a trial beyond n_trials", read_by=ALWAYS
    )


DEFAULTS: dict[str, Any] = {
    "n_trials": None,
    "objective": "reward_at_budget",
    "kl_budget": None,
    "constraint": False,
    "sampler": "tpe",
    "sampler_seed": 0,
    "pruner": "none",
    "storage": None,
    "retry_failed": False,
}

AXES: dict[str, Any] = {"params": {}, "spaces": {}}
"""`params`: axes that a file of sweeps/ gives, as on the command line ("apa,ppo"), which wins over them. `spaces`:
further axes and search spaces where a group has a certain option, or an axis a value: {apa: {algo.lam: "1,2"}}."""


def study_settings(given: Mapping[str, Any]) -> StudySettings:
    """Raises: ConfigError: with every value that cannot be."""
    values = dict(given)
    if values.get("n_trials") is None:  # a grid has a number of its own
        values["n_trials"] = sys.maxsize if values.get("sampler") == "grid" else DEFAULT_TRIALS
    settings = build_group(StudySettings, values, "hydra.sweeper")
    problems = []
    if settings.storage is not None and (secret := _password(settings.storage)):
        line = f"holds {secret}; put the whole URL into an environment variable, and type its name: env:VARIABLE"
        problems.append(f"hydra.sweeper.storage: {line}")
    if settings.objective == "reward_and_kl" and settings.pruner != "none":
        problems.append("hydra.sweeper.pruner: objective=reward_and_kl has two values, and pruning needs one; use none")
    if problems:
        raise ConfigError(problems)
    return settings


def unknown_settings(names: Iterable[str]) -> list[str]:
    """One line for each name that `hydra.sweeper` lacks."""
    known = {f"hydra.sweeper.{name}" for name in (*(field.name for field in fields(StudySettings)), *AXES)}
    paths = [f"hydra.sweeper.{name}" for name in names]
    return [no_such_option(path, known) for path in paths if path not in known]


def _password(storage: str) -> str | None:
    """What of a database URL seems secret; a user name alone is not."""
    without_name = re.sub(r"://[^:@/?#]+@", "://", storage)
    return secret_in_url(without_name) if "://" in storage else None
