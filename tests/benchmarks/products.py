"""Products of few rows with a large weight, as of one token a row: `python -m tests.benchmarks.products`.

A weight as nn.Linear keeps it, as the right factor or as the left one (rlhf/models/layers.py). Enough weights take
turns that none stays in a cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.measuring import Table, add_options, begin, interleaved

CPU = torch.device("cpu")


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    begin(options, CPU)
    weights = [torch.randn(options.outputs, options.inputs) for _ in range(options.weights)]
    table = Table(
        f"{options.outputs} x {options.inputs}",
        "right, ms",
        "left, ms",
        "left is faster by",
        "left, GB/s",
        "left, GFLOP/s",
    )
    for rows in options.rows:
        given = torch.randn(rows, options.inputs)
        calls = {
            "right": _all(weights, lambda weight, given=given: F.linear(given, weight)),
            "left": _all(weights, lambda weight, given=given: torch.mm(weight, given.t()).t()),
        }
        found = interleaved(calls, options.repeats, CPU)
        right, left = (found[name].least / len(weights) for name in ("right", "left"))
        numbers = options.outputs * options.inputs
        table.row(
            f"{rows} rows", right * 1e3, left * 1e3, right / left, 4e-9 * numbers / left, 2e-9 * rows * numbers / left
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32, 48, 64, 128])
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--weights", type=int, default=40)
    add_options(parser, repeats=10)
    return parser


def _all(weights: list[Tensor], product: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    def call() -> None:
        for weight in weights:
            product(weight)

    return call


if __name__ == "__main__":
    main()
