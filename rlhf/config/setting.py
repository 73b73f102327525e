"""What a config field states beside its type: meaning, range, who reads it, and whether it is in a run's id.

Refusals of what nobody reads (`rlhf.config.options`), run ids (`rlhf.config.identity`) and `--options` follow from it.
An option is read where the condition of its section and its own both hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RL_STAGES = ("online", "offline")
"""Those that train a policy with `algo` and that comparisons are made of."""
SCORING_STAGES = (*RL_STAGES, "evaluate", "reference_samples")
"""Those that ask the reward for scores."""


@dataclass(frozen=True)
class Failure:
    """Why a condition does not hold."""

    because: str
    """The settings that decide it, as typed: `model.source=random`."""
    wanted: str
    """What to type so that it holds."""
    options: frozenset[str]
    """Paths of the settings that decide it."""

    @property
    def by_stage(self) -> bool:
        """Whether another stage of the same pipeline would read the option."""
        return self.options == {"stage.name"}


@dataclass(frozen=True)
class Condition:
    failure: Callable[[Any, str], Failure | None]
    """(config, section that the option stands in) -> None where the condition holds."""
    regardless: bool = False
    """Whether it may hold where that of the option's section does not."""

    def __and__(self, other: Condition) -> Condition:
        assert not (self.regardless or other.regardless), "only a whole condition may be regardless"
        return Condition(lambda config, section: self.failure(config, section) or other.failure(config, section))

    def __or__(self, other: Condition) -> Condition:
        assert not (self.regardless or other.regardless), "only a whole condition may be regardless"
        return Condition(lambda config, section: _either(self.failure(config, section), other.failure(config, section)))


def _either(first: Failure | None, second: Failure | None) -> Failure | None:
    if first is None or second is None:
        return None
    near = [failure for failure in (first, second) if not failure.by_stage] or [first]
    return Failure(
        " with ".join(dict.fromkeys(failure.because for failure in near)),
        " or ".join(dict.fromkeys(failure.wanted for failure in near)),
        frozenset[str]().union(*(failure.options for failure in near)),
    )


def option_is(path: str, *values: Any, remedy: str | Callable[[Any], str] = "") -> Condition:
    """The option has one of some values; a `path` that begins with a dot is of the same section.

    Args:
        remedy: what to type so that it has, or a function of the config that says so; empty: `path=value`.
    """

    def failure(config: Any, section: str) -> Failure | None:
        full = f"{section}{path}" if path.startswith(".") else path
        value = setting_at(config, full)
        if value in values:
            return None
        wanted = remedy if isinstance(remedy, str) else remedy(config)
        wanted = wanted or " or ".join(_typed(full, allowed) for allowed in values)
        return Failure(_typed(full, value), wanted, frozenset({full}))

    return Condition(failure)


def given(path: str) -> Condition:
    """The option is not null."""
    null = Failure(f"{path}=null", f"{path}=...", frozenset({path}))
    return Condition(lambda config, _: null if setting_at(config, path) is None else None)


def where(holds: Callable[[Any], bool], because: str, wanted: str, *options: str) -> Condition:
    """A condition that takes a function of the config; the rest as of `Failure`."""
    failure = Failure(because, wanted, frozenset(options))
    return Condition(lambda config, _: None if holds(config) else failure)


def setting_at(config: Any, path: str) -> Any:
    """The value at a dotted path; None where there is no such option."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _typed(path: str, value: Any) -> str:
    section, _, name = path.rpartition(".")
    text = {None: "null", True: "true", False: "false"}.get(value, value)
    return f"{section if name == 'name' else path}={text}"


def stages(*names: str, remedy: str | Callable[[Any], str] = "") -> Condition:
    return option_is("stage.name", *names, remedy=remedy)


def input_stages(config: Any) -> list[str]:
    """The stages that must be finished before the config's own, in order."""
    stages = ["sft"] if config.stage.name != "sft" and config.model.sft else []
    if config.stage.name in SCORING_STAGES and config.reward.name == "learned" and config.reward.path is None:
        stages.append("reward_model")
    if config.stage.name in RL_STAGES and config.evaluation.reference_responses:
        stages.append("reference_samples")
    return stages


def _reward_model_remedy(config: Any) -> str:
    if config.stage.name not in SCORING_STAGES:
        return "stage=reward_model"
    return f"{'reward=learned' if config.reward.name != 'learned' else 'reward.path=null'} or stage=reward_model"


ALWAYS = Condition(lambda config, section: None)
"""Read wherever the section is that the option stands in."""

RL = stages(*RL_STAGES)
SCORING = stages(*SCORING_STAGES)
EVALUATING = stages(*RL_STAGES, "evaluate")
TRAINING = stages("online", "offline", "sft", "reward_model")
CHECKPOINTED = TRAINING | stages("reference_samples")
AFTER_SFT = stages("online", "offline", "evaluate", "reward_model", "reference_samples", "chat")
SAMPLING = stages(*SCORING_STAGES, "chat")
SFT = stages("sft", remedy="model.sft=true or stage=sft")
REWARD_MODEL = stages("reward_model", remedy=_reward_model_remedy)
VLLM = stages("online") & option_is("rollout.sampling", "vllm", remedy="rollout=vllm")
HAS_INPUTS = where(
    lambda config: bool(input_stages(config)),
    "a run that neither SFT nor reward-model training comes before",
    "model.sft=true",
    "stage.name",
)
RANDOM_MODEL = option_is("model.source", "random", remedy="model=tiny")
LOADED_MODEL = option_is("model.source", "pretrained", remedy="model=hub")
ON_GPU = option_is("hardware.device", "cuda", remedy="hardware=gpu")


def setting(
    meaning: str,
    *,
    read_by: Condition = ALWAYS,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    identity: bool | Condition = True,
    path: bool = False,
    content: bool = False,
    also_called: str = "",
    filled_in: bool = False,
    kl_knob: bool = False,
    off: Any = dataclasses.MISSING,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A config field without a default: values stand in conf/ alone.

    Args:
        meaning: what it is, with its unit.
        read_by: where the option is read; elsewhere a run that sets it is refused, and its id leaves it out.
        choices: the strings allowed.
        low, above, high: bounds of a number (or of each number of a list): >= low, > above, <= high.
        identity: False for a field that cannot change a run's results (folders, tracking, scheduling), or where it can,
            if it is also read where it cannot.
        path: True for a file or folder (or a hub name): a leading ~ becomes the home folder when the config is built.
        content: True for an input path: it enters the identity by a fingerprint of what it holds.
        also_called: its names elsewhere, blanks between them, for whoever types one.
        filled_in: True for what the program fills in and nobody types.
        kl_knob: True for what sets how far an algorithm goes from the initial policy; its frontier is the upper
            envelope over the values.
        off: the value at which a run is what it was before there was the option: its id then leaves it out, and a
            config without it has this value.
        default: for an algorithm outside this project, which has no file in conf/.
    """
    return dataclasses.field(
        default=off if default is dataclasses.MISSING else default,
        metadata={
            "meaning": meaning,
            "read_by": read_by,
            "choices": choices,
            "low": low,
            "above": above,
            "high": high,
            "identity": identity,
            "path": path or content,
            "content": content,
            "also_called": also_called.split(),
            "filled_in": filled_in,
            "kl_knob": kl_knob,
            "off": off,
        },
    )
