"""What runs on large GPUs would take, reckoned and never measured: `python -m tests.benchmarks.scale`.

The paper's settings on one A100 of 80 GB, and a 70B policy with a 70B reward model on 8, 64 and 512 H100s. Arithmetic:
2 x parameters x tokens for a forward pass, as much for each gradient that is wanted; at 40% of the peak rate. Sampling
reads the weights and the cache of its rows once a token, at 60% of the peak bandwidth. Sharded weights (FSDP2) are
gathered for every forward and backward pass, and gradients scattered, at 80% of the link's bandwidth; nothing is hidden
behind anything else. Memory is the sum of what must be there times 1.25, the goal of `tests.benchmarks.memory`.

`--check` sets the same arithmetic against what `tests.benchmarks.iteration` counts product by product.
"""

from __future__ import annotations

import argparse
import math
from argparse import Namespace
from dataclasses import dataclass

from tests.benchmarks.measuring import Table

COMPUTE_SHARE, BANDWIDTH_SHARE, LINK_SHARE, MEMORY_FACTOR = 0.4, 0.6, 0.8, 1.25
TRAINED_BYTES, HELD_BYTES = 16, 2
"""A float32 parameter with gradient and two moments; a frozen one in bfloat16."""
GB = 1e9


@dataclass(frozen=True)
class GPU:
    flops: float
    """A second, dense, bfloat16."""
    bandwidth: float
    """Bytes a second of its memory."""
    link: float
    """Bytes a second, to GPUs of other nodes."""
    memory: float


A100 = GPU(312e12, 2.0e12, 25e9, 80e9)
H100 = GPU(989e12, 3.35e12, 50e9, 80e9)


@dataclass(frozen=True)
class Network:
    blocks: int
    block: float
    """Parameters of one block's matrices."""
    head: float
    """Of the language head; as many again in embeddings that are not tied."""
    key_width: int
    """Numbers of a token's key in a block."""

    @property
    def parameters(self) -> float:
        return self.blocks * self.block + self.head

    def cache_bytes(self, tokens: float) -> float:
        return 2 * HELD_BYTES * self.blocks * self.key_width * tokens


def plain(blocks: int, width: int, vocabulary: int) -> Network:
    """GPT-NeoX, GPT-J and their like: 12 width^2 a block."""
    return Network(blocks, 12 * width**2, width * vocabulary, width)


PYTHIA_125M, PYTHIA_1B, PYTHIA_6B = plain(12, 768, 50304), plain(16, 2048, 50304), plain(32, 4096, 50432)
GPT_NEO, GPTJ, LLAMA_7B = plain(32, 2560, 50257), plain(28, 4096, 50400), plain(32, 4096, 32000)
LLAMA_70B = Network(80, 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672), 8192 * 128256, 1024)


