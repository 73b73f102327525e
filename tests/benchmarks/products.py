"""Products of few rows with a large weight, as of one token a row: `python -m tests.benchmarks.products`.

A weight as nn.Linear keeps it, as the right factor or as the left one (rlhf/models/layers.py). Enough weights take
turns that none stays in a cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.benchmarks.measuring import CPU, Table, begin, interleaved, parser_of


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=10, inputs=576, outputs=1536, weights=40)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32, 48, 64, 128])
    options = parser.parse_args(arguments)
    begin(options)
    weights = [torch.randn(options.outputs, options.inputs) for _ in range(options.weights)]
    table = Table(f"{options.outputs} x {options.inputs}", "right, ms", "left, ms", "left is faster by")
    for rows in options.rows:
        tokens = torch.randn(rows, options.inputs)
        calls = {
            "right": lambda tokens=tokens: [F.linear(tokens, weight) for weight in weights],
            "left": lambda tokens=tokens: [torch.mm(weight, tokens.t()).t() for weight in weights],
        }
        right, left = (1e3 * min(taken) / len(weights) for taken in interleaved(calls, options.repeats, CPU).values())
        table.row(f"{rows} rows", right, left, right / left)


if __name__ == "__main__":
    main()
