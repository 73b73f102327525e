"""Our update alone: `python -m tests.benchmarks.updating`; on a GPU `--model pythia_1b --device cuda`.

All epochs over one batch of made-up responses whose trunk features, logprobs and values are there: forward and backward
of policy and value network, clipping, AdamW. Every training mode computes the same minibatches. A share is that of the
arithmetic which must be done (tests/benchmarks/stages.py), by time, in large square products of the precision's type,
and in the stage's own products, one behind the other.
"""

from __future__ import annotations

import torch

from rlhf.precision import AUTOCAST
from tests.benchmarks.measuring import Machine, begin, interleaved, parser_of
from tests.benchmarks.setups import POLICIES, NoReward, config_for, iterations_of, made_up, policy_for
from tests.benchmarks.stages import show_shares, work_of


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=5, layers=0, responses=64, prompt=16, new=32, minibatch=16, epochs=2)
    parser.add_argument("--model", choices=POLICIES, default="tiny")
    parser.add_argument("--train", nargs="+", default=["all", "last_k=2", "lora"], help="all, last_k=2, lora")
    parser.add_argument("--algo", choices=("apa", "ppo", "awr"), default="ppo")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(AUTOCAST), help="bf16 on a GPU, else fp32")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    begin(options, device)
    calls, products, precision = {}, {}, options.precision or ("fp32" if device.type == "cpu" else "bf16")
    for train in options.train:
        words = ["model.frozen_weights=float32"] if train == "all" else []
        config = config_for(options, f"hardware.precision={precision}", *words, train=train)
        frozen = torch.bfloat16 if config.model.frozen_weights == "bfloat16" else torch.float32
        dtype = torch.float32 if train == "all" else frozen
        model, tokenizer = policy_for(config, options.model, dtype, device, options.layers)
        products[train] = work_of(config, model, options.prompt)["update"]
        rollouts = made_up(config, model.config.vocab_size, device)
        calls[train] = iterations_of(config, model, tokenizer, NoReward()).updates(rollouts)
    machine = Machine(device, AUTOCAST[precision] or torch.float32)
    machine.read(one for work in products.values() for one in work)
    seconds = interleaved(calls, options.repeats, device)
    title = f"{options.model}, {options.responses} x ({options.prompt} + {options.new}), {precision}"
    show_shares(title, products, seconds, machine)


if __name__ == "__main__":
    main()
