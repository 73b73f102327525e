"""What went wrong, in words: each diagnosis with the number that was seen and the threshold beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.summary import ComparedRun, Comparison, SettingSummary

# Shares of the initial policy's value.
ENTROPY_COLLAPSE = 0.2
LENGTH_COLLAPSE = 0.3
LENGTH_EXPLOSION = 3.0
# Of the best gain so far, while KL rose since.
FALL = 0.25
# Of the gain in reward: how much it must have risen while gold fell, less being noise.
RISE = 0.1
# Share of responses that ended by themselves rather than at the longest length.
ENDED = 0.5
# Times the largest KL budget.
KL_RUNAWAY = 4.0
# Times the mean gain: the range of the seeds' last rewards.
SEED_RANGE = 1.0


@dataclass(frozen=True)
class Diagnosis:
    """One finding about one setting; `text` is a sentence with the number seen and the threshold."""

    kind: str  # "entropy", "length", "reward falls", "endings", "KL", "over-optimisation" or "seeds"
    setting: str
    runs: tuple[str, ...]  # ids of the runs it was seen in
    text: str


@dataclass(frozen=True)
class _Check:
    kind: str
    what: str
    """Said of the runs it is seen in."""
    threshold: str
    seen: Callable[[ComparedRun], str | None]
    """The number in words, None where all is well."""


def diagnose(comparison: Comparison) -> list[Diagnosis]:
    """Setting by setting, in the order of the table; empty where nothing was found."""
    found: list[Diagnosis] = []
    for setting in comparison.settings:
        found += [one for check in _CHECKS if (one := _of_setting(setting, check))]
        found += _seeds(setting)
    return found


def _of_setting(setting: SettingSummary, check: _Check) -> Diagnosis | None:
    seen = [(run, words) for run in setting.runs if (words := check.seen(run))]
    if not seen:
        return None
    share = f"{len(seen)} of {len(setting.runs)} runs" if len(setting.runs) > 1 else "the run"
    example = f"seed {seen[0][0].record.seed}: {seen[0][1]}"
    text = f"{setting.name}: {check.what} in {share} ({example}; threshold: {check.threshold})."
    return Diagnosis(check.kind, setting.name, tuple(run.record.id for run, _ in seen), text)


def _evaluated(run: ComparedRun, name: str) -> np.ndarray:
    """The finite values of a metric at evaluations."""
    values = run.record.column(name)[run.record.metrics.evaluated]
    return values[np.isfinite(values)]


def _ends(run: ComparedRun, name: str) -> tuple[float, float] | None:
    """Of the initial policy and of the last one; None where it was not logged, or began at 0."""
    values = _evaluated(run, name)
    return (float(values[0]), float(values[-1])) if len(values) > 1 and values[0] > 0.0 else None


def _entropy(run: ComparedRun) -> str | None:
    ends = _ends(run, "eval/entropy")
    if ends is None or ends[1] >= ENTROPY_COLLAPSE * ends[0]:
        return None
    return f"from {ends[0]:.2f} to {ends[1]:.2f} nats a token"


def _shorter(run: ComparedRun) -> str | None:
    ends = _ends(run, "eval/response_length")
    return (
        None if ends is None or ends[1] >= LENGTH_COLLAPSE * ends[0] else f"from {ends[0]:.0f} to {ends[1]:.0f} tokens"
    )


def _longer(run: ComparedRun) -> str | None:
    ends = _ends(run, "eval/response_length")
    return (
        None if ends is None or ends[1] <= LENGTH_EXPLOSION * ends[0] else f"from {ends[0]:.0f} to {ends[1]:.0f} tokens"
    )


def _reward_falls(run: ComparedRun) -> str | None:
    points = run.evaluations
    best = int(np.argmax(points.reward))
    gain = float(points.reward[best] - points.reward[0])
    fall = float(points.reward[best] - points.reward[-1])
    if gain <= 0.0 or fall <= FALL * gain or points.kl[-1] <= points.kl[best]:
        return None
    return f"by {fall:.2f} from {points.reward[best]:.2f}, KL from {points.kl[best]:.1f} to {points.kl[-1]:.1f} nats"


def _cut_off(run: ComparedRun) -> str | None:
    values = _evaluated(run, "eval/eos_rate")
    return None if not len(values) or values[-1] >= ENDED else f"{values[-1]:.0%} of responses ended by themselves"


def _kl_runs_away(run: ComparedRun) -> str | None:
    largest = float(run.evaluations.kl.max())
    return None if largest <= KL_RUNAWAY * max(run.kl_budgets) else f"{largest:.0f} nats"


def _gold_falls(run: ComparedRun) -> str | None:
    gold = run.evaluations.gold_reward
    if gold is None:
        return None
    known = np.flatnonzero(np.isfinite(gold))
    if len(known) < 2:
        return None
    best, last = known[int(np.argmax(gold[known]))], known[-1]
    gain, fall = float(gold[best] - gold[known[0]]), float(gold[best] - gold[last])
    reward = run.evaluations.reward
    rose = float(reward[last] - reward[best])
    # Without a gain there is nothing to lose a share of: then it is what fell below the initial policy.
    scale = gain if gain > 0.0 else float(np.nanstd(gold))
    if rose <= RISE * max(0.0, float(reward.max() - reward[0])) or fall <= FALL * scale:
        return None
    return f"gold fell by {fall:.2f} while the reward rose by {rose:.2f}"


_CHECKS: Sequence[_Check] = (
    _Check("entropy", "entropy collapsed", f"{ENTROPY_COLLAPSE:.0%} of the initial entropy", _entropy),
    _Check("length", "responses became short", f"{LENGTH_COLLAPSE:.0%} of the initial length", _shorter),
    _Check("length", "responses became long", f"{LENGTH_EXPLOSION:g} times the initial length", _longer),
    _Check("endings", "responses are cut off at the longest length", f"{ENDED:.0%} ended by themselves", _cut_off),
    _Check("reward falls", "reward fell while KL rose", f"{FALL:.0%} of the best gain lost", _reward_falls),
    _Check("KL", "KL ran away", f"{KL_RUNAWAY:g} times the largest budget", _kl_runs_away),
    _Check(
        "over-optimisation",
        "the reward model was over-optimised",
        f"{FALL:.0%} of the gold gain lost, the reward up by {RISE:.0%} of its gain",
        _gold_falls,
    ),
)


def _seeds(setting: SettingSummary) -> Iterator[Diagnosis]:
    """One for seeds that end apart by more than was gained."""
    if len(setting.runs) < 2:
        return
    ends = [float(run.evaluations.reward[-1]) for run in setting.runs]
    gains = [end - float(run.evaluations.reward[0]) for end, run in zip(ends, setting.runs, strict=True)]
    spread, gain = max(ends) - min(ends), float(np.mean(gains))
    if spread <= SEED_RANGE * abs(gain):
        return
    apart = (setting.runs[int(np.argmin(ends))], setting.runs[int(np.argmax(ends))])
    text = (
        f"{setting.name}: seeds diverge: the last rewards lie {spread:.2f} apart, from {min(ends):.2f} (seed "
        f"{apart[0].record.seed}) to {max(ends):.2f} (seed {apart[1].record.seed}), while the mean gain is {gain:.2f} "
        f"(threshold: {SEED_RANGE:g} times the mean gain)."
    )
    yield Diagnosis("seeds", setting.name, tuple(run.record.id for run in apart), text)
