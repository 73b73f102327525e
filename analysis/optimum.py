"""What is possible: the optimal reward-KL frontier and best-of-n, estimated from responses of the initial policy.

R*(K) is the largest mean reward of any policy whose KL to the initial policy pi_0, averaged over the prompts x, is at
most K nats per response y. It is attained by pi_b(y | x) = pi_0(y | x) exp(r(x, y) / b) / Z_b(x) with one temperature b
for all prompts, and by duality

  R*(K) = min over b > 0 of  b K + b mean_x log Z_b(x).

With N responses of pi_0 to a prompt, Z_b(x) is the mean of exp(r / b). The estimate is low on average, since a minimum
and a logarithm are both concave, and is corrected by the jackknife of the two halves: 2 R_N - mean R_{N/2}. It cannot
see beyond log N nats, and is trusted while the correction is small: below 5% of the gain what is left of the bias is
below 1%, where all responses can be enumerated (tests/analysis/test_optimum.py).

All rewards are (P, N): P prompts, N responses of the initial policy each, in the unit of the reward; KL is in nats.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp

TRUSTED_CORRECTION = 0.05  # of the gain; where the jackknife corrects by more the estimate is not trusted
_TEMPERATURES = 160
_STEPS = 48  # of the integral over sqrt(KL)


@dataclass(frozen=True)
class Tilted:
    """The initial policy tilted by exp(reward / temperature); every field is (P,)."""

    reward: np.ndarray  # mean reward of the tilted policy
    kl: np.ndarray  # nats, of the tilted policy to the initial one
    log_z: np.ndarray


def tilted(rewards: np.ndarray, temperature: float) -> Tilted:
    """The tilted policy of each prompt by self-normalised importance sampling.

    Args:
        rewards: (P, N).
        temperature: b > 0, in the unit of the reward.
    """
    log_omega = rewards / temperature
    total = np.asarray(logsumexp(log_omega, axis=1))
    weights = np.exp(log_omega - total[:, None])
    reward = (weights * rewards).sum(axis=1)
    log_z = total - np.log(rewards.shape[1])
    return Tilted(reward, reward / temperature - log_z, log_z)


@dataclass(frozen=True)
class Optimum:
    """The optimal gain over the initial policy at each of M budgets.

    `parts` are each prompt's contributions, whose mean over prompts is the gain; by the envelope theorem their spread
    is also that of the estimate, so that a run's own values can be paired with them prompt by prompt.
    """

    kl: np.ndarray  # (M,) nats, rising
    parts: np.ndarray  # (M, P), corrected by the jackknife
    trusted_kl: float  # nats; beyond it too few responses carry the estimate

    @property
    def gain(self) -> np.ndarray:
        """(M,), in the unit of the reward."""
        return self.parts.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """(M,) over prompts and responses."""
        return self.parts.std(axis=1, ddof=1) / np.sqrt(self.parts.shape[1])


class ReferenceSamples:
    """Rewards of N responses of the initial policy to each of P prompts, and what follows from them.

    Args:
        gold: (P,) mean gold reward of the initial policy for each prompt; None where there is none.
        prompts: which ones; None where it is not known.

    Raises:
        ValueError: fewer than two prompts or four responses each, or a reward that is not finite.
    """

    def __init__(self, rewards: np.ndarray, gold: np.ndarray | None = None, prompts: str | None = None) -> None:
        rewards = np.asarray(rewards, dtype=np.float64)
        if rewards.ndim != 2 or rewards.shape[0] < 2 or rewards.shape[1] < 4:
            raise ValueError(
                f"an optimum needs at least 2 prompts with 4 responses each, not the shape {rewards.shape}"
            )
        if not np.isfinite(rewards).all():
            raise ValueError("an optimum needs rewards that are all finite")
        if gold is not None and (gold.shape != rewards.shape[:1] or not np.isfinite(gold).all()):
            raise ValueError("gold rewards need to be finite, and of the same prompts")
        self.rewards, self.gold, self.prompts = rewards, gold, prompts
        self._whole = _Sheet(rewards)
        self._halves = (_Sheet(rewards[:, 0::2]), _Sheet(rewards[:, 1::2]))

    @property
    def baseline(self) -> np.ndarray:
        """(P,) mean reward of the initial policy for each prompt."""
        return self.rewards.mean(axis=1)

    @property
    def largest_kl(self) -> float:
        """Nats that the estimate can see at all: those of the policy that gives only the best of N responses."""
        return min(sheet.largest_kl for sheet in (self._whole, *self._halves))

    @functools.cached_property
    def trusted_kl(self) -> float:
        """Nats up to which the estimate is trusted."""
        trusted = 0.0
        for kl in np.linspace(0.0, np.sqrt(self.largest_kl), _STEPS, endpoint=False)[1:] ** 2:
            plain = float(self._whole.parts(kl).mean())
            if float(self._parts(kl).mean()) - plain > TRUSTED_CORRECTION * plain:
                break
            trusted = float(kl)
        return trusted

    def optimum(self, budgets: np.ndarray) -> Optimum:
        """The optimal gain at each budget; those beyond `largest_kl` are left out.

        Args:
            budgets: (M,) nats, at least 0.
        """
        kl = np.sort(np.asarray(budgets, dtype=np.float64))
        kl = kl[kl < self.largest_kl]
        parts = np.array([self._parts(budget) for budget in kl]).reshape(len(kl), len(self.rewards))
        return Optimum(kl, parts, self.trusted_kl)

    def efficiency(self, budget: float) -> np.ndarray | None:
        """(P,) contributions to E*(K), the mean of the optimal gain over sqrt(KL) in [0, sqrt K]; None beyond what the
        samples can see."""
        if budget >= self.largest_kl:
            return None
        roots = np.linspace(0.0, np.sqrt(budget), _STEPS + 1)
        parts = self.optimum(roots**2).parts
        return np.trapezoid(parts, roots, axis=0) / roots[-1]

    def _parts(self, budget: float) -> np.ndarray:
        first, second = (half.parts(budget) for half in self._halves)
        return 2.0 * self._whole.parts(budget) - (first + second) / 2.0


class _Sheet:
    """One set of responses with the mean KL of its tilted policies over a grid of temperatures."""

    def __init__(self, rewards: np.ndarray) -> None:
        self.rewards = rewards
        self.baseline = rewards.mean(axis=1)
        best = rewards == rewards.max(axis=1, keepdims=True)
        self.largest_kl = float(-np.log(best.mean(axis=1)).mean())
        scale = float(rewards.std(axis=1).mean())
        self.temperatures = np.geomspace(1e3, 1e-3, _TEMPERATURES) * (scale if scale > 0.0 else 1.0)
        sheets = [tilted(rewards, temperature) for temperature in self.temperatures]
        self.kl = np.maximum.accumulate([sheet.kl.mean() for sheet in sheets])

    def parts(self, budget: float) -> np.ndarray:
        """(P,) b (K + log Z_b(x)) - mean reward of x, at the b that spends the budget. The mean over prompts is least
        at that b, so that an error of interpolation enters by its square alone."""
        if budget <= 0.0:
            return np.zeros(len(self.rewards))
        at = np.interp(np.log(budget), np.log(np.maximum(self.kl, 1e-300)), np.log(self.temperatures))
        temperature = float(np.exp(at))
        return temperature * (budget + tilted(self.rewards, temperature).log_z) - self.baseline


@dataclass(frozen=True)
class BestOfN:
    """Best-of-n sampling at each of M numbers of responses."""

    n: np.ndarray  # (M,)
    gain: np.ndarray  # (M, P) of the reward that chooses
    kl: np.ndarray  # (M,) nats, mean over prompts
    gold_gain: np.ndarray | None = None  # (M, P) of another score of the responses so chosen


def best_of_n(rewards: np.ndarray, numbers: np.ndarray, gold: np.ndarray | None = None) -> BestOfN:
    """Expected reward of the best of n responses over all subsets of the N, and the KL of that policy.

    E max = sum_i C(i-1, n-1) / C(N, n) r_(i) over the sorted rewards, unbiased. The KL counts responses of equal reward
    as one level, among which chance decides: sum over levels of (F^n - F-^n) log((F^n - F-^n) / (F - F-)), F being the
    share of responses up to the level and F- below it; without ties it tends to log n - (n-1)/n as N grows.

    Args:
        rewards: (P, N), by which the best is chosen.
        numbers: (M,) n, each from 1 to N.
        gold: (P, N) another score of the same responses.
    """
    count = rewards.shape[1]
    order = np.argsort(rewards, axis=1, kind="stable")
    ranked = np.take_along_axis(rewards, order, axis=1)
    levels = [np.unique(row, return_counts=True)[1] for row in rewards]
    golds = None if gold is None else _level_means(np.take_along_axis(gold, order, axis=1), levels)
    gains, gold_gains, kls = [], [], []
    for n in np.asarray(numbers, dtype=int):
        place = np.arange(n, count + 1)
        weights = np.zeros(count)
        weights[n - 1 :] = np.exp(_log_choose(place - 1, n - 1) - _log_choose(count, n))
        gains.append(ranked @ weights - rewards.mean(axis=1))
        kls.append(float(np.mean([_level_kl(level / count, int(n)) for level in levels])))
        if golds is not None and gold is not None:
            gold_gains.append(golds @ weights - gold.mean(axis=1))
    of_prompts = np.array(gains).reshape(len(gains), len(rewards))  # also where no n is asked for
    return BestOfN(np.asarray(numbers), of_prompts, np.array(kls), np.array(gold_gains) if gold_gains else None)


def _level_means(ranked: np.ndarray, levels: list[np.ndarray]) -> np.ndarray:
    """Each score replaced by the mean of those whose reward is the same: chance decides among them."""
    rows = []
    for row, counts in zip(ranked, levels, strict=True):
        starts = np.cumsum(counts) - counts
        rows.append(np.repeat(np.add.reduceat(row, starts) / counts, counts))
    return np.array(rows)


def _level_kl(shares: np.ndarray, n: int) -> float:
    upto = np.cumsum(shares)
    chosen = np.minimum(upto, 1.0) ** n - np.maximum(upto - shares, 0.0) ** n
    positive = chosen > 0.0
    return float((chosen[positive] * np.log(chosen[positive] / shares[positive])).sum())


def _log_choose(total: np.ndarray | int, chosen: int) -> np.ndarray:
    return gammaln(np.asarray(total) + 1.0) - gammaln(chosen + 1.0) - gammaln(np.asarray(total) - chosen + 1.0)
