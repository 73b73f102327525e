"""Each algorithm's settings; `ALGO_CONFIGS` is the table by `algo.name`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.config.algo_base import AlgoConfig, CriticAlgoConfig, KLControlConfig, PenalisedConfig
from rlhf.config.regression import RegressionConfig
from rlhf.config.setting import RL, Condition, Failure, given, setting


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
class PPOConfig(PenalisedConfig, CriticAlgoConfig):
    stages = ("online",)
    ratio_clip: float = setting(
        "epsilon of the clipped probability ratio",
        also_called="cliprange clip_range clip_ratio clip_eps epsilon",
        above=0,
        high=1,
    )


@dataclass(kw_only=True)
class RLOOConfig(PenalisedConfig):
    stages = ("online",)
    group_size: int = setting(
        "responses to one prompt, each of which has the others as its baseline",
        also_called="num_generations rloo_k responses_per_prompt",
        low=2,
    )
    ratio_clip: float = setting("epsilon of the clipped probability ratio of a whole response", above=0, high=1)


@dataclass(kw_only=True)
class P3OConfig(PenalisedConfig):
    stages = ("online",)
    group_size = 2
    ratio_clip: float = setting("epsilon by which the joint ratio of a pair may leave 1 as a weight", above=0, high=1)


@dataclass(kw_only=True)
class GRPOKLConfig:
    coef: float = setting(
        "weight of the KL to the initial policy, scaled reward per nat",
        also_called="beta kl_coef init_coef",
        low=0,
        kl_knob=True,
    )
    estimator: str = setting(
        "of the KL at each token: d = log pi - log pi_init, d^2 / 2, exp(-d) - 1 + d, or over the whole vocabulary",
        choices=("k1", "k2", "k3", "exact"),
    )
    place: str = setting(
        "differentiated in the loss, or taken off the reward; of k1 the loss has no penalty, and of k3 the one has the "
        "KL in the other direction and the other drives rare responses away",
        choices=("loss", "reward"),
    )


@dataclass(kw_only=True)
class GRPOConfig(AlgoConfig):
    stages = ("online",)
    group_size: int = setting(
        "responses to one prompt, whose mean is the baseline", also_called="num_generations responses_per_prompt", low=2
    )
    std: str = setting(
        "what advantages are divided by: the standard deviation of the group, of the rollout batch, or nothing",
        also_called="scale_rewards",
        choices=("group", "batch", "none"),
    )
    reduction: str = setting(
        "mean over a response's tokens and then over responses (the paper), over all tokens (DAPO), or sum over tokens "
        "and mean over responses (Dr. GRPO up to a constant)",
        also_called="loss_type",
        choices=("response", "token", "sum"),
    )
    ratio_clip: float | None = setting(
        "epsilon of the clipped ratio of a token, downwards; null: no clip", also_called="epsilon", above=0, high=1
    )
    ratio_clip_high: float | None = setting(
        "epsilon upwards; null: algo.ratio_clip",
        read_by=given("algo.ratio_clip"),
        also_called="epsilon_high clip_higher",
        above=0,
    )
    kl: GRPOKLConfig = setting("the KL to the initial policy")

    @property
    def penalty(self) -> KLControlConfig | None:
        if self.kl.place != "reward":
            return None
        return KLControlConfig(controller="fixed", init_coef=self.kl.coef, target=1.0, horizon=1.0)

    @property
    def penalty_estimator(self) -> str:
        return self.kl.estimator if self.kl.place == "reward" else "k1"

    @property
    def exact_kl_in_loss(self) -> bool:
        return (self.kl.place, self.kl.estimator) == ("loss", "exact")


@dataclass(kw_only=True)
class PreferenceConfig(AlgoConfig):
    stages = ("offline",)
    group_size = 2
    lam: float = setting(
        "temperature: larger stays closer to the initial policy; DPO's beta, IPO's tau",
        also_called="beta tau",
        above=0,
        kl_knob=True,
    )


@dataclass(kw_only=True)
class DARConfig(AlgoConfig):
    stages = ("online",)
    remedy = "a larger algo.lam_old"
    lam: float = setting(
        "alpha: scaled reward per nat of KL(pi || pi_init); larger stays closer to the initial policy",
        also_called="alpha",
        above=0,
        kl_knob=True,
    )
    lam_old: float = setting(
        "beta: scaled reward per nat of KL(pi || pi_old); larger takes smaller steps", also_called="beta", above=0
    )
    weight_clip: float = setting("largest weight of a response", above=0)
    group_size: int = setting(
        "responses to one prompt, whose mean is the baseline", also_called="num_generations", low=2
    )


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


REGRESSIONS = ("dro", "dro_v", "rebel", "pmd_mean", "pmd_partition", "tba", "a_star_po", "oapl", "qrpo")
"""Presets of `RegressionConfig`."""

ALGO_CONFIGS: dict[str, type[AlgoConfig]] = {
    "apa": APAConfig,
    "ppo": PPOConfig,
    "awr": AWRConfig,
    "ilql": ILQLConfig,
    "rloo": RLOOConfig,
    CUSTOM: CustomConfig,
    "grpo": GRPOConfig,
    "p3o": P3OConfig,
    **dict.fromkeys(REGRESSIONS, RegressionConfig),
    "dar": DARConfig,
    "dpo": PreferenceConfig,
    "ipo": PreferenceConfig,
}


def algorithms_with(declared: Callable[[Any], bool]) -> Condition:
    """The condition that the algorithm's config declares so."""
    named = (name for name, kind in ALGO_CONFIGS.items() if declared(kind) is True and name != CUSTOM)
    others = " or ".join(f"algo={name}" for name in named)

    def failure(config: Any, _: str) -> Failure | None:
        algo = config.algo
        return None if declared(algo) else Failure(f"algo={algo.name}", others, frozenset({"algo.name"}))

    return Condition(failure)


CRITIC = algorithms_with(lambda algo: algo.critic)
GAE = algorithms_with(lambda algo: algo.gae)
HEADS = algorithms_with(lambda algo: algo.heads)
PACKS_BY_LENGTH = algorithms_with(lambda algo: algo.packs_by_length)
