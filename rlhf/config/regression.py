"""Settings of the methods that regress log ratios on advantages; their values are the presets of conf/algo."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.algo_base import PenalisedConfig
from rlhf.config.setting import option_is, setting

GROUP_BASELINES = ("group_mean", "leave_one_out", "log_mean_exp", "log_mean_exp_others", "residual", "pair")
REFERENCE_BASELINES = ("v_star", "quantile")


@dataclass(kw_only=True)
class RegressionConfig(PenalisedConfig):
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

    @property
    def critic(self) -> bool:
        return self.baseline in ("critic", "value")

    @property
    def gae(self) -> bool:
        return self.baseline == "critic"

    @property
    def reference_samples(self) -> int:
        return self.reference_responses if self.baseline in REFERENCE_BASELINES else 0

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
