"""Settings of the algorithms: one dataclass each; `ALGO_CONFIGS` is the table by `algo.name`."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.readers import ALWAYS, RL, VALUE_NETWORK, Is
from rlhf.config.setting import setting


@dataclass(kw_only=True)
class AlgoConfig:
    name: str = setting("the algorithm", read_by=ALWAYS)
    value_clip: float | None = setting(
        "largest move of a value from its rollout value inside the value loss (PPO2); null: no clipping",
        read_by=VALUE_NETWORK,
        also_called=("cliprange_value", "vf_clip", "value_clip_range"),
        above=0,
    )


@dataclass(kw_only=True)
class APAConfig(AlgoConfig):
    lam: float = setting(
        "lambda of eq. 9: standard deviations of the advantage (advantages.whiten=full) per nat; larger stays closer "
        "to the initial policy",
        read_by=ALWAYS,
        also_called=("lambda", "apa_lambda"),
        above=0,
    )
    anchor: str = setting(
        "the policy that the target multiplies: the initial one (the paper) or the one that sampled (off by default)",
        read_by=ALWAYS,
        choices=("initial", "old"),
    )


@dataclass(kw_only=True)
class AWRConfig(AlgoConfig):
    lam: float = setting(
        "lambda of eq. 6: the weight of a token is exp(A / lam)",
        read_by=ALWAYS,
        also_called=("lambda", "beta"),
        above=0,
    )
    weight_clip: float | None = setting(
        "largest weight exp(A / lam); null: no clip, as in the paper", read_by=ALWAYS, above=0
    )


@dataclass(kw_only=True)
class KLControlConfig:
    controller: str = setting(
        "how the coefficient beta of the KL penalty in the reward moves: not at all, by Ziegler et al. 2019, or no "
        "penalty",
        read_by=ALWAYS,
        also_called=("adap_kl_ctrl", "kl_ctl"),
        choices=("fixed", "adaptive", "none"),
    )
    init_coef: float = setting(
        "beta at the start, scaled reward per nat",
        read_by=Is(".controller", ("adaptive", "fixed")),
        also_called=("kl_coef", "kl_coeff", "beta", "init_kl_coef", "kl_penalty"),
        low=0,
    )
    target: float = setting(
        "KL(pi || pi_init) of a response that the adaptive controller aims at, nats",
        read_by=Is(".controller", ("adaptive",)),
        also_called=("target_kl", "kl_target"),
        above=0,
    )
    horizon: float = setting(
        "responses over which the adaptive controller acts", read_by=Is(".controller", ("adaptive",)), above=0
    )


@dataclass(kw_only=True)
class PPOConfig(AlgoConfig):
    ratio_clip: float = setting(
        "epsilon of the clipped probability ratio",
        read_by=ALWAYS,
        also_called=("cliprange", "clip_range", "clip_ratio", "clip_eps", "epsilon"),
        above=0,
        high=1,
    )
    kl: KLControlConfig = setting("the KL penalty in the reward, which PPO alone has", read_by=ALWAYS)


@dataclass(kw_only=True)
class ILQLConfig(AlgoConfig):
    """Offline alone. Of `value` only head_init_std has a part in it (the heads' output layers); `value_clip` and
    `advantages` have none."""

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
    top_k: int = setting("tokens that the sampler chooses from", read_by=ALWAYS, low=1)
    betas: list[float] = setting(
        "beta of the sampler softmax(top_k(log pi + beta (min Q - V))), each evaluated; the first is the headline",
        read_by=ALWAYS,
        low=0,
    )


ALGO_CONFIGS: dict[str, type[AlgoConfig]] = {"apa": APAConfig, "ppo": PPOConfig, "awr": AWRConfig, "ilql": ILQLConfig}
