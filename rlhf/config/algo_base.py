"""What every algorithm declares to the rest of the program, and the settings that several of them have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf.config.setting import option_is, setting


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
class PenalisedConfig(AlgoConfig):
    kl: KLControlConfig = setting("the KL penalty in the reward")

    @property
    def penalty(self) -> KLControlConfig:
        return self.kl
