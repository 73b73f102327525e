"""Whether torch.compile pays where an update spends its time: `python -m tests.benchmarks.compiling`.

Forward and backward pass of the policy of model=tiny up to its hidden states, all parameters trained, one micro-batch;
compiled and as it is take turns. Its warm-up is paid for every shape that the first compilation did not foresee.
"""

from __future__ import annotations

import argparse
import time

import torch

from rlhf.models import build_models
from tests.benchmarks.measuring import Table, add_options, begin, interleaved
from tests.benchmarks.setups import MODELS, config_for, policy_for
from tests.benchmarks.updating import made_up

CPU = torch.device("cpu")


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    begin(options, CPU)
    config = config_for(
        *("model.train.mode=all", "model.num_layers=4", "model.width=128", "model.num_heads=4"),
        algo="apa",
        responses=options.rows,
        prompt=16,
        new=32,
        minibatch=options.rows,
    )
    model, _ = policy_for(config, "tiny", torch.float32, CPU)
    models = build_models(model, config.model.train, config.value, temperature=1.0, precision="fp32")
    rollouts = made_up(config, 16, MODELS["tiny"](0).vocab_size, CPU)
    features = models.features(rollouts)
    assert not models.fallback_reason  # tried before anything is compiled
    compiled = torch.compile(models.policy_hidden)

    def as_it_is() -> None:
        models.policy_hidden(features).square().mean().backward()

    def by_the_compiler() -> None:
        compiled(features).square().mean().backward()

    began = time.perf_counter()
    by_the_compiler()
    warm_up = time.perf_counter() - began
    found = interleaved({"as it is": as_it_is, "compiled": by_the_compiler}, options.repeats, CPU)
    table = Table(f"{options.rows} x (16 + 32) tokens, forward and backward", "min s", "median s", "speed", "warm-up s")
    plain = found["as it is"].median
    for name, times in found.items():
        table.row(name, times.least, times.median, plain / times.median, warm_up if name == "compiled" else 0.0)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="responses of a micro-batch")
    add_options(parser, repeats=20)
    return parser


if __name__ == "__main__":
    main()
