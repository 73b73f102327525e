"""What went wrong, in words: each diagnosis with the number that was seen, the threshold beside it, and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compared import ComparedRun, Comparison, SettingSummary
from analysis.evaluations import usable_rows
from analysis.load import RunRecord

# Shares of the initial policy's value.
ENTROPY_COLLAPSE = 0.2
LENGTH_COLLAPSE = 0.3
LENGTH_EXPLOSION = 3.0
# Of the best gain so far, while KL rose since; a fall must also exceed NOISE standard errors of what is compared.
FALL = 0.25
# Compared are single evaluations, and means of SMOOTHED neighbouring ones where there are at least MIN_SMOOTHED: one
# lucky evaluation is then no peak. The noise is that of the curve itself about a smooth one: prompts and draws of an
# evaluation are the same each time, so that the spread over prompts is no noise between evaluations; it stands in only
# where there are fewer than MIN_NOISE of them. By `python -m tests.benchmarks.alarms`, of 2,000 simulated runs of 20
# (and 8) evaluations with white noise and KL rising, "reward fell" is said of 5 % (4 %) that learn nothing and of 1 %
# (3 %) that rise and stay, with noise of 0.15 of the gain; "below the initial one" of 1 % (2 %) that learn nothing;
# "over-optimised" of 4 % (5 %) whose gold is noise. A rise that then loses half the gain is found in 100 % (87 %) with
# noise of 0.05 of the gain, 93 % (50 %) with 0.1 and 69 % (32 %) with 0.15. "Seeds diverge" is said of none (at most
# 0.3 %) of 3 or 10 that learn nothing or rise and stay.
NOISE = 4.0
SMOOTHED = 3
MIN_SMOOTHED = 10
# With fewer, the scatter about a straight line says nothing of a curve's noise.
MIN_NOISE = 5
# Of the gain in reward: how much it must have risen while gold fell, less being noise.
RISE = 0.1
# Share of responses that ended by themselves rather than at the longest length.
ENDED = 0.5
# Times the largest KL budget.
KL_RUNAWAY = 4.0
# Times the mean gain: the standard deviation between the seeds' last rewards.
SEED_SPREAD = 0.5


@dataclass(frozen=True)
class Diagnosis:
    """One finding about one setting; `text` says the number seen and the threshold, and what to try."""

    kind: str  # "entropy", "length", "reward falls", "endings", "not a number", "KL", "over-optimisation", "seeds"
    setting: str
    runs: tuple[str, ...]  # ids of the runs it was seen in
    text: str


@dataclass(frozen=True)
class _Check:
    """What is looked for in every run."""

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
        found += [one for check in CHECKS if (one := _of_setting(setting, check))]
        found += _seeds(setting)
    return found


def _of_setting(setting: SettingSummary, check: _Check) -> Diagnosis | None:
    seen = [(run, words) for run in setting.runs if (words := check.seen(run))]
    if not seen:
        return None
    share = f"{len(seen)} of {len(setting.runs)} runs" if len(setting.runs) > 1 else "the run"
    example = f"seed {seen[0][0].record.seed}: {seen[0][1]}"
    text = f"{setting.name}: {check.what} in {share} ({example}; threshold: {check.threshold})."
    text += f" Try: {remedy(check.kind, seen[0][0].record)}."
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


@dataclass(frozen=True)
class _Levels:
    """A curve's evaluations, or the means of neighbouring ones, (M,), and the standard error of each."""

    values: np.ndarray
    error: float

    def floor(self, share_of: float) -> float:
        """What a fall must exceed, in the curve's units: FALL of `share_of`, and NOISE standard errors."""
        return max(FALL * share_of, NOISE * self.error)


def _levels(values: np.ndarray, error: float) -> _Levels:
    """`error` is that of one evaluation."""
    return _Levels(_smooth(values), error / float(np.sqrt(SMOOTHED)) if len(values) >= MIN_SMOOTHED else error)


def _smooth(values: np.ndarray) -> np.ndarray:
    if len(values) < MIN_SMOOTHED:
        return values
    return np.lib.stride_tricks.sliding_window_view(values, SMOOTHED).mean(axis=-1)


