"""The algorithms' settings and what each needs of the program; `ALGO_CONFIGS` is the table by `algo.name`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.config.setting import RL, Condition, Failure, option_is, setting


@dataclass(kw_only=True)
class AlgoConfig:
    """One algorithm's settings. What has no `setting` is declared: the rest of the program asks for it, and for no
    algorithm's name or type."""

    name: str = setting("the algorithm; typed as algo=NAME", filled_in=True)

    critic = False
    """A value network is trained, and its values are measured."""
    heads = False
    """Heads of the algorithm's own are trained on the policy's hidden states, and its evaluations sample by them."""
    packs_by_length = True
    """optimization.pack_by_length holds for its micro-batches."""
    stages = ("online", "offline")
    """The RL stages that it can learn in."""
    group_size = 1
    """Responses to one prompt, neighbours in every batch; nothing cuts a group."""
    remedy = ""
    """What may keep its policy's loss and gradient finite, beside a smaller learning rate."""

    @property
    def penalty(self) -> KLControlConfig | None:
        """The KL penalty in the reward."""
        return None

    def problems(self, stage: str) -> list[str]:
        """Settings of its own that cannot be in this stage, one line each."""
        return []


@dataclass(kw_only=True)
class CriticAlgoConfig(AlgoConfig):
    critic = True
    value_clip: float | None = setting(
        "largest move of a value from its rollout value inside the value loss (PPO2); null: no clipping",
        also_called="cliprange_value vf_clip value_clip_range",
        above=0,
    )


@dataclass(kw_only=True)
class APAConfig(CriticAlgoConfig):
    remedy = "a larger algo.lam"
    lam: float = setting(
        "lambda of eq. 9: standard deviations of the advantage (advantages.whiten=full) per nat; larger stays closer "
        "to the initial policy",
        also_called="lambda apa_lambda",
        above=0,
        kl_knob=True,
    )
    anchor: str = setting(
        "the policy that the target multiplies: the initial one (the paper) or the one that sampled (off by default)",
        choices=("initial", "old"),
    )

    def problems(self, stage: str) -> list[str]:
        if stage == "offline" and self.anchor == "old":
            return ["algo.anchor: old is the policy that sampled, and nobody sampled a data set; use initial"]
        return []


@dataclass(kw_only=True)
class AWRConfig(CriticAlgoConfig):
    remedy = "a larger algo.lam"
    lam: float = setting(
        "lambda of eq. 6: the weight of a token is exp(A / lam)", also_called="lambda beta", above=0, kl_knob=True
    )
    weight_clip: float | None = setting("largest weight exp(A / lam); null: no clip, as in the paper", above=0)


@dataclass(kw_only=True)
class KLControlConfig:
    controller: str = setting(
        "how the coefficient beta of the KL penalty in the reward moves: not at all, by Ziegler et al. 2019, or no "
        "penalty",
        also_called="adap_kl_ctrl kl_ctl",
        choices=("fixed", "adaptive", "none"),
    )
    init_coef: float = setting(
        "beta at the start, scaled reward per nat",
        read_by=option_is(".controller", "adaptive", "fixed"),
        also_called="kl_coef kl_coeff beta init_kl_coef kl_penalty",
        low=0,
        kl_knob=True,
    )
    target: float = setting(
        "KL(pi || pi_init) of a response that the adaptive controller aims at, nats",
        read_by=option_is(".controller", "adaptive"),
        also_called="target_kl kl_target",
        above=0,
        kl_knob=True,
    )
    horizon: float = setting(
        "responses over which the adaptive controller acts", read_by=option_is(".controller", "adaptive"), above=0
    )


@dataclass(kw_only=True)
class PPOConfig(CriticAlgoConfig):
    stages = ("online",)
    ratio_clip: float = setting(
        "epsilon of the clipped probability ratio",
        also_called="cliprange clip_range clip_ratio clip_eps epsilon",
        above=0,
        high=1,
    )
    kl: KLControlConfig = setting("the KL penalty in the reward")

    @property
    def penalty(self) -> KLControlConfig:
        return self.kl


@dataclass(kw_only=True)
class RLOOConfig(AlgoConfig):
    stages = ("online",)
    group_size: int = setting(
        "responses to one prompt, each of which has the others as its baseline",
        also_called="num_generations rloo_k responses_per_prompt",
        low=2,
    )
    ratio_clip: float = setting("epsilon of the clipped probability ratio of a whole response", above=0, high=1)
    kl: KLControlConfig = setting("the KL penalty in the reward")

    @property
    def penalty(self) -> KLControlConfig:
        return self.kl


@dataclass(kw_only=True)
class ILQLConfig(AlgoConfig):
    """Of `value` only head_init_std has a part in it (the heads' output layers)."""

    heads = True
    packs_by_length = False
    stages = ("offline",)
    remedy = "algo.awac_beta"
    gamma: float = setting("discount per token of the Q heads' target", read_by=RL, above=0, high=1)
    tau: float = setting("expectile that V regresses to", read_by=RL, above=0, high=1)
    two_qs: bool = setting("two Q heads, of which the smaller counts", read_by=RL)
    cql_scale: float = setting(
        "weight of the cross entropy of Q as logits, which holds unseen tokens down", read_by=RL, low=0
    )
    awac_scale: float = setting("weight of the language model's own cross entropy", read_by=RL, low=0)
    awac_beta: float = setting("that cross entropy is weighted by exp(awac_beta (Q - V)); 0: plain", read_by=RL, low=0)
    polyak: float = setting("share of the Q heads that goes into their targets at a sync", read_by=RL, above=0, high=1)
    sync_every: int = setting("optimizer steps between syncs of the target heads", read_by=RL, low=1)
    top_k: int = setting("tokens that the sampler chooses from", low=1)
    betas: list[float] = setting(
        "beta of the sampler softmax(top_k(log pi + beta (min Q - V))), each evaluated; the first is the headline",
        low=0,
        kl_knob=True,
    )

    def problems(self, stage: str) -> list[str]:
        return [] if self.betas else ["algo.betas: empty; the first is the headline"]


CUSTOM = "custom"


@dataclass(kw_only=True)
class CustomConfig(AlgoConfig):
    """What every algorithm outside this project has; `rlhf.config.custom` adds the settings of its own class."""

    loss: str = setting(
        "the algorithm's class, a subclass of rlhf.algorithms.Algorithm: my_algorithm.py:MyAlgorithm or "
        "module:MyAlgorithm",
        content=True,
    )


ALGO_CONFIGS: dict[str, type[AlgoConfig]] = {
    "apa": APAConfig,
    "ppo": PPOConfig,
    "awr": AWRConfig,
    "ilql": ILQLConfig,
    "rloo": RLOOConfig,
    CUSTOM: CustomConfig,
}


def algorithms_with(declared: Callable[[Any], bool]) -> Condition:
    """The condition that the algorithm's config declares so."""
    others = " or ".join(f"algo={name}" for name, kind in ALGO_CONFIGS.items() if declared(kind) and name != CUSTOM)

    def failure(config: Any, _: str) -> Failure | None:
        algo = config.algo
        return None if declared(algo) else Failure(f"algo={algo.name}", others, frozenset({"algo.name"}))

    return Condition(failure)


CRITIC = algorithms_with(lambda kind: kind.critic)
HEADS = algorithms_with(lambda kind: kind.heads)
PACKS_BY_LENGTH = algorithms_with(lambda kind: kind.packs_by_length)
