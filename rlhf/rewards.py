"""Scores of whole responses, rewards per token, and controllers of the coefficient of the KL penalty in them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf.batches import Rollouts
from rlhf.config import KLControlConfig, RewardConfig
from rlhf.finite import NotFinite
from rlhf.scorers import Scorer


def score_responses(scorer: Scorer, rollouts: Rollouts, missing_eos_score: float | None) -> Tensor:
    """(B,) float32 on the CPU: the score, or `missing_eos_score` where a response never ended.

    Raises:
        NotFinite: a score is NaN or infinite.
    """
    return checked_scores(
        scorer.score(rollouts.prompts, rollouts.responses, rollouts.columns), rollouts, missing_eos_score
    )


def checked_scores(scores: Tensor, rollouts: Rollouts, missing_eos_score: float | None) -> Tensor:
    """`score_responses` from what the scorer gave.

    Raises:
        NotFinite: a score is NaN or infinite.
    """
    if not bool(scores.isfinite().all()):
        raise NotFinite(
            "the reward gave a score that is not finite; look at reward.path, reward.precision or its training"
        )
    if missing_eos_score is None:
        return scores
    return torch.where(rollouts.ended.cpu(), scores, missing_eos_score)


class RunningMoments:
    """Mean and variance of all scores seen, in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.sum_squares = 0.0
        """Sum of squared distances from the mean."""

    def update(self, scores: Tensor) -> None:
        values = scores.double()
        count, mean = len(values), float(values.mean())
        shift, total = mean - self.mean, self.count + count
        self.sum_squares += float((values - mean).square().sum()) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Unbiased; 1 until two different scores were seen, so that nothing is divided by 0."""
        if self.count < 2 or self.sum_squares == 0.0:
            return 1.0
        return math.sqrt(self.sum_squares / (self.count - 1))

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "sum_squares": self.sum_squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.sum_squares = int(state["count"]), state["mean"], state["sum_squares"]


def scale_scores(scores: Tensor, std: float, config: RewardConfig) -> Tensor:
    """Scores divided by the standard deviation of all seen so far, then clipped. (B,) -> (B,).

    The mean is not subtracted: it would change what an answer is worth as training goes on.
    """
    if config.scale == "running":
        scores = scores / std
    return scores if config.clip is None else scores.clamp(-config.clip, config.clip)


def token_rewards(scores: Tensor, token_kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = -kl_coef * (log pi_old - log pi_init)_t, plus the score on the last valid token.

    Args:
        scores: (B,), scaled.
        token_kl: (B, T) nats, by an estimator.
        mask: (B, T) bool; every row has at least one valid token.
        kl_coef: beta; 0 where the algorithm has no KL penalty in the reward.

    Returns:
        (B, T), 0 on padding.
    """
    rewards = torch.where(mask, -kl_coef * token_kl, 0.0)
    last = mask.sum(1) - 1
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores.to(rewards)
    return rewards


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