@dataclass(frozen=True)
class Run:
    """One run with a critic of its own, as APA, PPO and AWR have."""

    name: str
    policy: Network
    reward: Network
    trained: str
    """all, lora, or how many last blocks."""
    responses: int
    iterations: int
    prompt: int
    new: int
    minibatch: int
    batch: int
    """Responses that are sampled at once by one copy of the policy."""
    epochs: int = 2
    gpus: int = 1
    gpu: GPU = A100
    sampler_gpus: int = 1
    """That hold one copy of the policy for sampling."""

    @property
    def top(self) -> int:
        """Blocks that carry gradients."""
        return int(self.trained) if self.trained.isdigit() else self.policy.blocks

    def flops(self) -> dict[str, float]:
        """Of an iteration, by stage."""
        policy, texts = self.policy, self.responses * (self.prompt + self.new)
        answers, below = self.responses * self.new, policy.blocks - self.top
        gradients = {"all": 6, "lora": 4}.get(self.trained, 6)
        return {
            "sampling": 2 * policy.blocks * policy.block * texts + 2 * policy.head * answers,
            "scoring": 2 * self.reward.blocks * self.reward.block * texts,
            "measuring": 2 * policy.block * (below + 3 * self.top) * texts + 4 * policy.head * answers,
            "update": self.epochs * gradients * (2 * policy.block * self.top * texts + policy.head * answers),
        }

    def seconds(self) -> dict[str, float]:
        """Of an iteration, by stage; a token of sampling waits for its arithmetic or its reading."""
        rate = self.gpus * self.gpu.flops * COMPUTE_SHARE
        seconds = {stage: flops / rate for stage, flops in self.flops().items()}
        copies = max(1, self.gpus // self.sampler_gpus)
        rows = math.ceil(self.responses / copies)
        rounds = math.ceil(rows / self.batch)
        cache = self.policy.cache_bytes((self.prompt + self.new / 2) * min(rows, self.batch))
        read = HELD_BYTES * self.policy.parameters + cache
        reading = rounds * self.new * read / (self.sampler_gpus * self.gpu.bandwidth * BANDWIDTH_SHARE)
        prefill = seconds["sampling"] * self.prompt / (self.prompt + self.new)
        seconds["sampling"] = prefill + max(reading, seconds["sampling"] - prefill)
        if self.gpus > 1:
            passes = {"scoring": self.reward.parameters, "measuring": 3 * self.policy.parameters}
            steps = self.epochs * math.ceil(self.responses / self.minibatch)
            moved = {name: HELD_BYTES * size for name, size in passes.items()}
            # Weights for the forward and the backward pass, of policy and value network; gradients of what is trained.
            scattered = 4 * self.policy.parameters if self.trained == "all" else 0
            moved["update"] = steps * 2 * (2 * HELD_BYTES * self.policy.parameters + scattered)
            for stage, size in moved.items():
                seconds[stage] += size / (self.gpu.link * LINK_SHARE)
        return seconds

    def memory(self) -> float:
        """Bytes on each GPU, sharded over all; the key-value cache of one GPU's share of the rows."""
        policy = self.policy
        value_and_reference = 3 * self.top * policy.block + 2 * policy.head
        if self.trained == "lora":
            held, trained = policy.parameters + policy.head, 0.01 * policy.parameters
        elif self.trained == "all":
            held, trained = policy.parameters, 2 * policy.parameters
        else:
            held, trained = policy.parameters + value_and_reference / 3, 2 * self.top * policy.block
        rows = min(self.batch, math.ceil(self.responses * self.sampler_gpus / self.gpus))
        cache = policy.cache_bytes(rows * (self.prompt + self.new)) / self.sampler_gpus
        weights = HELD_BYTES * (held + self.reward.parameters) + TRAINED_BYTES * trained
        return MEMORY_FACTOR * (weights / self.gpus + cache)


HH = {"reward": GPTJ, "trained": "2", "responses": 64, "prompt": 896, "new": 128}
TLDR = {"reward": GPTJ, "trained": "8", "responses": 128, "iterations": 39, "prompt": 500, "new": 50, "minibatch": 2}
PAPER = (
    Run("hh_125m", PYTHIA_125M, iterations=1250, minibatch=8, batch=64, **HH),
    Run("hh_1b", PYTHIA_1B, iterations=313, minibatch=2, batch=64, **HH),
    Run("hh_6b, dolly_7b", PYTHIA_6B, iterations=157, minibatch=1, batch=16, **HH),
    Run("tldr_2_7b", GPT_NEO, batch=64, **TLDR),
    Run("tldr_6b", GPTJ, batch=32, **TLDR),
    Run("stackexchange_7b", LLAMA_7B, LLAMA_7B, "lora", 256, 150, 896, 128, minibatch=128, batch=16),
)
"""conf/experiment's sizes, every text as long as it may be."""


def large(gpus: int, trained: str) -> Run:
    sizes = {"responses": 1024, "iterations": 200, "prompt": 1024, "new": 1024, "minibatch": 512, "batch": 128}
    return Run(f"70B, {trained}, {gpus}", LLAMA_70B, LLAMA_70B, trained, gpus=gpus, gpu=H100, sampler_gpus=4, **sizes)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="against the counts of tests.benchmarks.iteration")
    if parser.parse_args(arguments).check:
        check()
        return
    stages = ("sampling", "scoring", "measuring", "update")
    for title, runs in {
        "one A100": PAPER,
        "H100s": [large(gpus, trained) for trained in ("lora", "all") for gpus in (8, 64, 512)],
    }.items():
        print(f"\n{title}: seconds of an iteration, hours of a run, GB a GPU of {runs[0].gpu.memory / GB:.0f}")
        table = Table("run", *stages, "iteration", "hours", "GPU hours", "GB a GPU", width=20)
        for run in runs:
            seconds = run.seconds()
            iteration = sum(seconds.values())
            hours, memory = iteration * run.iterations / 3600, run.memory()
            gigabytes = f"{memory / GB:.0f}" + (" (over)" if memory > run.gpu.memory else "")
            table.row(run.name, *(seconds[one] for one in stages), iteration, hours, hours * run.gpus, gigabytes)


def check() -> None:
    """GFLOP of an iteration of the tiny benchmark's shape, counted product by product and reckoned."""
    import torch

    from tests.benchmarks.measuring import flops
    from tests.benchmarks.setups import config_for, policy_for
    from tests.benchmarks.stages import work_of

    table = Table("GFLOP", "counted", "reckoned", "ratio")
    for trained in ("all", "2"):
        train = "all" if trained == "all" else f"last_k={trained}"
        options = Namespace(responses=64, prompt=16, new=32, minibatch=8, algo="ppo")
        config = config_for(options, train=train)
        model, _ = policy_for(config, "tiny", torch.float32, torch.device("cpu"))
        network = plain(4, 128, model.config.vocab_size)
        run = Run("tiny", network, network, trained, 64, 1, 16, 32, 8, 64)
        counted = work_of(config, model, options.prompt)
        for stage, reckoned in run.flops().items():
            exact = flops(counted[stage])
            table.row(f"{train}, {stage}", exact / GB, reckoned / GB, reckoned / exact)


if __name__ == "__main__":
    main()
