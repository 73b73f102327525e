"""`python -m tests.benchmarks.evaluation_draws runs/draws --draws 12 --run algo=apa,ppo,awr seed=0,1,2,3,4,5,6,7,8,9`:
how often intervals of KL efficiency hold where evaluation is drawn anew, and what the value owes to how often one
evaluates.

Runs the sweep with evaluation.seed=0 .. 11, which trains the same policies to the bit, and measures them and the
initial policy by other responses; runs that are finished are skipped. Without --run it reads what the folder has.

- Coverage: of 2, 3, 5 and 10 seeds, the share of (draw, seeds) whose interval holds the value averaged over the draws:
  of all seeds of the sweep; of 1 or 2 seeds, whose interval is for these runs, of the same ones. The prompts are the
  same in all draws, while the interval is for others too: more than 95% is to be expected.
- Frequency: KL efficiency from every second, third ... evaluation beside that from all, in standard errors of it.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.compared import ComparedRun
from analysis.crossed import Run, crossed_mean
from analysis.kl_efficiency import GainCurve
from analysis.load import load_sweep
from analysis.summary import common_budget, compare
from tests.benchmarks.measuring import ROOT

MOST_SUBSETS = 60  # of seeds, for each number of them


def kept(run: ComparedRun, every: int) -> GainCurve:
    """The run's curve if only each `every`-th evaluation, the first and the last had been made."""
    count = len(run.evaluations.kl)
    places = sorted({*range(0, count, every), count - 1})
    return GainCurve(run.evaluations.kl[places], run.evaluations.gains[places])


def subsets(count: int, size: int) -> list[tuple[int, ...]]:
    """Of `size` out of `count` seeds: all of them, or some at random, the same each time."""
    every = list(itertools.islice(itertools.combinations(range(count), size), 10_000))
    chosen = np.random.default_rng(0).permutation(len(every))[:MOST_SUBSETS]
    return [every[place] for place in chosen]


def held(values: np.ndarray, runs: Sequence[Run], size: int) -> tuple[float, float]:
    """Share of intervals of `size` runs that hold the value averaged over the draws, and their mean half-width.

    Args:
        values: (D, S, P) of D draws of the same S runs, each prompt's part of the value.
        runs: (S,) what was drawn for each.
    """
    inside, widths = [], []
    for chosen in subsets(len(runs), size):
        for draw in values[:, chosen]:
            found = crossed_mean(draw, [runs[place] for place in chosen])
            truth = float(values[:, chosen].mean() if found.of_these_runs else values.mean())
            inside.append(found.low <= truth <= found.high)
            widths.append(found.half_width)
    return float(np.mean(inside)), float(np.mean(widths))


def draws_of(folder: Path) -> dict[str, list[list[ComparedRun]]]:
    """Of each algorithm one list of runs for each draw, the same runs in each.

    Raises:
        SystemExit: no two draws have the same runs, runs differ in more than evaluation.seed and the seeds, or runs
            kept no numbers of prompts.
    """
    comparison = compare(load_sweep(folder))
    if not comparison.crossed:
        raise SystemExit(f"{folder}: its runs kept no numbers of the same prompts (evaluations.jsonl)")
    found: dict[str, dict[int, dict[Run, ComparedRun]]] = {}
    for run in (run for setting in comparison.settings for run in setting.runs):
        own = found.setdefault(run.record.algo, {}).setdefault(run.record.setting("evaluation.seed"), {})
        if own.setdefault(run.record.replicate, run) is not run:
            raise SystemExit(f"{folder}: the runs of {run.record.algo} differ in more than evaluation.seed and seeds")
    complete: dict[str, list[list[ComparedRun]]] = {}
    for algo, by_draw in found.items():
        shared = sorted(set.intersection(*map(set, by_draw.values())), key=str)
        if len(by_draw) < 2 or not shared:
            raise SystemExit(f"{folder}: {algo} has no two draws of the same runs; give --draws and --run")
        complete[algo] = [[by_draw[draw][one] for one in shared] for draw in sorted(by_draw)]
    return complete


def table(draws: list[list[ComparedRun]], budget: float, every: int = 1) -> np.ndarray:
    """(D, S, P) each prompt's part of E(K)."""
    return np.array([[kept(run, every).efficiency(budget) for run in runs] for runs in draws])


def show_coverage(algo: str, draws: list[list[ComparedRun]], budget: float, sizes: Sequence[int]) -> None:
    values, runs = table(draws, budget), [run.record.replicate for run in draws[0]]
    means = values.mean(axis=2)
    print(
        f"{algo}: E({budget:g}) {means.mean():.3f} over {len(draws)} draws of {len(runs)} seeds; SD over draws "
        f"{means.mean(axis=1).std(ddof=1):.3f}, of one run {np.sqrt(means.var(axis=0, ddof=1).mean()):.3f}"
    )
    for size in (size for size in sizes if size <= len(runs)):
        share, width = held(values, runs, size)
        print(f"{algo}, {size} seeds: {share:.1%} hold it, +-{width:.3f}", flush=True)


def show_frequency(found: dict[str, list[list[ComparedRun]]], thinned: Sequence[int]) -> None:
    """Within the largest KL that every run spent at each frequency."""
    runs = [run for draws in found.values() for own in draws for run in own]
    budget = min(kept(run, every).largest_kl for run in runs for every in (1, *thinned))
    for algo, draws in found.items():
        full = table(draws, budget)
        names = [run.record.replicate for run in draws[0]]
        error = float(np.mean([crossed_mean(draw, names).standard_error for draw in full]))
        count = len(draws[0][0].evaluations.kl)
        print(f"{algo}, all {count} evaluations: E({budget:.3g}) {full.mean():.3f} (SE {error:.3f})")
        for every in thinned:
            change = float(table(draws, budget, every).mean() - full.mean())
            print(f"{algo}, every {every}th: {change:+.3f}, {change / error:+.2f} standard errors", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as runs/draws")
    parser.add_argument("--draws", type=int, default=12, help="with --run: how many; evaluation.seed=0, 1, ...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10], help="how many seeds intervals are of")
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3, 4], help="evaluations to keep one of")
    parser.add_argument("--run", nargs="+", help="what spans the sweep, as behind `python main.py -m`")
    options = parser.parse_args(arguments)
    if options.run:
        seeds = ",".join(map(str, range(options.draws)))
        place = options.folder.resolve()
        where = [f"output_dir={place.parent}", f"sweep_name={place.name}", f"evaluation.seed={seeds}"]
        subprocess.run([sys.executable, "main.py", "-m", *options.run, *where], cwd=ROOT, check=True)
    found = draws_of(options.folder)
    budget = common_budget([run.curve.largest_kl for draws in found.values() for own in draws for run in own])
    for algo, draws in found.items():
        show_coverage(algo, draws, budget, options.seeds)
    show_frequency(found, options.every)


if __name__ == "__main__":
    main()
