"""`python -m analysis suite runs/A runs/B ...`: algorithms over several tasks at once.

Each folder is a task. A run's score is its share of the optimum, KL efficiency over the optimum's within the budget
that all runs of the task reached: 0 is the initial policy, 1 the best that is possible, so that tasks can be pooled.
The measures are those of Agarwal et al. 2021 ("Deep RL at the edge of the statistical precipice"): interquartile mean,
median, mean, optimality gap, probability of improvement and performance profiles, with intervals by a bootstrap that
draws runs within each task and, since all runs of a task answer the same prompts, its prompts too.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.load import load_sweep
from analysis.statistics import MIN_SEEDS_BOOTSTRAP, MIN_SEEDS_STUDENT
from analysis.summary import compare, shares_of_optimum
from analysis.tables import number, write_csv
from rlhf.terminal import say

RESAMPLES = 5000
LEVEL = 0.95
PROFILE = np.linspace(0.0, 1.0, 21)

Scores = Mapping[str, Sequence[np.ndarray]]
"""Of each algorithm, of each task, the tasks in one order: (runs,), or (runs, prompts) whose means are the runs'. The
prompts of a task are those of all algorithms."""


@dataclass(frozen=True)
class Aggregate:
    value: float
    low: float | None  # 95% interval; None where nothing that is drawn changes the value
    high: float | None

    @property
    def text(self) -> str:
        ends = "" if self.low is None or self.high is None else f" [{number(self.low)}, {number(self.high)}]"
        return f"{number(self.value)}{ends}"


def interquartile_mean(scores: Sequence[np.ndarray]) -> float:
    """Mean of the middle half of all runs of all tasks; a quarter, rounded down, is cut off at each end."""
    pooled = np.sort(np.concatenate(scores))
    cut = len(pooled) // 4
    return float(pooled[cut : len(pooled) - cut].mean())


def median(scores: Sequence[np.ndarray]) -> float:
    """Median over tasks of each task's mean."""
    return float(np.median([task.mean() for task in scores]))


def mean(scores: Sequence[np.ndarray]) -> float:
    """Mean over tasks of each task's mean."""
    return float(np.mean([task.mean() for task in scores]))


def optimality_gap(scores: Sequence[np.ndarray]) -> float:
    """By how much runs fall short of 1 on average; what lies above 1 makes up for nothing."""
    return float(np.mean([1.0 - np.minimum(task, 1.0).mean() for task in scores]))


MEASURES: dict[str, Callable[[Sequence[np.ndarray]], float]] = {
    "iqm": interquartile_mean,
    "median": median,
    "mean": mean,
    "optimality_gap": optimality_gap,
}


def aggregate(scores: Sequence[np.ndarray], measure: Callable[[Sequence[np.ndarray]], float]) -> Aggregate:
    """A measure with its percentile interval: prompts and runs are drawn with replacement within each task.
    One or two runs of a task say nothing of others: they are not drawn, and the interval is for these runs."""
    return _with_interval(measure(_of_runs(scores)), [measure(drawn) for (drawn,) in _resampled(scores)])


def improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Aggregate:
    """Probability that a run of the first beats one of the second on a task drawn at random, ties one half."""

    def probability(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
        wins = [(np.sign(a[:, None] - b[None, :]).mean() + 1.0) / 2.0 for a, b in zip(ours, theirs, strict=True)]
        return float(np.mean(wins))

    found = probability(_of_runs(first), _of_runs(second))
    return _with_interval(found, [probability(ours, theirs) for ours, theirs in _resampled(first, second)])


def profile(scores: Sequence[np.ndarray], thresholds: np.ndarray = PROFILE) -> np.ndarray:
    """(thresholds,) share of runs above each, a task counting as any other."""
    return np.mean([(task[:, None] > thresholds).mean(axis=0) for task in scores], axis=0)


def fewest_runs(scores: Sequence[np.ndarray]) -> int:
    """Of the tasks."""
    return min(map(len, scores))


def few_runs_notes(scores: Scores) -> list[str]:
    """Which intervals say nothing of other runs, or are too narrow, and why."""
    few = {name: fewest_runs(tasks) for name, tasks in scores.items()}
    alone = [name for name, count in few.items() if count < MIN_SEEDS_STUDENT]
    narrow = [name for name, count in few.items() if MIN_SEEDS_STUDENT <= count < MIN_SEEDS_BOOTSTRAP]
    notes = []
    if alone:
        notes.append(
            f"Intervals of {', '.join(alone)} are over prompts, for these runs alone: a task has fewer than "
            f"{MIN_SEEDS_STUDENT} runs; add some by seed=0,1,2"
        )
    if narrow:
        notes.append(
            f"Intervals of {', '.join(narrow)} are narrower than 95 %: a task has fewer than {MIN_SEEDS_BOOTSTRAP} runs"
        )
    return notes


def _of_runs(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(runs,) of each task."""
    return [task.reshape(len(task), -1).mean(axis=1) for task in scores]


def _resampled(*algorithms: Sequence[np.ndarray]) -> Iterator[list[list[np.ndarray]]]:
    """Scores of runs, again and again: of each task prompts are drawn once for all algorithms, and runs for each. The
    same draws every time, so that a table can be made again."""
    draw = np.random.default_rng(0)
    tables = [[task.reshape(len(task), -1) for task in scores] for scores in algorithms]
    counts = [task.shape[1] for task in tables[0]]
    weights = [draw.multinomial(count, np.full(count, 1.0 / count), RESAMPLES).T / count for count in counts]
    drawn = []
    for scores in tables:
        means = [task @ weight for task, weight in zip(scores, weights, strict=True)]  # (runs, resamples)
        drawn.append([_runs_drawn(draw, one) for one in means])
    for place in range(RESAMPLES):
        yield [[task[:, place] for task in scores] for scores in drawn]


def _runs_drawn(draw: np.random.Generator, means: np.ndarray) -> np.ndarray:
    """(runs, resamples) with replacement in each column, where there are runs enough to speak for others."""
    if len(means) < MIN_SEEDS_STUDENT:
        return means
    return np.take_along_axis(means, draw.integers(0, len(means), means.shape), axis=0)


def _with_interval(value: float, values: Sequence[float]) -> Aggregate:
    if np.ptp(values) == 0.0:  # an interval of no width would claim certainty
        return Aggregate(value, None, None)
    low, high = np.quantile(values, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return Aggregate(value, float(low), float(high))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis suite`."""
    parser.add_argument("folders", type=Path, nargs="+", help="sweeps' folders, one task each")
    parser.add_argument(
        "--output", type=Path, help="folder for suite.csv, pairs.csv and profiles.csv; none if not given"
    )


def run(options: argparse.Namespace) -> int:
    """Print the measures, and write them where --output says; 0.

    Raises:
        AnalysisError: fewer than two tasks, or one whose runs have no share of the optimum.
    """
    scores, notes = load_scores(options.folders)
    tables = suite_tables(scores)
    for row in tables["suite"]:
        say(f"{row['algo']}: IQM {_text(row, 'iqm')}, median {_text(row, 'median')}, mean {_text(row, 'mean')}, ")
        say(f"  optimality gap {_text(row, 'optimality_gap')}; {row['runs']} runs of {row['tasks']} tasks")
    for row in tables["pairs"]:
        say(f"P({row['first']} beats {row['second']}): {_text(row, 'probability')}")
    for note in (*notes, *few_runs_notes(scores)):
        say(note)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            if rows:
                write_csv(options.output / f"{name}.csv", rows, list(rows[0]))
        say(f"tables: {options.output}")
    return 0


def load_scores(folders: Sequence[Path]) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Of every algorithm that each task has, its runs' shares of the optimum; and what is left out.

    Raises:
        AnalysisError: fewer than two tasks; one has several settings of an algorithm or no share of the optimum; no
            algorithm is in all.
    """
    if len(set(map(Path.resolve, folders))) < 2:
        raise AnalysisError("suite: give at least two sweeps' folders, one task each; compare is for one task")
    tasks, notes = [], []
    for folder in folders:
        found, left_out = _task(folder)
        tasks.append(found)
        notes += left_out
    shared = [name for name in tasks[0] if all(name in task for task in tasks)]
    if not shared:
        listed = "; ".join(f"{folder}: {', '.join(task)}" for folder, task in zip(folders, tasks, strict=True))
        raise AnalysisError(f"suite: no algorithm has runs in every task ({listed})")
    for name in sorted(set().union(*tasks) - set(shared)):
        lacking = ", ".join(str(folder) for folder, task in zip(folders, tasks, strict=True) if name not in task)
        notes.append(f"left out: {name}, which has no runs in {lacking}")
    return {name: [task[name] for task in tasks] for name in shared}, notes


def _task(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """(runs, prompts) of each algorithm, and which runs are left out."""
    comparison = compare(load_sweep(folder))
    found: dict[str, np.ndarray] = {}
    for setting in comparison.settings:
        if setting.algo in found:
            raise AnalysisError(f"{folder}: has several settings of {setting.algo}; give a sweep with one of each")
        budget = setting.headline.kl_budget
        if (shares := shares_of_optimum(setting.runs, budget)) is None:
            raise AnalysisError(
                f"{folder}: has no share of the optimum at {budget:g} nats; run it with "
                "evaluation.reference_responses=256, or more where it has some"
            )
        found[setting.algo] = shares
    if not found:
        raise AnalysisError(f"{folder}: {comparison.nothing}")
    return found, [f"{folder}: left out: {item.record.id}: {item.reason}" for item in comparison.excluded]


def suite_tables(scores: Scores) -> dict[str, list[dict[str, Any]]]:
    """Rows of suite.csv, pairs.csv and profiles.csv, algorithms by falling interquartile mean."""
    names = sorted(scores, key=lambda name: -interquartile_mean(_of_runs(scores[name])))
    suite, pairs = [], []
    for name in names:
        row: dict[str, Any] = {"algo": name, "tasks": len(scores[name]), "runs": sum(map(len, scores[name]))}
        for measure, function in MEASURES.items():
            row |= _numbers(measure, aggregate(scores[name], function))
        suite.append(row)
    for first, second in itertools.combinations(names, 2):
        found = improvement(scores[first], scores[second])
        pairs.append({"first": first, "second": second, **_numbers("probability", found)})
    profiles = [
        {"algo": name, "threshold": float(threshold), "share_of_runs_above": float(share)}
        for name in names
        for threshold, share in zip(PROFILE, profile(_of_runs(scores[name])), strict=True)
    ]
    return {"suite": suite, "pairs": pairs, "profiles": profiles}


def _numbers(name: str, found: Aggregate) -> dict[str, float | None]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _text(row: Mapping[str, Any], name: str) -> str:
    return Aggregate(row[name], row[f"{name}_low"], row[f"{name}_high"]).text
