"""The evaluations of a run as arrays: the only rows that comparisons use."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.load import RunRecord
from rlhf.errors import FileError
from rlhf.files import read_json_lines
from rlhf.runs.state import EVALUATIONS


class UnusableRunError(ValueError):
    """A finished run that cannot be compared; the message says why."""


@dataclass(frozen=True)
class Evaluations:
    """N evaluations in the order in which they were made; the first is of the initial policy. All arrays are (N,)."""

    samples: np.ndarray  # responses generated before the evaluation
    step: np.ndarray  # optimizer updates before it
    kl: np.ndarray  # KL(pi || pi_init) of a response, nats
    reward: np.ndarray  # mean raw score
    reward_even: np.ndarray  # over the even-numbered prompts; `reward` where the run did not log halves
    reward_odd: np.ndarray
    gold_reward: np.ndarray | None  # NaN where missing; None where the data set has no gold scorer
    rewards: np.ndarray  # (N, P) of each evaluation prompt; of the two halves where the run did not keep each
    gold_rewards: np.ndarray | None  # (N, P) likewise; None where the run kept none of each prompt
    by_prompt: bool  # whether `rewards` is of prompts
    prompts: str | None  # which ones; None where the run did not say
    skipped: int  # evaluations left out because KL, reward or the reward of one half is not a number
    baseline: np.ndarray | None = None
    """(P,) the initial policy's reward for each prompt, from reference samples, which are many more than the first
    evaluation has; None: the first evaluation itself."""
    gold_baseline: np.ndarray | None = None  # (P,) of gold reward likewise

    @functools.cached_property
    def gains(self) -> np.ndarray:
        """(N, P) `rewards` above the initial policy's."""
        return _above(self.rewards, self.baseline)

    @functools.cached_property
    def gold_gains(self) -> np.ndarray | None:
        """(N, P) `gold_rewards` above the initial policy's."""
        return None if self.gold_rewards is None else _above(self.gold_rewards, self.gold_baseline)

    @property
    def initial_reward(self) -> float:
        """The initial policy's, from which gains are counted."""
        return float(self.reward[0] if self.baseline is None else self.baseline.mean())

    @property
    def initial_gold(self) -> float | None:
        """Its gold reward; NaN where missing, None where the data set has no gold scorer."""
        if self.gold_reward is None:
            return None
        if self.gold_rewards is None or self.gold_baseline is None:
            return float(self.gold_reward[0])
        return float(self.gold_baseline.mean())


def _above(rewards: np.ndarray, baseline: np.ndarray | None) -> np.ndarray:
    """(N, P) above the baseline, or above the first row; that is the initial policy's and gains nothing."""
    if baseline is None:
        return rewards - rewards[0]
    return np.concatenate([np.zeros((1, len(baseline))), rewards[1:] - baseline])


def evaluations(run: RunRecord) -> Evaluations:
    """The evaluations of one run.

    Raises:
        UnusableRunError: no evaluation before training, or none after it began.
    """
    kl, reward, even, odd = _columns(run)
    made, usable = run.metrics.evaluated, usable_rows(run)
    if not usable.any():
        raise UnusableRunError("metrics.jsonl has no evaluation with a KL and a reward")
    step, iteration = run.column("step"), run.column("iteration")
    first = int(np.flatnonzero(usable)[0])
    if step[first] != 0 and iteration[first] != 0:
        raise UnusableRunError("no usable evaluation of the initial policy, from which gains are counted")
    if usable.sum() < 2:
        raise UnusableRunError("no usable evaluation after the initial one")
    gold = run.column("eval/gold_reward")
    kept = _kept(run)
    prompts, gold_prompts = (_by_prompt(kept, run, usable, key) for key in ("reward", "gold_reward"))
    halves = np.stack([even[usable], odd[usable]], axis=1)
    return Evaluations(
        samples=run.column("samples")[usable],
        step=step[usable],
        kl=kl[usable],
        reward=reward[usable],
        reward_even=even[usable],
        reward_odd=odd[usable],
        gold_reward=gold[usable] if np.isfinite(gold).any() else None,
        rewards=halves if prompts is None else prompts,
        gold_rewards=gold_prompts,
        by_prompt=prompts is not None,
        prompts=None if prompts is None else next(iter(_said_prompts(kept)), None),
        skipped=int(made.sum() - usable.sum()),
    )


def _kept(run: RunRecord) -> list[dict[str, Any]]:
    """What it kept of each evaluation's prompts."""
    try:
        return read_json_lines(run.folder / EVALUATIONS)
    except FileError:
        return []


def _by_prompt(rows: Sequence[dict[str, Any]], run: RunRecord, usable: np.ndarray, key: str) -> np.ndarray | None:
    """(N, P) values by prompt of the usable evaluations; None where the run kept none, or other ones."""
    found = {one: row.get(key) for row in rows if isinstance(one := row.get("iteration"), int)}
    kept = [found.get(iteration) for iteration in run.column("iteration")[usable].tolist()]  # 2.0 finds 2
    lengths = {len(row) if isinstance(row, list) else 0 for row in kept}
    if len(lengths) != 1 or min(lengths) < 2 or len(_said_prompts(rows)) > 1:
        return None
    try:
        rewards = np.array(kept, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return rewards if rewards.ndim == 2 and np.isfinite(rewards).all() else None


def _said_prompts(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Which prompts the rows are of; more than one where the data changed before the run was resumed."""
    return {said for row in rows if isinstance(said := row.get("prompts"), str)}


def usable_rows(run: RunRecord) -> np.ndarray:
    """(rows,) bool: the evaluations of which KL, reward and the reward of either half of the prompts are finite."""
    return run.metrics.evaluated & np.logical_and.reduce([np.isfinite(one) for one in _columns(run)])


def _columns(run: RunRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rows,) each: KL, reward, and the reward of both halves, which is that of all where no halves were logged."""
    kl, reward = run.column("eval/kl"), run.column("eval/reward")
    even, odd = run.column("eval/reward_even"), run.column("eval/reward_odd")
    if not (np.isfinite(even).any() and np.isfinite(odd).any()):
        even = odd = reward
    return kl, reward, even, odd
