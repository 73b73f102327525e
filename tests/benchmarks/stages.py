"""What each stage of one of our iterations has to compute, as matrix products: weights and rows of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf.config import RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.models.families import BLOCKS, attribute, decoder_of
from rlhf.models.loading import language_head
from tests.benchmarks.measuring import (
    Machine,
    Product,
    Shapes,
    Table,
    Times,
    backward,
    flops,
    forward,
    linear_shapes,
    share,
)

HEAD = torch.float32
"""Of logits, whatever the blocks compute in."""


@dataclass(frozen=True)
class Work:
    """An iteration over texts of one length, with a separate value network that trains what the policy does.

    Only what must be done is counted: the policy's logits once, though its entropy may be taken apart; the last block
    after its keys and values where its output is wanted; adapters, which are a few per cent of a base, not at all.
    """

    trunk: Shapes
    """Frozen blocks below the trained ones; none in modes all and lora."""
    top: Shapes
    """The trained blocks, but for `tail`."""
    tail: Shapes
    """The last block's output matrix and MLP, which are wanted before the response's tokens alone."""
    head: Shapes
    mode: str
    responses: int
    sampled_at_once: int
    prompt: int
    new: int
    micro_batch: int
    """Of the update."""
    epochs: int

    @property
    def texts(self) -> int:
        return self.prompt + self.new

    def sampling(self) -> list[Product]:
        """The prompts, then one token after the other; logits where a token is drawn."""
        rows, rounds, blocks = self.sampled_at_once, self.responses // self.sampled_at_once, self.trunk + self.top
        return [
            *forward(blocks, rows * self.prompt, rounds),
            *forward(blocks, rows, rounds * (self.new - 1)),
            *forward(self.tail, rows, rounds * self.new),
            *forward(self.head, rows, rounds * self.new, HEAD),
        ]

    def scoring(self) -> list[Product]:
        """By a reward model of the policy's size, of whole texts and their EOS, all of them through all blocks."""
        return forward(self.trunk + self.top + self.tail, self.responses * (self.texts + 1))

    def measuring(self) -> list[Product]:
        """Policy, reference and value network; logits of the first two."""
        rows, times = self.micro_batch, self.responses // self.micro_batch
        return [
            *forward(self.trunk, self.sampled_at_once * self.texts, self.responses // self.sampled_at_once),
            *forward(self.top, rows * self.texts, 3 * times),
            *forward(self.tail, rows * self.new, 3 * times),
            *forward(self.head, rows * self.new, 2 * times, HEAD),
        ]

    def update(self) -> list[Product]:
        """Policy and value network, forward and backward."""
        rows, times = self.micro_batch, self.epochs * (self.responses // self.micro_batch)
        weights = self.mode != "lora"
        return [
            *forward(self.top, rows * self.texts, 2 * times),
            *backward(self.top, rows * self.texts, 2 * times, weights=weights),
            *forward(self.tail, rows * self.new, 2 * times),
            *backward(self.tail, rows * self.new, 2 * times, weights=weights),
            *forward(self.head, rows * self.new, times, HEAD),
            *backward(self.head, rows * self.new, times, HEAD, weights=self.mode == "all"),
        ]

    def by_stage(self) -> dict[str, list[Product]]:
        return {
            "sampling": self.sampling(),
            "scoring": self.scoring(),
            "measuring": self.measuring(),
            "update": self.update(),
        }


def work_of(config: RunConfig, model: PreTrainedModel, prompt: int) -> Work:
    """Of the model before anything is put into it."""
    blocks = list(getattr(model.base_model, attribute(model.base_model, BLOCKS)))
    train = config.model.train
    cut = len(blocks) - train.last_k if train.mode == "last_k" else 0
    head = language_head(model)
    assert isinstance(head, nn.Linear)
    last = decoder_of(model.base_model).blocks[-1]
    tail = linear_shapes(last.output, last.mlp)
    responses = config.rollout.num_responses
    return Work(
        trunk=linear_shapes(*blocks[:cut]),
        top=linear_shapes(*blocks[cut:]) - tail,
        tail=tail,
        head=linear_shapes(head),
        mode=train.mode,
        responses=responses,
        sampled_at_once=min(config.rollout.batch_size, responses),
        prompt=prompt,
        new=config.dataset.max_new_tokens,
        micro_batch=forward_rows(config),
        epochs=config.optimization.epochs,
    )


def show_shares(title: str, products: dict[str, list[Product]], times: dict[str, Times], machine: Machine) -> None:
    """A row a stage: its arithmetic, the rate that it reached, and what share that is of what the machine does.

    Args:
        machine: which has read its rates of the products once, and does so once more.
    """
    machine.read(one for work in products.values() for one in work)
    square, disturbed = max(machine.squares), False
    table = Table(title, "min s", "median s", "GFLOP", "GFLOP/s", "of square", "of shapes", "shapes' GFLOP/s")
    for stage, work in products.items():
        took, count, alone = times[stage], flops(work), machine.seconds(work)
        rate = count / took.least
        disturbed |= alone > took.least
        table.row(
            stage,
            took.least,
            took.median,
            count / 1e9,
            rate / 1e9,
            share(rate, square),
            share(alone, took.least),
            count / alone / 1e9,
        )
    rates = ", then ".join(f"{rate / 1e9:,.0f}" for rate in machine.squares)
    print(f"large square products: {rates} GFLOP/s; `of shapes`: the stage's own products, alone; both at their best\n")
    if disturbed:
        print("a stage was faster than its own products alone: something else was running; measure again\n")
