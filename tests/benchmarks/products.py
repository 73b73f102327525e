"""Products of few rows with a large weight, as of one token a row: `python -m tests.benchmarks.products`.

A weight as nn.Linear keeps it, as the right factor or as the left one (rlhf/models/few_rows.py). Enough weights take
turns that none stays in a cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.measuring import Table, Times, add_options, begin

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
        right = _times(lambda weight, given=given: F.linear(given, weight), weights, options.repeats)
        left = _times(lambda weight, given=given: torch.mm(weight, given.t()).t(), weights, options.repeats)
        numbers = options.outputs * options.inputs
        table.row(
            f"{rows} rows",
            right.least * 1e3,
            left.least * 1e3,
            right.least / left.least,
            4e-9 * numbers / left.least,
            2e-9 * rows * numbers / left.least,
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32, 48, 64, 128])
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--weights", type=int, default=40)
    add_options(parser, repeats=10)
    return parser


def _times(product: Callable[[Tensor], Tensor], weights: list[Tensor], repeats: int) -> Times:
    """Of one product."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for weight in weights:
            product(weight)
        seconds.append((time.perf_counter() - began) / len(weights))
    return Times(seconds[1:])


if __name__ == "__main__":
    main()
