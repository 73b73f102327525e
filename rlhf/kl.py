"""KL(pi || pi_init): estimators and the controllers of its coefficient in the reward."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.config import KLControlConfig
from rlhf.masked import finite_logprobs


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi - log pi_init of tokens sampled from pi: unbiased, may be negative. (B, T) -> (B, T) nats."""
    return logprobs - reference_logprobs


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = log pi - log pi_init: unbiased under pi and never negative.

    J. Schulman, "Approximating KL divergence", 2020. (B, T) -> (B, T) nats.
    """
    difference = logprobs - reference_logprobs
    return torch.expm1(-difference) + difference


def released_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The released code's metric exp(d) - 1 - d: on samples of pi its mean is chi2(pi || pi_init) - KL, not the KL.

    Kept under its own name so that published curves can be compared. (B, T) -> (B, T).
    """
    difference = logprobs - reference_logprobs
    return torch.expm1(difference) - difference


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL over the whole vocabulary at every position: sum_v pi(v) (log pi(v) - log pi_init(v)).

    Summed along responses that pi sampled and averaged over them it estimates the sequence KL without the noise of
    the sampled token (Rao-Blackwell).

    Args:
        logits: (B, T, V) at the sampling temperature; -inf where pi never goes, which adds 0.
        reference_logits: (B, T, V) at the same temperature, finite.

    Returns:
        (B, T) float32 nats, not negative up to rounding.
    """
    logprobs = finite_logprobs(logits)
    reference_logprobs = reference_logits.float().log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference_logprobs)).sum(-1)


def sequence_kl(token_kl: Tensor, mask: Tensor) -> Tensor:
    """Sum over a response's valid tokens, mean over responses: (B, T), (B, T) bool -> () nats."""
    return torch.where(mask, token_kl, 0.0).sum(1).mean()


class KLController:
    """A coefficient that stays where it is; also the state that a checkpoint keeps."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, num_responses: int) -> None:
        """Called once per rollout batch with its mean sequence KL in nats."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = float(state["coef"])


class AdaptiveKLController(KLController):
    """e = clip(KL / target - 1, -0.2, 0.2); coef <- coef (1 + e num_responses / horizon). Ziegler et al. 2019."""

    CLIP = 0.2

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_responses: int) -> None:
        error = min(max(kl / self.target - 1.0, -self.CLIP), self.CLIP)
        self.coef *= 1.0 + error * num_responses / self.horizon


def controller_of(penalty: KLControlConfig | None) -> KLController:
    """The controller of the penalty in the reward; a coefficient of 0 where there is none."""
    if penalty is None or penalty.controller == "none":
        return KLController(0.0)
    if penalty.controller == "fixed":
        return KLController(penalty.init_coef)
    return AdaptiveKLController(penalty.init_coef, penalty.target, penalty.horizon)
