"""The evaluations of a run as arrays: the only rows that comparisons use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.load import RunRecord


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
    skipped: int  # evaluations left out because KL, reward or the reward of one half is not a number


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
    return Evaluations(
        samples=run.column("samples")[usable],
        step=step[usable],
        kl=kl[usable],
        reward=reward[usable],
        reward_even=even[usable],
        reward_odd=odd[usable],
        gold_reward=gold[usable] if np.isfinite(gold).any() else None,
        skipped=int(made.sum() - usable.sum()),
    )


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