def _noise(values: np.ndarray) -> float:
    """Standard deviation of one evaluation about its curve. Second differences of white noise have sqrt(6) times its
    standard deviation, and 1.4826 times the median of their sizes estimates that whatever a few bends add."""
    if len(values) < MIN_NOISE:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(values, n=2))) / np.sqrt(6.0))


def _reward_noise(run: ComparedRun) -> float:
    """Of one eval/reward about its curve; with too few to tell, the standard error over the prompts, which is more than
    enough: it counts what prompts differ by, too. 0 where that is not known either."""
    rewards = run.evaluations.reward
    return _noise(rewards) if len(rewards) >= MIN_NOISE else _sampling_error(run)


def _sampling_error(run: ComparedRun) -> float:
    """Of one eval/reward over its prompts; 0 where spread or number of prompts is not known."""
    spread, found = _evaluated(run, "eval/reward_std"), run.evaluations
    prompts = found.gains.shape[1] if found.by_prompt else run.record.setting("dataset.num_eval_prompts")
    if not len(spread) or not isinstance(prompts, int) or prompts < 1:
        return 0.0
    return float(np.median(spread) / np.sqrt(prompts))


def _reward_below_initial(run: ComparedRun) -> str | None:
    points = run.evaluations
    least = NOISE * _reward_noise(run)
    last, kl = float(_smooth(points.reward)[-1]), float(_smooth(points.kl)[-1])
    if points.reward[0] - last <= least or kl <= points.kl[0]:
        return None
    return f"from {points.reward[0]:.2f} to {last:.2f}, counted beyond {_size(least)}; KL to {kl:.1f} nats"


def _reward_falls(run: ComparedRun) -> str | None:
    if _reward_below_initial(run):
        return None
    reward, kl = _levels(run.evaluations.reward, _reward_noise(run)), _smooth(run.evaluations.kl)
    best = int(np.argmax(reward.values))
    gain = float(reward.values[best] - run.evaluations.reward[0])
    fall = float(reward.values[best] - reward.values[-1])
    if gain <= 0.0 or fall <= reward.floor(gain) or kl[-1] <= kl[best]:
        return None
    return (
        f"by {fall:.2f} from {reward.values[best]:.2f}, counted beyond {_size(reward.floor(gain))}; KL from "
        f"{kl[best]:.1f} to {kl[-1]:.1f} nats"
    )


def _not_a_number(run: ComparedRun) -> str | None:
    usable = usable_rows(run.record)[run.record.metrics.evaluated]
    if not len(usable) or usable[-1]:
        return None
    lacking = f"{int((~usable).sum())} of {len(usable)} evaluations"
    return f"reward, KL or the reward of one half of the prompts is missing in {lacking}, the last among them"


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
    known = np.isfinite(gold)
    if known.sum() < 2:
        return None
    levels, reward = _levels(gold[known], _noise(gold[known])), _smooth(run.evaluations.reward[known])
    best = int(np.argmax(levels.values))
    gain, fall = float(levels.values[best] - gold[known][0]), float(levels.values[best] - levels.values[-1])
    rose = float(reward[-1] - reward[best])
    rewards = run.evaluations.reward
    # Without a gain there is nothing to lose a share of: then it is what fell below the initial policy.
    scale = gain if gain > 0.0 else float(np.nanstd(gold))
    if rose <= RISE * max(0.0, float(rewards.max() - rewards[0])):
        return None
    if fall <= levels.floor(scale):
        return None
    least = _size(levels.floor(scale))
    return f"gold fell by {fall:.2f}, counted beyond {least}, while the reward rose by {rose:.2f}"


def _size(value: float) -> str:
    return f"{value:.2g}"


