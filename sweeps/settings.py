"""What `hydra.sweeper.*` can be, checked before anything is launched."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlhf.config.build import ConfigError, no_such_option
from rlhf.urls import secret_in_url

OBJECTIVES = ("reward_at_budget", "kl_efficiency", "reward_and_kl")
SAMPLERS = ("tpe", "random", "qmc", "grid")
PRUNERS = ("none", "median", "halving")

DEFAULT_TRIALS = 20

# The names of our one sweeper in Hydra's group; the second is for who looks for it.
SWEEPERS = ("harness", "optuna")


@dataclass
class SweeperConf:
    """As Hydra composes it. Any, so that a wrong value is refused in our words."""

    _target_: str = "sweeps.optuna_sweeper.HarnessSweeper"
    # Axes that a file of sweeps/ gives, as on the command line ("apa,ppo"); the command line wins over them.
    params: dict[str, Any] = field(default_factory=dict)
    # Further axes and search spaces where a group has a certain option, or an axis a value: {apa: {algo.lam: "1,2"}}.
    spaces: dict[str, Any] = field(default_factory=dict)
    # Trials of each study; null: 20, or every point of sampler=grid.
    n_trials: Any = None
    # reward_at_budget: the best gain in eval/reward within the KL budget; kl_efficiency: E(K); reward_and_kl: two.
    objective: Any = "reward_at_budget"
    # Nats; null: the first of dataset.kl_budgets.
    kl_budget: Any = None
    # Whether a trial counts as feasible only where its last eval/kl, mean over seeds, lies within the budget.
    constraint: Any = False
    sampler: Any = "tpe"
    sampler_seed: Any = 0
    # median: worse than the median of earlier trials at the same samples; halving: successive halving.
    pruner: Any = "none"
    # null: <sweep folder>/study.journal; another journal file; a database URL without a password, as mysql://me@host/db;
    # or env:VARIABLE, the environment variable that holds such a URL, password included.
    storage: Any = None
    # Try the settings of failed trials again, each as a trial beyond n_trials.
    retry_failed: Any = False


@dataclass(frozen=True)
class StudySettings:
    """`SweeperConf` without its axes, with every value as it must be."""

    n_trials: int
    objective: str
    kl_budget: float | None
    constraint: bool
    sampler: str
    sampler_seed: int
    pruner: str
    storage: str | None
    retry_failed: bool


def study_settings(given: Mapping[str, Any]) -> StudySettings:
    """Raises: ConfigError: with every value that cannot be."""
    if problems := unknown_settings(given):
        raise ConfigError(problems)
    values = dict(given)
    if values["n_trials"] is None:
        values["n_trials"] = sys.maxsize if values["sampler"] == "grid" else DEFAULT_TRIALS  # a grid has its own number
    problems = [
        *_one_of(values, "objective", OBJECTIVES),
        *_one_of(values, "sampler", SAMPLERS),
        *_one_of(values, "pruner", PRUNERS),
        *_integer(values, "n_trials", 1),
        *_integer(values, "sampler_seed", 0),
        *_switch(values, "constraint"),
        *_switch(values, "retry_failed"),
        *_budget(values["kl_budget"]),
    ]
    storage = values["storage"]
    if storage is not None and not (isinstance(storage, str) and storage):
        problems.append(f"hydra.sweeper.storage: {storage!r} is no file and no database URL")
    elif storage is not None and (secret := _password(storage)):
        line = f"holds {secret}; put the whole URL into an environment variable, and type its name: env:VARIABLE"
        problems.append(f"hydra.sweeper.storage: {line}")
    if values["objective"] == "reward_and_kl" and values["pruner"] != "none":
        problems.append("hydra.sweeper.pruner: objective=reward_and_kl has two values, and pruning needs one; use none")
    if problems:
        raise ConfigError(problems)
    return StudySettings(**{one.name: values[one.name] for one in fields(StudySettings)})


def unknown_settings(names: Iterable[str]) -> list[str]:
    """One line for each name that `hydra.sweeper` lacks."""
    known = {f"hydra.sweeper.{one.name}" for one in fields(SweeperConf) if not one.name.startswith("_")}
    paths = [f"hydra.sweeper.{name}" for name in names]
    return [no_such_option(path, known) for path in paths if path not in known]


def _password(storage: str) -> str | None:
    """What of a database URL seems secret; a user name alone is none."""
    without_name = re.sub(r"://[^:@/?#]+@", "://", storage)
    return secret_in_url(without_name) if "://" in storage else None


def _one_of(values: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> list[str]:
    value = values[name]
    return [] if value in choices else [f"hydra.sweeper.{name}: {value!r} is not one of {', '.join(choices)}"]


def _integer(values: Mapping[str, Any], name: str, low: int) -> list[str]:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int):
        return [f"hydra.sweeper.{name}: {value!r} is not an integer"]
    return [] if value >= low else [f"hydra.sweeper.{name}: {value} is below {low}"]


def _switch(values: Mapping[str, Any], name: str) -> list[str]:
    value = values[name]
    return [] if isinstance(value, bool) else [f"hydra.sweeper.{name}: {value!r} is not true or false"]


def _budget(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return [f"hydra.sweeper.kl_budget: {value!r} is not a number"]
    return [] if value > 0 else [f"hydra.sweeper.kl_budget: {value} is not above 0"]
