"""Supervised fine-tuning: demonstrations -> the initial policy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.batches import DemonstrationBatch
from rlhf.data import load_text_data
from rlhf.data.tokenize import encode_demonstrations
from rlhf.models import positions_of
from rlhf.models.loading import language_head, load_base, moved
from rlhf.models.saving import save_model
from rlhf.random import seed_torch
from rlhf.stages.context import RunContext
from rlhf.stages.supervised import SupervisedTask, merge_adapters, select_parameters, train

NUM_HELD_OUT = 256
"""Held-out demonstrations that an evaluation reads: enough for a loss to two digits."""


def response_cross_entropy(model: PreTrainedModel, batch: DemonstrationBatch) -> Tensor:
    """Summed cross entropy, in nats, of the tokens in `loss_mask`.

    Logits are taken at these positions alone, never at padding or, with the loss on responses, at prompts.
    """
    hidden = model.base_model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask.long(),
        position_ids=positions_of(batch.mask),
        use_cache=False,
    ).last_hidden_state
    predicted = batch.loss_mask[:, 1:]  # the token at position t is predicted at t - 1
    logits = language_head(model)(hidden[:, :-1][predicted])
    return F.cross_entropy(logits.float(), batch.input_ids[:, 1:][predicted], reduction="sum")


def run_sft(context: RunContext) -> dict[str, float]:
    """Train, evaluate on held-out demonstrations, write final/."""
    config, data = context.config, load_text_data(context.config.dataset)
    limits = config.dataset.max_prompt_tokens, config.dataset.max_new_tokens
    seed_torch(config.sft.seed, "sft model")
    model, tokenizer = load_base(config.model, data.words, sum(limits), context.cache_dir)
    moved(model, context.device)
    parameters = select_parameters(model, config.sft.train)
    examples = encode_demonstrations(tokenizer, data.sft, *limits, loss_on_prompt=config.sft.loss_on_prompt)
    test = data.test_sft[:NUM_HELD_OUT]
    held_out = encode_demonstrations(tokenizer, test, *limits, loss_on_prompt=config.sft.loss_on_prompt)

    def loss(rows: Tensor) -> Tensor:
        with context.autocast():
            return response_cross_entropy(model, examples.rows(rows).trimmed().to(context.device))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        total = 0.0
        for rows in torch.arange(len(held_out.mask)).split(config.sft.micro_batch_size):
            with context.autocast():
                total += float(response_cross_entropy(model, held_out.rows(rows).trimmed().to(context.device)))
        return {"eval/loss": total / float(held_out.loss_mask.sum())}

    task = SupervisedTask(
        settings=config.sft,
        parameters=parameters,
        size=len(examples.mask),
        weight=lambda rows: float(examples.loss_mask[rows].sum()),
        loss=loss,
        evaluate=evaluate,
    )
    metrics = train(context, task)
    context.lock.check()
    save_model(merge_adapters(model), tokenizer, context.folder / "final")
    return metrics
