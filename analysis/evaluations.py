"""The evaluations of a run as arrays: the only rows that comparisons use."""

from __future__ import annotations

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
    gains: np.ndarray
    """(N, P) reward of each evaluation prompt above the initial policy's; of the two halves of the prompts where the
    run did not keep each."""
    gold_gains: np.ndarray | None  # (N, P) of gold reward likewise; None where the run kept none of each prompt
    by_prompt: bool  # whether `gains` is of prompts
    initial_reward: float  # the initial policy's, from which gains are counted
    skipped: int  # evaluations left out because KL, reward or the reward of one half is not a number


def evaluations(run: RunRecord, baseline: np.ndarray | None = None) -> Evaluations:
    """The evaluations of one run.

    Args:
        baseline: (P,) the initial policy's reward for each evaluation prompt, from reference samples, which are many
            more than the first evaluation has; None: the first evaluation itself.

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
    rewards = halves if prompts is None else prompts
    gains, initial = rewards - rewards[0], float(reward[usable][0])
    if prompts is not None and baseline is not None and len(baseline) == prompts.shape[1]:
        gains = np.concatenate([np.zeros((1, len(baseline))), prompts[1:] - baseline])
        initial = float(baseline.mean())
    return Evaluations(
        samples=run.column("samples")[usable],
        step=step[usable],
        kl=kl[usable],
        reward=reward[usable],
        reward_even=even[usable],
        reward_odd=odd[usable],
        gold_reward=gold[usable] if np.isfinite(gold).any() else None,
        gains=gains,
        gold_gains=None if gold_prompts is None else gold_prompts - gold_prompts[0],
        by_prompt=prompts is not None,
        initial_reward=initial,
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
    if len(lengths) != 1 or min(lengths) < 2:
        return None
    try:
        rewards = np.array(kept, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return rewards if rewards.ndim == 2 and np.isfinite(rewards).all() else None


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
