"""Who reads an option: conditions on a config, stated beside each option as `setting(..., read_by=...)`.

Refusals of what nobody reads (`rlhf.config.unread`) and run ids (`rlhf.config.identity`) are derived from them. An
option is read where the condition of its section and its own both hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    """Why a condition does not hold."""

    found: str
    """The settings that decide it, as typed: `model.source=random`."""
    wanted: str
    """What to type so that it holds."""
    options: frozenset[str]
    """Paths of the settings that decide it."""

    @property
    def by_stage(self) -> bool:
        """Whether another stage of the same pipeline would read the option."""
        return self.options == {"stage.name"}


class Condition:
    def failure(self, config: Any, section: str) -> Failure | None:
        """None where the condition holds.

        Args:
            config: the run's `RunConfig`.
            section: dotted path of the section that the option stands in; "" at the top.
        """
        return None

    def __and__(self, other: Condition) -> Both:
        return Both(self, other)

    def __or__(self, other: Condition) -> Either:
        return Either(self, other)


@dataclass(frozen=True)
class Both(Condition):
    first: Condition
    second: Condition

    def failure(self, config: Any, section: str) -> Failure | None:
        return self.first.failure(config, section) or self.second.failure(config, section)


@dataclass(frozen=True)
class Either(Condition):
    first: Condition
    second: Condition

    def failure(self, config: Any, section: str) -> Failure | None:
        first, second = self.first.failure(config, section), self.second.failure(config, section)
        if first is None or second is None:
            return None
        near = [failure for failure in (first, second) if not failure.by_stage] or [first]
        return Failure(
            " with ".join(dict.fromkeys(failure.found for failure in near)),
            " or ".join(dict.fromkeys(failure.wanted for failure in near)),
            frozenset[str]().union(*(failure.options for failure in near)),
        )


@dataclass(frozen=True)
class Is(Condition):
    """A setting has one of some values; a `path` that begins with a dot is an option of the same section."""

    path: str
    values: tuple[Any, ...]
    remedy: str | Callable[[Any], str] = ""
    """What to type so that it has, or a function of the config that says so; empty: `path=value`, a group's name by the
    group."""

    def failure(self, config: Any, section: str) -> Failure | None:
        path = f"{section}{self.path}" if self.path.startswith(".") else self.path
        value = setting_at(config, path)
        if value in self.values:
            return None
        remedy = self.remedy if isinstance(self.remedy, str) else self.remedy(config)
        wanted = remedy or " or ".join(_typed(path, allowed) for allowed in self.values)
        return Failure(_typed(path, value), wanted, frozenset({path}))


@dataclass(frozen=True)
class Given(Condition):
    """A setting is not null."""

    path: str

    def failure(self, config: Any, section: str) -> Failure | None:
        if setting_at(config, self.path) is not None:
            return None
        return Failure(f"{self.path}=null", f"{self.path}=...", frozenset({self.path}))


@dataclass(frozen=True)
class Regardless(Condition):
    """A condition of an option that may hold where its section's does not."""

    condition: Condition

    def failure(self, config: Any, section: str) -> Failure | None:
        return self.condition.failure(config, section)


@dataclass(frozen=True)
class Where(Condition):
    """A condition that takes a function."""

    holds: Callable[[Any], bool]
    found: str
    wanted: str
    options: frozenset[str]

    def failure(self, config: Any, section: str) -> Failure | None:
        return None if self.holds(config) else Failure(self.found, self.wanted, self.options)


def setting_at(config: Any, path: str) -> Any:
    """The value at a dotted path; None where there is no such option."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _typed(path: str, value: Any) -> str:
    section, _, name = path.rpartition(".")
    text = {None: "null", True: "true", False: "false"}.get(value, value)
    return f"{section if name == 'name' else path}={text}"


def stages(*names: str, remedy: str | Callable[[Any], str] = "") -> Is:
    return Is("stage.name", names, remedy)


def input_stages(config: Any) -> list[str]:
    """The stages that must be finished before the config's own, in order."""
    stages = ["sft"] if config.stage.name != "sft" and config.model.sft else []
    if config.stage.name in SCORING.values and config.reward.name == "learned" and config.reward.path is None:
        stages.append("reward_model")
    if config.stage.name in RL.values and config.evaluation.reference_responses:
        stages.append("reference_samples")
    return stages


ALWAYS = Condition()
"""Read wherever the section is that the option stands in."""

RL = stages("online", "offline")
SCORING = stages("online", "offline", "evaluate", "reference_samples")
EVALUATING = stages("online", "offline", "evaluate")
TRAINING = stages("online", "offline", "sft", "reward_model")
CHECKPOINTED = TRAINING | stages("reference_samples")
AFTER_SFT = stages("online", "offline", "evaluate", "reward_model", "reference_samples")
SFT = stages("sft", remedy="model.sft=true or stage=sft")
REWARD_MODEL = stages(
    "reward_model",
    remedy=lambda config: (
        "stage=reward_model"
        if config.stage.name not in SCORING.values
        else "reward=learned or stage=reward_model"
        if config.reward.name != "learned"
        else "reward.path=null or stage=reward_model"
    ),
)

PAIRS = REWARD_MODEL | stages("offline")
REFERENCES = (stages("reward_model") & Is("reward_model.normalize", ("mean", "mean_std"))) | (
    SCORING & Is("reward.normalize", ("mean", "mean_std"))
)
"""Runs that normalise scores on reference answers."""

HAS_INPUTS = Where(
    lambda config: bool(input_stages(config)),
    "a run that neither SFT nor reward-model training comes before",
    "model.sft=true",
    frozenset({"stage.name"}),
)

RANDOM_MODEL = Is("model.source", ("random",), remedy="model=tiny")
LOADED_MODEL = Is("model.source", ("pretrained",), remedy="model=hub")

FROM_FILES = Is("dataset.name", ("hh", "tldr", "stackexchange"))
MADE_UP_LABELS = Is("dataset.name", ("letters",))

BARE_REWARD = Is("reward.name", ("hh_gptj", "tldr_gptj"))
GIVEN_REWARD = BARE_REWARD | (Is("reward.name", ("learned",)) & Given("reward.path"))
MODEL_REWARD = Is("reward.name", ("learned", "hh_gptj", "tldr_gptj"))
REWARD_SERVER = Is("reward.name", ("http",))
