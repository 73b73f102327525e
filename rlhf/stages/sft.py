"""Supervised fine-tuning: demonstrations -> the initial policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.batches import DemonstrationBatch
from rlhf.chat import with_template
from rlhf.config.identity import INPUTS
from rlhf.data.tokenize import Demonstrations, prompt_report
from rlhf.models import positions_of
from rlhf.models.loading import ModelError, frozen_weights, language_head, load_base, moved
from rlhf.models.network import recomputing_model
from rlhf.models.saving import check_place, save_trained
from rlhf.models.sharding import sharded, whole_weights
from rlhf.random import seed_torch
from rlhf.stages.context import RunContext
from rlhf.stages.setup import stops_of
from rlhf.stages.supervised import SupervisedTask, select_parameters, train

NUM_HELD_OUT = 256
"""Held-out demonstrations that an evaluation reads: enough for a loss to two digits."""


def run_sft(context: RunContext) -> dict[str, float]:
    """Train, evaluate on held-out demonstrations, write final/."""
    config, data = context.config, context.read_data("sft", "test_sft")
    settings, limits = config.sft, (config.dataset.max_prompt_tokens, config.dataset.max_new_tokens)
    seed_torch(settings.seed, "sft model")
    frozen = frozen_weights(config, settings.train, context.device)
    model, tokenizer = load_base(config.model, data.words, sum(limits), context.cache_dir, frozen)
    moved(model, context.device)
    every_turn = config.dataset.has_conversations and not settings.loss_on_prompt and settings.turns == "all"
    data = with_template(config.dataset, data, tokenizer, every_turn)
    if config.sweep_name == INPUTS:
        stops_of(config.dataset, data, tokenizer)  # RL's, which would refuse them after this
    context.say(prompt_report(config.dataset, tokenizer, data.sft, data.dropped))
    if settings.packing:
        check_packing(model)
    if settings.train.mode == "lora" and not settings.train.merge_adapters:
        check_place(model, "sft.train")
    parameters = sharded(select_parameters(model, settings.train, "sft.train"), model, settings.train, config.hardware)
    running = recomputing_model(model) if config.hardware.gradient_checkpointing else model
    examples = Demonstrations(tokenizer, data.sft, *limits, loss_on_prompt=settings.loss_on_prompt)
    held_out = Demonstrations(tokenizer, data.test_sft[:NUM_HELD_OUT], *limits, loss_on_prompt=settings.loss_on_prompt)

    def loss(batch: DemonstrationBatch) -> Tensor:
        inputs = pack(batch, sum(limits)) if settings.packing else batch
        with context.autocast():
            return response_cross_entropy(running, inputs.to(context.device))

    def step(rows: Tensor) -> tuple[float, Callable[[Tensor], Tensor]]:
        batch = examples.rows(rows)  # tokenised once
        return float(batch.loss_mask.sum()), lambda places: loss(batch.rows(places).trimmed())

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        total, tokens = 0.0, 0
        for rows in torch.arange(len(held_out)).split(settings.micro_batch_size):
            batch = held_out.rows(rows)
            total += float(loss(batch))
            tokens += int(batch.loss_mask.sum())
        return {"eval/loss": total / tokens}

    task = SupervisedTask(
        settings=settings,
        parameters=parameters,
        size=len(data.sft),
        step=step,
        evaluate=evaluate,
        option="sft",
        describe=lambda rows: [vars(data.sft[row]) for row in rows.tolist()],
    )
    metrics = train(context, task)
    final, weights = context.folder.final, whole_weights(model)
    context.folder.write(lambda: save_trained(model, tokenizer, final, settings.train, "sft.train", weights))
    return metrics


def response_cross_entropy(model: PreTrainedModel, batch: DemonstrationBatch | PackedBatch) -> Tensor:
    """Summed cross entropy, in nats, of the tokens in `loss_mask`.

    Logits are taken at these positions alone, never at padding or, with the loss on responses, at prompts.
    """
    if isinstance(batch, PackedBatch):
        where = {"position_ids": batch.positions}
    else:
        where = {"attention_mask": batch.mask.long(), "position_ids": positions_of(batch.mask)}
    hidden = model.base_model(input_ids=batch.input_ids, use_cache=False, **where).last_hidden_state
    predicted = batch.loss_mask[:, 1:]  # the token at position t is predicted at t - 1
    logits = language_head(model)(hidden[:, :-1][predicted])
    return F.cross_entropy(logits.float(), batch.input_ids[:, 1:][predicted], reduction="sum")


@dataclass(frozen=True)
class PackedBatch:
    """Texts one behind the other, R rows of L tokens; what is left of a row is one more text, which nobody reads."""

    input_ids: Tensor
    """(R, L) int64."""
    positions: Tensor
    """(R, L) int64, from 0 in each text."""
    loss_mask: Tensor
    """(R, L) bool; True on the tokens whose cross entropy is the loss, never on the first of a text."""

    def __post_init__(self) -> None:
        assert self.input_ids.shape == self.positions.shape == self.loss_mask.shape
        assert not bool((self.loss_mask & (self.positions == 0)).any()), "loss on what nothing predicts"

    def to(self, device: torch.device) -> PackedBatch:
        return PackedBatch(self.input_ids.to(device), self.positions.to(device), self.loss_mask.to(device))


def pack(batch: DemonstrationBatch, width: int) -> PackedBatch:
    """The batch's texts in rows of at most `width` tokens, the longest first, each where it first fits.

    Args:
        width: at least the longest text.
    """
    lengths = batch.mask.sum(1).tolist()
    rows: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((row for row, left in enumerate(room) if left >= lengths[text]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(width)
        rows[place].append(text)
        room[place] -= lengths[text]
    shape = len(rows), width - min(room)
    ids, loss_mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    positions = torch.arange(shape[1]).repeat(len(rows), 1)
    for row, texts in enumerate(rows):
        start = 0
        for text in texts:
            end = start + lengths[text]
            ids[row, start:end] = batch.input_ids[text, : lengths[text]]
            loss_mask[row, start:end] = batch.loss_mask[text, : lengths[text]]
            positions[row, start:] = torch.arange(shape[1] - start)
            start = end
        positions[row, start:] = torch.arange(shape[1] - start)
    return PackedBatch(ids, positions, loss_mask)


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Run two short texts in one row and in two: without an attention mask transformers tells texts of a row by their
    position ids, and not every architecture does.

    Raises:
        ModelError: they are not the same; the model does not keep texts of one row apart.
    """
    base, device = model.base_model, next(model.parameters()).device
    ids = torch.arange(2, 14, device=device)[None] % model.config.vocab_size
    positions = torch.tensor([[*range(7), *range(5)]], device=device)
    together = base(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    apart = [base(input_ids=part, use_cache=False).last_hidden_state for part in ids.split([7, 5], dim=1)]
    if not torch.allclose(together, torch.cat(apart, 1), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"sft.packing: {type(model).__name__} does not keep the texts of one row apart; use sft.packing=false"
        )
