"""The algorithms' settings and what each needs of the program; `ALGO_CONFIGS` is the table by `algo.name`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf.config.setting import RL, Condition, Failure, given, option_is, setting


@dataclass(kw_only=True)
class AlgoConfig:
    """One algorithm's settings. What has no `setting` is declared: the rest of the program asks for it, and for no
    algorithm's name or type."""

    name: str = setting("the algorithm; typed as algo=NAME", filled_in=True)

    critic: ClassVar[Any] = False
    """A value network is trained, and its values are measured."""
    gae: ClassVar[Any] = False
    """Advantages are estimated from the values of all states, and whitened."""
    heads = False
    """Heads of the algorithm's own are trained on the policy's hidden states, and its evaluations sample by them."""
    packs_by_length = True
    """optimization.pack_by_length holds for its micro-batches."""
    stages = ("online", "offline")
    """The RL stages that it can learn in."""
    group_size = 1
    """Responses to one prompt, neighbours in every batch; nothing cuts a group."""
    reference_samples: ClassVar[Any] = 0
    """Responses of the initial policy to each prompt, of which the algorithm sees the scores."""
    penalty_estimator: ClassVar[Any] = "k1"
    """What the KL penalty in the reward is made of: k1, k2, k3 or exact."""
    exact_kl_in_loss: ClassVar[Any] = False
    """The loss takes the KL to the initial policy over the whole vocabulary."""
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
    gae = True
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
class P3OConfig(AlgoConfig):
    stages = ("online",)
    group_size = 2
    ratio_clip: float = setting("epsilon by which the joint ratio of a pair may leave 1 as a weight", above=0, high=1)
    kl: KLControlConfig = setting("the KL penalty in the reward")

    @property
    def penalty(self) -> KLControlConfig:
        return self.kl


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


GROUP_BASELINES = ("group_mean", "leave_one_out", "log_mean_exp", "log_mean_exp_others", "residual", "pair")
REFERENCE_BASELINES = ("v_star", "quantile")


@dataclass(kw_only=True)
class RegressionConfig(AlgoConfig):
    """mean w (u - A / lam)^2 with u = log pi - log anchor; the presets of conf/algo are methods of that form."""

    remedy = "a larger algo.lam"
    lam: float = setting(
        "temperature, in the unit of the advantage: larger stays closer to the anchor; beta, tau or 1 / eta elsewhere",
        also_called="lambda beta tau eta",
        above=0,
        kl_knob=True,
    )
    unit: str = setting(
        "what u belongs to: a token, a response (the sum over its tokens), or a response by the mean of its tokens",
        choices=("token", "sequence", "sequence_mean"),
    )
    anchor: str = setting("the initial policy or the one that sampled", choices=("initial", "old"))
    baseline: str = setting(
        "what rewards are compared with: critic (GAE), value (a learnt V of the prompt), the group's mean, the mean of "
        "the others, lam log mean exp(r / lam) over the group or the others, residual (the group's mean of r / lam - "
        "u), pair (the other's r / lam - u), v_star (of the initial policy's responses), or quantile (the reward is "
        "its place among theirs)",
        choices=("critic", "value", *GROUP_BASELINES, *REFERENCE_BASELINES),
    )
    weight: str = setting(
        "of a square: 1, lam / 2, lam / (2 length), or lam^2",
        choices=("one", "half_lam", "half_lam_by_length", "lam_squared"),
    )
    group_size: int = setting("responses to one prompt", also_called="num_generations responses_per_prompt", low=1)
    value_clip: float | None = setting(
        "largest move of a value from its rollout value inside the value loss (PPO2); null: no clipping",
        read_by=option_is(".baseline", "critic"),
        above=0,
    )
    reference_responses: int = setting(
        "responses of the initial policy to each prompt, drawn and scored once, that tell V* or quantiles",
        read_by=option_is(".baseline", *REFERENCE_BASELINES),
        also_called="num_reference_samples",
        low=1,
    )
    reference_lam: float | None = setting(
        "temperature of V* = lam log mean exp(r / lam); null: algo.lam",
        read_by=option_is(".baseline", "v_star"),
        also_called="beta1",
        above=0,
    )
    quantile: str = setting(
        "reward of a response that beats the share F of the initial policy's: F or log F",
        read_by=option_is(".baseline", "quantile"),
        choices=("identity", "log"),
    )
    kl: KLControlConfig = setting("a KL penalty in the reward")

    @property
    def critic(self) -> bool:
        return self.baseline in ("critic", "value")

    @property
    def gae(self) -> bool:
        return self.baseline == "critic"

    @property
    def reference_samples(self) -> int:
        return self.reference_responses if self.baseline in REFERENCE_BASELINES else 0

    @property
    def penalty(self) -> KLControlConfig:
        return self.kl

    def problems(self, stage: str) -> list[str]:
        named = f"algo.baseline: {self.baseline}"
        token, responses = self.unit == "token", ("value", "residual", "pair")
        refused = {
            f"{named} has an advantage for each token; use algo.unit=token": self.baseline == "critic" and not token,
            f"{named} is of whole responses; use algo.unit=sequence": self.baseline in responses and token,
            f"{named} needs other responses to the prompt; use algo.group_size=2 or more": self.baseline
            in GROUP_BASELINES
            and self.group_size < 2,
            f"{named} is of two responses to a prompt; use algo.group_size=2": self.baseline == "pair"
            and self.group_size > 2,
            "algo.weight: half_lam_by_length is of whole responses; use algo.unit=sequence": token
            and self.weight == "half_lam_by_length",
            "algo.anchor: old is the policy that sampled, and nobody sampled a data set; use initial": stage
            == "offline"
            and self.anchor == "old",
            "algo.kl.controller: a data set's responses are no samples of the policy, and have no KL; use none": stage
            == "offline"
            and self.kl.controller != "none",
        }
        return [line for line, holds in refused.items() if holds]


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