_BEYOND = f"and more than {NOISE:g} standard errors"
CHECKS: Sequence[_Check] = (
    _Check("entropy", "entropy collapsed", f"{ENTROPY_COLLAPSE:.0%} of the initial entropy", _entropy),
    _Check("length", "responses became short", f"{LENGTH_COLLAPSE:.0%} of the initial length", _shorter),
    _Check("length", "responses became long", f"{LENGTH_EXPLOSION:g} times the initial length", _longer),
    _Check("endings", "responses are cut off at the longest length", f"{ENDED:.0%} ended by themselves", _cut_off),
    _Check("not a number", "the last evaluation is not a number", "any", _not_a_number),
    _Check(
        "reward falls",
        "reward fell below the initial one while KL rose",
        f"{NOISE:g} times the evaluation noise",
        _reward_below_initial,
    ),
    _Check("reward falls", "reward fell while KL rose", f"{FALL:.0%} of the best gain lost, {_BEYOND}", _reward_falls),
    _Check("KL", "KL ran away", f"{KL_RUNAWAY:g} times the largest budget", _kl_runs_away),
    _Check(
        "over-optimisation",
        "the reward model was over-optimised",
        f"{FALL:.0%} of the gold gain lost, {_BEYOND}, the reward up by {RISE:.0%} of its gain",
        _gold_falls,
    ),
)


def _seeds(setting: SettingSummary) -> Iterator[Diagnosis]:
    """One for seeds that end apart by more than their evaluations scatter, and by much of what was gained."""
    if len(setting.runs) < 2:
        return
    ends = [float(run.evaluations.reward[-1]) for run in setting.runs]
    gains = [end - float(run.evaluations.reward[0]) for end, run in zip(ends, setting.runs, strict=True)]
    spread, gain = float(np.std(ends, ddof=1)), float(np.mean(gains))
    noise = float(np.median([_reward_noise(run) for run in setting.runs]))
    if spread <= SEED_SPREAD * abs(gain) or spread <= NOISE * noise:
        return
    apart = (setting.runs[int(np.argmin(ends))], setting.runs[int(np.argmax(ends))])
    text = (
        f"{setting.name}: seeds diverge: the last rewards have a standard deviation of {spread:.2f}, from "
        f"{min(ends):.2f} (seed {apart[0].record.seed}) to {max(ends):.2f} (seed {apart[1].record.seed}), while the "
        f"mean gain is {gain:.2f} (threshold: {SEED_SPREAD:g} times the mean gain, and {NOISE:g} times the evaluation "
        f"noise, {noise:.2g}). Try: {remedy('seeds', apart[0].record)}."
    )
    yield Diagnosis("seeds", setting.name, tuple(run.record.id for run in apart), text)


def remedy(kind: str, run: RunRecord) -> str:
    """What to change, with the value that the run had; `kind` is the diagnosis's."""
    slower = f"lower {_option(run, 'optimization.learning_rate')}"
    closer = _staying_close(run)
    if kind == "not a number":
        return f"{slower}, or lower {_option(run, 'value.learning_rate')}"
    if kind == "endings":
        return (
            f"raise {_option(run, 'dataset.max_new_tokens')}, or set reward.missing_eos_score below the usual rewards"
        )
    if kind == "length":
        return _sentence([*closer, slower], "read samples.jsonl: the reward may depend on length")
    if kind == "over-optimisation":
        shorter = [] if run.setting("rollout.iterations") == 1 else [f"lower {_option(run, 'rollout.iterations')}"]
        return _sentence([*closer, *shorter], "train a better reward model")
    if kind == "seeds":
        return _sentence([*closer, slower], "run more seeds")
    return _sentence([*closer, slower])


def _staying_close(run: RunRecord) -> list[str]:
    """What holds the policy to the initial one; ILQL has nothing of the kind."""
    if run.setting("algo.lam") is not None:
        return [f"raise {_option(run, 'algo.lam')}"]
    controller = run.setting("algo.kl.controller")
    if controller == "none":
        return ["set algo.kl.controller=adaptive"]
    if controller is None:
        return []
    lower = [f"lower {_option(run, 'algo.kl.target')}"] if controller == "adaptive" else []
    return [f"raise {_option(run, 'algo.kl.init_coef')}", *lower]


def _option(run: RunRecord, path: str) -> str:
    """`algo.lam (0.1)`."""
    value = run.setting(path)
    return path if value is None else f"{path} ({value})"


def _sentence(first: list[str], last: str | None = None) -> str:
    *before, end = [*first, *([last] if last else [])]
    return f"{', '.join(before)}, or {end}" if before else end
