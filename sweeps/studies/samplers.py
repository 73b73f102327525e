"""Optuna's samplers, so seeded that a study which was killed goes on without repeating itself."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from sweeps.settings import StudySettings
from sweeps.studies.space import Dimension

# User attribute of a second try: the number of the trial that failed.
RETRY_OF = "retry_of"

# Of trials whose runs are compared with their own earlier median.
TRIALS_BEFORE_PRUNING = 4


def sampler(settings: StudySettings, dimensions: Sequence[Dimension]) -> BaseSampler:
    if settings.sampler == "grid":
        return GridPoints(dimensions)
    if settings.sampler == "qmc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Its place in the sequence is kept in the study, for one seed.
            return WholeSequence(dimensions, settings.sampler_seed)
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    return SeededByTrial(makers[settings.sampler], settings.sampler_seed)


def pruner(settings: StudySettings) -> optuna.pruners.BasePruner:
    return {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING),
        "halving": optuna.pruners.SuccessiveHalvingPruner,
    }[settings.pruner]()


class SeededByTrial(BaseSampler):
    """Draws as a function of (seed, number of the trial); a plain one would begin its sequence again on resume."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._inner = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner = self._make(int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)


class WholeSequence(optuna.samplers.QMCSampler):
    """Sobol's sequence from the first trial on. Optuna's own draws at random, each time anew, until one has ended."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._space = {one.key: distribution(one) for one in dimensions}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space


class GridPoints(BaseSampler):
    """Each point of a finite space once, in order; the trial's number says which, also where drivers share a study.

    Optuna's own wants to stop the study, which ask-and-tell cannot.
    """

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        self._dimensions = dimensions
        self._others = optuna.samplers.RandomSampler(seed=0)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {one.key: distribution(one) for one in self._dimensions}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if RETRY_OF in trial.user_attrs:
            return {}  # it has its values
        points = list(itertools.product(*(one.points or [] for one in self._dimensions)))
        point = points[place_of(study, trial.number) % len(points)]
        return dict(zip((one.key for one in self._dimensions), point, strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._others.sample_independent(study, trial, param_name, param_distribution)


def place_of(study: optuna.Study, number: int) -> int:
    """Which trial of the study it is, second tries not counted: the same for every driver that shares it."""
    return sum(one.number < number and RETRY_OF not in one.user_attrs for one in study.get_trials(deepcopy=False))


def distribution(one: Dimension) -> BaseDistribution:
    if one.choices:
        return optuna.distributions.CategoricalDistribution(one.choices)
    if one.integer:
        return optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.log, step=one.step)
