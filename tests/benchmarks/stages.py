"""What each stage of one of our iterations has to compute, as matrix products: weights and rows of tokens."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from rlhf.config import RunConfig
from rlhf.config.sizes import forward_rows
from rlhf.models.families import BLOCKS, attribute, decoder_of
from rlhf.models.loading import language_head
from tests.benchmarks.measuring import Machine, Products, Table, flops, linear_shapes, passes, share

HEAD = torch.float32
"""Of logits, whatever the blocks compute in."""


def work_of(config: RunConfig, model: PreTrainedModel, prompt: int) -> dict[str, Products]:
    """By stage, over texts of one length, with a separate value network that trains what the policy does.

    Only what must be done is counted: the policy's logits once, though its entropy may be taken apart; the last block's
    output matrix and MLP (`tail`) where they are wanted, before the response's tokens; adapters, which are a few per
    cent of a base, not at all.

    Args:
        model: before anything is put into it.
    """
    train = config.model.train
    blocks = list(getattr(model.base_model, attribute(model.base_model, BLOCKS)))
    cut = len(blocks) - train.last_k if train.mode == "last_k" else 0
    last = decoder_of(model.base_model).blocks[-1]
    tail, head = linear_shapes(last.output, last.mlp), linear_shapes(language_head(model))
    trunk, top = linear_shapes(*blocks[:cut]), linear_shapes(*blocks[cut:]) - tail

    responses, new = config.rollout.num_responses, config.dataset.max_new_tokens
    texts = prompt + new
    sampled = min(config.rollout.batch_size, responses)
    rounds = responses // sampled
    rows = forward_rows(config)
    measured = responses // rows
    trained = config.optimization.epochs * measured
    both = "forward input" if train.mode == "lora" else "forward input weight"
    head_kinds = "forward input weight" if train.mode == "all" else "forward input"
    return {
        "sampling": passes(trunk + top, sampled * prompt, rounds)
        + passes(trunk + top, sampled, rounds * (new - 1))
        + passes(tail, sampled, rounds * new)
        + passes(head, sampled, rounds * new, HEAD),
        # By a reward model of the policy's size, of texts and their EOS, all of them through all blocks.
        "scoring": passes(trunk + top + tail, responses * (texts + 1), 1),
        # Policy, reference and value network; logits of the first two.
        "measuring": passes(trunk, sampled * texts, rounds)
        + passes(top, rows * texts, 3 * measured)
        + passes(tail, rows * new, 3 * measured)
        + passes(head, rows * new, 2 * measured, HEAD),
        # Policy and value network.
        "update": passes(top, rows * texts, 2 * trained, kinds=both)
        + passes(tail, rows * new, 2 * trained, kinds=both)
        + passes(head, rows * new, trained, HEAD, head_kinds),
    }


def show_shares(
    title: str, products: Mapping[str, Products], times: Mapping[str, Sequence[float]], machine: Machine
) -> None:
    """A row a stage: its arithmetic, the rate that it reached, and what share that is of what the machine does.

    Args:
        machine: which has read its rates of the products once, and does so once more.
    """
    machine.read(one for work in products.values() for one in work)
    square, disturbed = max(machine.squares), False
    table = Table(title, "min s", "median s", "GFLOP", "GFLOP/s", "of square", "of shapes", "shapes' GFLOP/s")
    for stage, work in products.items():
        least, count, alone = min(times[stage]), flops(work), machine.seconds(work)
        disturbed |= alone > least
        giga = count / 1e9
        shares = share(count / least, square), share(alone, least)
        table.row(stage, least, statistics.median(times[stage]), giga, giga / least, *shares, giga / alone)
    rates = ", then ".join(f"{rate / 1e9:,.0f}" for rate in machine.squares)
    print(f"large square products: {rates} GFLOP/s; `of shapes`: the stage's own products, alone; both at their best\n")
    if disturbed:
        print("a stage was faster than its own products alone: something else was running; measure again\n")
